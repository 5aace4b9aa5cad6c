"""Models: encoder, Q-Former and LLM together; a small LLM; image beside text; a warm-up."""

from xraygpt.models import alignment, image_text, instruct, language_model, xraygpt

__all__ = ["alignment", "image_text", "instruct", "language_model", "xraygpt"]
