"""What can be found in a study: names of findings, how texts and codes name them, questions."""

from xraygpt.vocabulary import chest_xray
from xraygpt.vocabulary.base import Vocabulary, vocabulary_of

__all__ = ["Vocabulary", "chest_xray", "vocabulary_of"]
