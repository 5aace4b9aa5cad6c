"""Registers the built-in processors; import new ones here."""

from xraygpt.processors import image, plain, text

__all__ = ["image", "plain", "text"]
