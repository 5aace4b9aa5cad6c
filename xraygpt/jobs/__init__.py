"""Implementations of commands, imported after argument parsing because they load torch."""
