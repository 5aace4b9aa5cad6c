"""Selection among several sampled answers by minimum Bayes risk."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Sequence

import numpy as np

Words = tuple[Hashable, ...]

_WORDS = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]|\w+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Split a text into lower-case words, punctuation marks, and Chinese or Japanese characters."""
    return _WORDS.findall(text.lower())


def minimum_bayes_risk(
    answers: Sequence[Sequence[Hashable]], bonus: Sequence[float] = (), references: int = 0
) -> int:
    """Return the index of the answer most similar to the others (Kumar and Byrne 2004).

    Similarity is the F1 score of ROUGE-L (Lin 2004).

    Args:
        answers: The words of each answer.
        bonus: A value added to each answer's mean similarity to the others, which is in [0, 1].
        references: Compare only with the last `references` answers; 0 compares with all.
    """
    bonus = bonus or [0.0] * len(answers)
    if len(answers) < 3:
        return bonus.index(max(bonus))
    first = len(answers) - references if references else 0
    words = [tuple(answer) for answer in answers]
    compared = words[first:]
    lengths = lcs_lengths({*words}, compared)
    gains = []
    for i, (answer, extra) in enumerate(zip(words, bonus, strict=True)):
        common = lengths[answer]
        total = sum(
            _f1(common[other], len(answer), len(other))
            for j, other in enumerate(compared, first)
            if i != j
        )
        gains.append(total / max(len(compared) - (i >= first), 1) + extra)
    return gains.index(max(gains))


def _f1(common: int, a: int, b: int) -> float:
    """Compute F1 = 2 P R / (P + R) from the lengths of a common subsequence and of both texts."""
    return 2 * common / max(a + b, 1)


class Overlap:
    """Lengths of the longest common subsequences of a text and each of several others.

    The bit-parallel algorithm of Hyyrö (2004) keeps one bit for each word of a text. Here, the bits
    of all other texts are concatenated in one number, so that one addition advances all of them. A
    bit that is always 0 follows each text and takes up the carry of its addition.

    Args:
        others: The words of the other texts.
    """

    def __init__(self, others: Sequence[Words]) -> None:
        self.lengths = np.array([len(text) for text in others])
        self._starts, self._positions, end, all_bits = [], dict[Hashable, int](), 0, 0
        for text in others:
            self._starts.append(end // 8)
            for i, word in enumerate(text, end):
                self._positions[word] = self._positions.get(word, 0) | 1 << i
            all_bits |= ((1 << len(text)) - 1) << end
            end += (len(text) // 8 + 1) * 8  # whole bytes, with at least one bit for the carry
        self._all_bits, self._bytes = all_bits, end // 8

    def lcs(self, words: Words) -> np.ndarray:
        """Return the int64 length for each of the other texts."""
        row = self._all_bits
        for word in words:
            matches = row & self._positions.get(word, 0)
            row = (row + matches | row - matches) & self._all_bits
        unmatched = (self._all_bits ^ row).to_bytes(self._bytes, "little")
        matched = np.bitwise_count(np.frombuffer(unmatched, dtype=np.uint8))
        return np.add.reduceat(matched, self._starts, dtype=np.int64)

    def mean_f1(self, words: Words) -> float:
        """Return the mean F1 score of ROUGE-L with the other texts, in [0, 1]."""
        totals = np.maximum(self.lengths + len(words), 1)
        return float((2 * self.lcs(words) / totals).mean())


def lcs_lengths(
    answers: Collection[Words], others: Collection[Words]
) -> dict[Words, dict[Words, int]]:
    """Compute the length of the longest common subsequence of each answer and each other text."""
    texts = list(dict.fromkeys(others))
    overlap = Overlap(texts)
    return {
        answer: dict(zip(texts, overlap.lcs(answer).tolist(), strict=True)) for answer in answers
    }


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Compute the length of the longest common subsequence of two texts."""
    first, second = tuple(a), tuple(b)
    return lcs_lengths([first], [second])[first][second]
