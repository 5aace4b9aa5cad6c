"""How a published protocol splits reports into words before they are scored.

Scores are comparable only under the same protocol: case, punctuation, rare words and the maximum
length change BLEU-4 by several points. Predictions and references are processed by the same
function.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xraygpt.common.errors import InputError

UNKNOWN = "<unk>"
# Characters that R2Gen removes from within sentences. Its pattern contains the range from ":" to
# "[" (which looks like three single characters), so "<=>@" are removed too, and "-" stays.
_DROPPED = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}\"/\\'")
_LIST_MARKS = [(". 2. ", ". "), (". 3. ", ". "), (". 4. ", ". "), (". 5. ", ". ")]
_LIST_MARKS += [(" 2. ", ". "), (" 3. ", ". "), (" 4. ", ". "), (" 5. ", ". ")]


@dataclass(frozen=True)
class R2Gen:
    """Tokenization of the IU X-ray protocol of R2Gen (Chen et al. 2020, EMNLP).

    Texts are lower-cased, punctuation is removed, and every sentence ends with a separate full
    stop. Words that occur fewer than three times in the training reports become ``<unk>``. Only the
    first 59 words are compared: the original truncates to 60 ids, of which the first is the start
    token.

    Attributes:
        vocabulary: Words that are not replaced; None keeps all.
        max_words: Maximum length; None does not truncate.
    """

    vocabulary: frozenset[str] | None = None
    max_words: int | None = 59
    threshold = 3  # occurrences in the training reports that a word needs

    @classmethod
    def fit(cls, training: Sequence[str]) -> R2Gen:
        """Build the protocol with the vocabulary of these training reports.

        Raises:
            InputError: If there are too few reports: every word would be unknown, and any two texts
                would be equal.
        """
        counts = Counter(word for text in training for word in r2gen_words(text))
        vocabulary = frozenset(w for w, n in counts.items() if n >= cls.threshold)
        if len(vocabulary) < 2:
            raise InputError(
                f"protocol r2gen: {len(training)} training reports are too few for a vocabulary; "
                "the corpus must contain the protocol's train split as well as the evaluated one"
            )
        return cls(vocabulary)

    def __call__(self, text: str) -> str:
        """Return the words of a report, separated by single spaces."""
        words = r2gen_words(text)[: self.max_words]
        if self.vocabulary is not None:
            words = [w if w in self.vocabulary else UNKNOWN for w in words]
        return " ".join(words)

    def __str__(self) -> str:
        """Describe the protocol for a score's signature."""
        known = "all words" if self.vocabulary is None else f"{len(self.vocabulary)} words known"
        cut = "uncut" if self.max_words is None else f"at most {self.max_words} words"
        return f"R2Gen's words, {known}, {cut}"

    def as_row(self) -> dict[str, Any]:
        """Return a JSON-serializable form, which `from_row` reads."""
        vocabulary = None if self.vocabulary is None else sorted(self.vocabulary)
        return {"name": "r2gen", "max_words": self.max_words, "vocabulary": vocabulary}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> R2Gen:
        """Restore the protocol that `as_row` serialized."""
        vocabulary = row["vocabulary"]
        return cls(None if vocabulary is None else frozenset(vocabulary), row["max_words"])


def r2gen_words(text: str) -> list[str]:
    """Split a report into lower-cased words, with ``.`` after each sentence."""
    text = re.sub(r"\s", " ", text)
    for _ in range(3):
        text = text.replace("..", ".")
    text = text.replace("1. ", "")
    for mark, plain in _LIST_MARKS:
        text = text.replace(mark, plain)
    sentences = [s.strip().translate(_DROPPED) for s in text.strip().lower().split(". ")]
    return (" . ".join(sentences) + " .").split()
