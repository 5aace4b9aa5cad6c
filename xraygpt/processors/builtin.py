"""The processors that come with the package, for the registry; a new one is imported here."""

from xraygpt.processors import image, plain, text

__all__ = ["image", "plain", "text"]
