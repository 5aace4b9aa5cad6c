"""Shared foundations: registry, configuration, checkpoints, command lines, errors."""
