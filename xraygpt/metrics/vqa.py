"""Accuracy of answers after normalising predictions and references."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xraygpt.metrics.statistics import Score, mean_score

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
SIGNATURE = "exact match; lower case, no articles, no punctuation"


def normalise(answer: str) -> str:
    """Return the answer in lower case without articles, punctuation and repeated spaces."""
    plain = re.sub(r"[^\w\s]", " ", answer.lower())
    return " ".join(_ARTICLES.sub(" ", plain).split())


def is_closed(answer_type: Any, reference: str) -> bool:
    """Return whether a question is closed, by the corpus's type or else by a yes/no reference."""
    if isinstance(answer_type, str) and answer_type.strip():
        return answer_type.strip().upper() == "CLOSED"
    return normalise(reference) in {"yes", "no"}


def vqa_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    answer_types: Sequence[Any],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute the accuracy over all, over closed and over open questions, each with its n.

    Args:
        predictions: Generated answers.
        references: Correct answers.
        answer_types: The type of each question in the corpus: CLOSED, OPEN, or None.
        groups: The image of each question; intervals resample whole images.
    """
    correct = [
        float(normalise(p) == normalise(r)) for p, r in zip(predictions, references, strict=True)
    ]
    closed = [is_closed(t, r) for t, r in zip(answer_types, references, strict=True)]
    subsets = {
        "accuracy": range(len(correct)),
        "accuracy_closed": [i for i, c in enumerate(closed) if c],
        "accuracy_open": [i for i, c in enumerate(closed) if not c],
    }
    return [
        mean_score(
            name,
            [correct[i] for i in rows],
            SIGNATURE,
            [groups[i] for i in rows] if groups else None,
        )
        for name, rows in subsets.items()
    ]
