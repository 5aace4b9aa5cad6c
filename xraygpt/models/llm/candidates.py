"""Selection among several sampled answers by minimum Bayes risk."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

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
    gains = []
    for i, (answer, extra) in enumerate(zip(answers, bonus, strict=True)):
        others = [other for j, other in enumerate(answers[first:], first) if i != j]
        total = sum(_rouge_l(answer, other) for other in others)
        gains.append(total / max(len(others), 1) + extra)
    return gains.index(max(gains))


def _rouge_l(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    """Compute F1 = 2 P R / (P + R), expressed in lengths."""
    return 2 * lcs_length(a, b) / max(len(a) + len(b), 1)


def lcs_length(a: Sequence[Hashable], b: Sequence[Hashable]) -> int:
    """Compute the length of the longest common subsequence, bit-parallel (Hyyrö 2004)."""
    positions: dict[Hashable, int] = {}
    for i, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << i
    row = all_bits = (1 << len(a)) - 1
    for token in b:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & all_bits
    return len(a) - row.bit_count()
