"""Models: the composition of encoder, Q-Former and LLM, and the small text-only LLM."""

from xraygpt.models import language_model, xraygpt

__all__ = ["language_model", "xraygpt"]
