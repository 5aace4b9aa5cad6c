"""Models: the composition of encoder, Q-Former and LLM, a small LLM alone, image beside text."""

from xraygpt.models import image_text, instruct, language_model, xraygpt

__all__ = ["image_text", "instruct", "language_model", "xraygpt"]
