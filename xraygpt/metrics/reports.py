"""All scores for generated reports: word overlap, findings, and how many texts are distinct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from xraygpt.metrics.statistics import (
    Score,
    f1_of_sums,
    macro_ratio,
    mean_score,
    ratio_score,
    share_of_sums,
)
from xraygpt.metrics.text import bleu_scores, rouge_scores
from xraygpt.vocabulary.chest_labeller import label
from xraygpt.vocabulary.chest_mesh import findings_of, is_coded

LABELLER = "xraygpt rule-based labeller, uncertain counts as positive"
MIN_SUPPORT = 8  # positives a finding needs for its own score
MIN_MACRO_SUPPORT = 10  # positives a finding needs to be part of the macro mean
EXCLUDED_FROM_MACRO = {"other_finding"}  # a code only: the labeller has no name for it


class FindingReader(Protocol):
    """The part of a vocabulary that is needed to compare findings."""

    def positive(self, text: str) -> set[str]:
        """Return the findings that a text affirms or suspects."""

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Return whether the study was coded by a person."""

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """Return the findings that codes stand for."""


class ChestReader:
    """Reads the findings of chest X-rays with the rule-based labeller and from MeSH headings."""

    def positive(self, text: str) -> set[str]:
        """Return the findings that the rule-based labeller reads as affirmed or suspected."""
        return positive_findings(text)

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Return whether there is any code other than "No Indexing"."""
        return is_coded(codes)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """Return the findings that MeSH headings stand for."""
        return set(findings_of(codes))


def report_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    codes: Sequence[Any],
    groups: Sequence[str] | None = None,
    vocabulary: FindingReader | None = None,
) -> list[Score]:
    """Score reports against their references and against human codes, where there are any.

    Args:
        predictions: Generated reports.
        references: Reference reports.
        codes: Per sample a list of human codes (``Pleural Effusion/left``), or None.
        groups: The study of each sample; intervals resample whole studies. None treats samples as
            independent.
        vocabulary: Reads findings from texts and codes; None means chest X-rays.
    """
    reader = vocabulary or ChestReader()
    predicted = [reader.positive(p) for p in predictions]
    scores = bleu_scores(predictions, references, groups)
    scores += rouge_scores(predictions, references, groups)
    scores += finding_scores(predicted, [reader.positive(r) for r in references], "text", groups)
    coded = [i for i, c in enumerate(codes) if c and reader.is_coded(c)]
    if coded:
        coded_findings = [set(reader.findings_of(codes[i])) for i in coded]
        coded_groups = [groups[i] for i in coded] if groups else None
        scores += finding_scores(
            [predicted[i] for i in coded], coded_findings, "coding", coded_groups
        )
    scores.append(_distinct_score(predictions, groups))
    return scores


def positive_findings(text: str) -> set[str]:
    """Return the findings that a text affirms or suspects."""
    return {name for name, status in label(text).items() if status != "negative"}


def finding_scores(
    predictions: Sequence[set[str]],
    references: Sequence[set[str]],
    source: str,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute precision, recall and F1 over all findings, F1 without "no finding" and per finding.

    Args:
        predictions: Findings of every prediction.
        references: Findings of every reference.
        source: Source of the references, which is part of the names: ``text`` or ``coding``.
        groups: See `report_scores`.
    """
    names = sorted({name for findings in [*predictions, *references] for name in findings})
    pairs = zip(predictions, references, strict=True)
    counts = np.array([[_count(p, r, name) for name in names] for p, r in pairs])
    counts = counts.reshape(len(predictions), len(names), 3)
    signature = f"{LABELLER}; truth from {source}"
    scores = _precision_recall_f1(f"findings_{source}", counts.sum(axis=1), signature, groups)
    abnormal = counts[:, [i for i, n in enumerate(names) if n != "no_finding"]].sum(axis=1)
    scores += _precision_recall_f1(f"abnormal_{source}", abnormal, signature, groups)[2:]
    scores += _frequent_scores(names, counts, source, signature, groups)
    for i, name in enumerate(names):
        if counts[:, i, 2].sum() >= MIN_SUPPORT:
            scores.append(
                ratio_score(f"F1_{source}/{name}", counts[:, i], f1_of_sums, signature, groups)
            )
    return scores


def missed_score(
    predictions: Sequence[set[str]],
    references: Sequence[set[str]],
    finding: str,
    groups: Sequence[str] | None = None,
) -> Score:
    """Compute the share of references with a finding whose prediction does not name it.

    Args:
        predictions: Findings of every prediction.
        references: Findings of every reference.
        finding: The finding.
        groups: See `report_scores`.
    """
    rows = [
        [finding in r and finding not in p, finding in r]
        for p, r in zip(predictions, references, strict=True)
    ]
    counts = np.array(rows, dtype=float).reshape(-1, 2)
    score = ratio_score(f"missed_{finding}", counts, share_of_sums, LABELLER, groups)
    return replace(score, n=int(counts[:, 1].sum()))


def _frequent_scores(
    names: Sequence[str],
    counts: np.ndarray,
    source: str,
    signature: str,
    groups: Sequence[str] | None,
) -> list[Score]:
    """Compute micro and macro F1 over findings with at least `MIN_MACRO_SUPPORT` positives."""
    frequent = [
        i
        for i, name in enumerate(names)
        if name not in EXCLUDED_FROM_MACRO and counts[:, i, 2].sum() >= MIN_MACRO_SUPPORT
    ]
    if not frequent:
        return []
    signature += f"; {len(frequent)} findings with at least {MIN_MACRO_SUPPORT} positives"
    micro = counts[:, frequent].sum(axis=1)
    macro = counts[:, frequent].reshape(len(counts), -1)
    return [
        ratio_score(f"frequent_{source}_micro_F1", micro, f1_of_sums, signature, groups),
        ratio_score(
            f"frequent_{source}_macro_F1", macro, macro_ratio(macro.sum(axis=0)), signature, groups
        ),
    ]


def _count(prediction: set[str], reference: set[str], name: str) -> tuple[int, int, int]:
    """Count the true positives, predicted positives and reference positives of one pair."""
    return (
        int(name in prediction and name in reference),
        int(name in prediction),
        int(name in reference),
    )


def _precision_recall_f1(
    name: str, counts: np.ndarray, signature: str, groups: Sequence[str] | None
) -> list[Score]:
    ratios: dict[str, Callable[[np.ndarray], float]] = {
        "precision": lambda c: float(c[0] / max(c[1], 1)),
        "recall": lambda c: float(c[0] / max(c[2], 1)),
        "F1": f1_of_sums,
    }
    return [ratio_score(f"{name}_{k}", counts, r, signature, groups) for k, r in ratios.items()]


def _distinct_score(predictions: Sequence[str], groups: Sequence[str] | None) -> Score:
    """Divide the number of distinct texts by n: the mean of 1 over the count of each text."""
    times = Counter(predictions)
    return mean_score("distinct", [1 / times[t] for t in predictions], "distinct texts / n", groups)
