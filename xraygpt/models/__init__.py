"""Models: the composition of encoder, Q-Former and LLM, and the small text-only LLM."""

from xraygpt.models import instruct, language_model, xraygpt

__all__ = ["instruct", "language_model", "xraygpt"]
