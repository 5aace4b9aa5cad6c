"""Implementations of the commands, imported after argument parsing because they load torch."""
