"""Shared foundations: registry, configuration, checkpoints, command-line helpers and errors."""
