"""xraygpt: an open framework for medical vision-language models. Importing it loads no torch."""

__version__ = "0.1.0.dev0"
