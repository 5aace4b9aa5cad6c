"""Item -> tensor or text: images, report texts, prompts."""

from xraygpt.processors import image, text

__all__ = ["image", "text"]
