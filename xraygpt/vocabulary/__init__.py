"""Names of findings, their mapping from reports and codes, and questions about them."""

from xraygpt.vocabulary import chest_xray, echo
from xraygpt.vocabulary.base import Vocabulary, get_vocabulary

__all__ = ["Vocabulary", "chest_xray", "echo", "get_vocabulary"]
