"""Models: encoder, Q-Former and LLM together; a small LLM; image beside text; a warm-up.

And the vision encoders that they may name.
"""

from xraygpt.models.llm import language_model
from xraygpt.models.qformer_llm import alignment, instruct
from xraygpt.models.qformer_llm import model as xraygpt
from xraygpt.models.vision import hf, image_text, own, published

__all__ = [
    "alignment",
    "hf",
    "image_text",
    "instruct",
    "language_model",
    "own",
    "published",
    "xraygpt",
]
