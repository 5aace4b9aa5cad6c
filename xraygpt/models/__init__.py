"""Models: encoder, Q-Former and LLM together; a small LLM; image beside text; a warm-up.

And the vision encoders that they may name.
"""

from xraygpt.models import (
    alignment,
    hf_vision,
    image_text,
    instruct,
    language_model,
    own_encoder,
    published,
    xraygpt,
)

__all__ = [
    "alignment",
    "hf_vision",
    "image_text",
    "instruct",
    "language_model",
    "own_encoder",
    "published",
    "xraygpt",
]
