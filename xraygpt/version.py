"""Package version, read by setuptools."""

__version__ = "0.1.0.dev0"
