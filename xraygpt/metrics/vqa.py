"""Accuracy of answers after both sides are normalised."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from xraygpt.metrics.statistics import Score, mean_score

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
SIGNATURE = "exact match; lower case, no articles, no punctuation"


def normalise(answer: str) -> str:
    """Lower case without articles, punctuation and doubled blanks."""
    plain = re.sub(r"[^\w\s]", " ", answer.lower())
    return " ".join(_ARTICLES.sub(" ", plain).split())


def is_closed(kind: Any, reference: str) -> bool:
    """Whether a question is closed: as the corpus says, else by an answer of yes or no."""
    if isinstance(kind, str) and kind.strip():
        return kind.strip().upper() == "CLOSED"
    return normalise(reference) in {"yes", "no"}


def vqa_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    kinds: Sequence[Any],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Accuracy over all, over closed and over open questions, each with its n.

    Args:
        predictions: Answers given.
        references: Answers wanted.
        kinds: Per question what the corpus calls it: CLOSED, OPEN, or None.
        groups: Per question its image, which intervals resample.
    """
    right = [
        float(normalise(p) == normalise(r)) for p, r in zip(predictions, references, strict=True)
    ]
    closed = [is_closed(k, r) for k, r in zip(kinds, references, strict=True)]
    chosen = {
        "accuracy": range(len(right)),
        "accuracy_closed": [i for i, c in enumerate(closed) if c],
        "accuracy_open": [i for i, c in enumerate(closed) if not c],
    }
    return [
        mean_score(
            name, [right[i] for i in rows], SIGNATURE, [groups[i] for i in rows] if groups else None
        )
        for name, rows in chosen.items()
    ]
