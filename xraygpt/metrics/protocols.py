"""How a published protocol cuts reports into words before its scores are taken.

A score means nothing without this: case, marks, rare words and the greatest length change BLEU-4 by
several points. Both sides, prediction and reference, go through the same function.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xraygpt.common.errors import InputError

UNKNOWN = "<unk>"
# Marks that R2Gen drops from inside sentences. Its pattern holds the range from ":" to "[" (which
# a reader takes for three single marks), so "<=>@" go too, and "-" stays.
_DROPPED = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}\"/\\'")
_LIST_MARKS = [(". 2. ", ". "), (". 3. ", ". "), (". 4. ", ". "), (". 5. ", ". ")]
_LIST_MARKS += [(" 2. ", ". "), (" 3. ", ". "), (" 4. ", ". "), (" 5. ", ". ")]


@dataclass(frozen=True)
class R2Gen:
    """Words of the IU X-ray protocol of R2Gen (Chen et al. 2020, EMNLP).

    Lower case, marks dropped, every sentence closed by a full stop of its own. Words that occur
    fewer than three times in the training reports become ``<unk>``. At most 59 are compared: the
    original cuts to 60 ids, of which the first marks the beginning.

    Attributes:
        vocabulary: Words that stay; None leaves all.
        max_words: Longest text compared; None cuts nothing.
    """

    vocabulary: frozenset[str] | None = None
    max_words: int | None = 59
    threshold = 3  # times a word must occur in the training reports

    @classmethod
    def fit(cls, training: Sequence[str]) -> R2Gen:
        """The protocol with the vocabulary of these training reports.

        Raises:
            InputError: There are hardly any, so that every word would be unknown and any two texts
                alike.
        """
        counts = Counter(word for text in training for word in r2gen_words(text))
        known = frozenset(w for w, n in counts.items() if n >= cls.threshold)
        if len(known) < 2:
            raise InputError(
                f"protocol r2gen: {len(training)} training reports make no vocabulary; the corpus "
                "must hold the protocol's train rows beside those that are measured"
            )
        return cls(known)

    def __call__(self, text: str) -> str:
        """Words of a report, one blank between them."""
        words = r2gen_words(text)[: self.max_words]
        if self.vocabulary is not None:
            words = [w if w in self.vocabulary else UNKNOWN for w in words]
        return " ".join(words)

    def __str__(self) -> str:
        """For signatures."""
        known = "all words" if self.vocabulary is None else f"{len(self.vocabulary)} words known"
        cut = "uncut" if self.max_words is None else f"at most {self.max_words} words"
        return f"R2Gen's words, {known}, {cut}"

    def as_row(self) -> dict[str, Any]:
        """For a JSON file, from which `from_row` makes it again."""
        known = None if self.vocabulary is None else sorted(self.vocabulary)
        return {"name": "r2gen", "max_words": self.max_words, "vocabulary": known}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> R2Gen:
        """What `as_row` wrote."""
        known = row["vocabulary"]
        return cls(None if known is None else frozenset(known), row["max_words"])


def r2gen_words(text: str) -> list[str]:
    """Lower-cased words of a report, each sentence followed by ``.``."""
    text = re.sub(r"\s", " ", text)
    for _ in range(3):
        text = text.replace("..", ".")
    text = text.replace("1. ", "")
    for mark, plain in _LIST_MARKS:
        text = text.replace(mark, plain)
    sentences = [s.strip().translate(_DROPPED) for s in text.strip().lower().split(". ")]
    return (" . ".join(sentences) + " .").split()
