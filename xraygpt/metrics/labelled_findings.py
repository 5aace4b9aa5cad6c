"""Precision, recall and F1 of the rule-based labeller's findings, as plain numbers."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from xraygpt.vocabulary.chest_labeller import FINDINGS, Status, label

UncertainPolicy = Literal["positive", "negative", "ignore"]
Findings = str | Mapping[str, Status] | Collection[str]


class _Counts(NamedTuple):
    true_positives: int
    predicted: int
    support: int


class _Item(NamedTuple):
    """Findings of one report, and the findings for which the report is excluded."""

    positive: frozenset[str]
    ignored: frozenset[str]


def labelled_finding_scores(
    predictions: Sequence[Findings],
    references: Sequence[Findings],
    *,
    uncertain: UncertainPolicy = "positive",
    findings: Sequence[str] = FINDINGS,
    min_support: int = 1,
) -> dict[str, Any]:
    """Score the findings of predictions against those of references.

    Only affirmed findings count: a finding that is denied on both sides adds nothing.

    Args:
        predictions: For each report its text, its labels (as from `label`) or the set of its
            findings.
        references: The same for the references.
        uncertain: Whether an uncertain finding counts as positive or as negative, or whether the
            report is excluded for that finding ("ignore").
        findings: The findings to score.
        min_support: Findings with fewer references are excluded from the averages.

    Returns:
        ``findings`` (per finding ``precision``, ``recall``, ``f1``, ``support`` and ``predicted``),
        ``micro`` (the same over all counts), ``macro`` (unweighted means), ``averaged`` (the names
        included in the averages) and ``n`` (reports).

    Raises:
        ValueError: The two sequences differ in length.
    """
    if len(predictions) != len(references):
        raise ValueError(f"got {len(predictions)} predictions for {len(references)} references")
    pairs = [
        (_parse_item(prediction, uncertain), _parse_item(reference, uncertain))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    counts = {name: _count(pairs, name) for name in findings}
    scores = {name: _rates(count) for name, count in counts.items()}
    averaged = [name for name in findings if counts[name].support >= min_support]
    totals = _Counts(*(sum(counts[name][i] for name in averaged) for i in range(3)))
    return {
        "findings": scores,
        "micro": _rates(totals),
        "macro": _macro_average([scores[name] for name in averaged]),
        "averaged": averaged,
        "n": len(pairs),
    }


def _parse_item(item: Findings, uncertain: UncertainPolicy) -> _Item:
    if isinstance(item, str):
        item = label(item)
    if not isinstance(item, Mapping):
        return _Item(frozenset(item), frozenset())
    doubted = frozenset(name for name, status in item.items() if status == "uncertain")
    positive = frozenset(name for name, status in item.items() if status == "positive")
    if uncertain == "positive":
        return _Item(positive | doubted, frozenset())
    return _Item(positive, doubted if uncertain == "ignore" else frozenset())


def _count(pairs: Sequence[tuple[_Item, _Item]], name: str) -> _Counts:
    labels = [
        (name in prediction.positive, name in reference.positive)
        for prediction, reference in pairs
        if name not in prediction.ignored and name not in reference.ignored
    ]
    return _Counts(
        sum(predicted and present for predicted, present in labels),
        sum(predicted for predicted, _ in labels),
        sum(present for _, present in labels),
    )


def _rates(counts: _Counts) -> dict[str, float]:
    """Compute precision, recall and F1, which are 0 where they are undefined."""
    true_positives, predicted, support = counts
    return {
        "precision": true_positives / predicted if predicted else 0.0,
        "recall": true_positives / support if support else 0.0,
        "f1": 2 * true_positives / (predicted + support) if predicted + support else 0.0,
        "support": support,
        "predicted": predicted,
    }


def _macro_average(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {
        rate: sum(score[rate] for score in scores) / len(scores) if scores else 0.0
        for rate in ("precision", "recall", "f1")
    }
