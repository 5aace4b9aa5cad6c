"""Models: the composition of encoder, Q-Former and LLM, a small LLM alone, image beside text,
a Q-Former's warm-up.
"""

from xraygpt.models import alignment, image_text, instruct, language_model, xraygpt

__all__ = ["alignment", "image_text", "instruct", "language_model", "xraygpt"]
