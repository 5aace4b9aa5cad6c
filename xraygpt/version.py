"""The package version, which setuptools reads."""

__version__ = "0.1.0.dev0"
