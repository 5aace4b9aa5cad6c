"""Models: the composition of encoder, Q-Former and LLM, and the text-only LLM of the small preset."""

from xraygpt.models import language_model, xraygpt

__all__ = ["language_model", "xraygpt"]
