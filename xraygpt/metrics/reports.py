"""All scores of generated reports: words, findings, and whether they differ at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from xraygpt.metrics.statistics import Score, mean_score, ratio_score
from xraygpt.metrics.text import bleu_scores, rouge_scores
from xraygpt.vocabulary.chest_labeller import label
from xraygpt.vocabulary.chest_mesh import findings_of, is_coded

LABELLER = "xraygpt rule-based labeller, uncertain counts as positive"
MIN_SUPPORT = 8  # positives a finding needs for a line of its own
MIN_MACRO = 10  # and to count in the macro mean
NOT_MEANT = {"other_finding"}  # what no labeller can name


class Reader(Protocol):
    """What of a vocabulary is needed to compare findings."""

    def positive(self, text: str) -> set[str]:
        """Findings that a text affirms or suspects."""

    def is_coded(self, codes: Iterable[str]) -> bool:
        """Whether anybody coded the study."""

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """What codes mean."""


class ChestReader:
    """Chest X-rays, by the rule-based labeller and MeSH headings."""

    def positive(self, text: str) -> set[str]:
        """As `positive_findings`."""
        return positive_findings(text)

    def is_coded(self, codes: Iterable[str]) -> bool:
        """As `mesh.is_coded`."""
        return is_coded(codes)

    def findings_of(self, codes: Iterable[str]) -> set[str]:
        """As `mesh.findings_of`."""
        return set(findings_of(codes))


def report_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    codes: Sequence[Any],
    groups: Sequence[str] | None = None,
    vocabulary: Reader | None = None,
) -> list[Score]:
    """Scores of reports against their references and, where there is one, their human coding.

    Args:
        predictions: Generated reports.
        references: What was written.
        codes: Per sample a list of human codes (``Pleural Effusion/left``), or None.
        groups: Per sample its study, which intervals resample; None takes samples as independent.
        vocabulary: Reads findings in texts and codes; None are those of chest X-rays.
    """
    read = vocabulary or ChestReader()
    said = [read.positive(p) for p in predictions]
    scores = bleu_scores(predictions, references, groups)
    scores += rouge_scores(predictions, references, groups)
    scores += finding_scores(said, [read.positive(r) for r in references], "text", groups)
    coded = [i for i, c in enumerate(codes) if c and read.is_coded(c)]
    if coded:
        truth = [set(read.findings_of(codes[i])) for i in coded]
        own = [groups[i] for i in coded] if groups else None
        scores += finding_scores([said[i] for i in coded], truth, "coding", own)
    scores.append(_distinct(predictions, groups))
    return scores


def positive_findings(text: str) -> set[str]:
    """Findings a text affirms or suspects."""
    return {name for name, status in label(text).items() if status != "negative"}


def finding_scores(
    said: Sequence[set[str]],
    truth: Sequence[set[str]],
    against: str,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Precision, recall and F1: micro over all findings, micro without "no finding", and of each.

    Args:
        said: Findings of every prediction.
        truth: Findings of every reference.
        against: Where the truth comes from, part of the names: ``text`` or ``coding``.
        groups: See `report_scores`.
    """
    names = sorted({f for one in [*said, *truth] for f in one})
    counts = np.array([[_count(s, t, n) for n in names] for s, t in zip(said, truth, strict=True)])
    counts = counts.reshape(len(said), len(names), 3)  # true positives, said, true
    signature = f"{LABELLER}; truth from {against}"
    scores = _prf(f"findings_{against}", counts.sum(axis=1), signature, groups)
    abnormal = [i for i, n in enumerate(names) if n != "no_finding"]
    scores += _prf(f"abnormal_{against}", counts[:, abnormal].sum(axis=1), signature, groups)[2:]
    scores += _over_frequent(names, counts, against, signature, groups)
    for i, name in enumerate(names):
        if counts[:, i, 2].sum() >= MIN_SUPPORT:
            scores.append(ratio_score(f"F1_{against}/{name}", counts[:, i], _f1, signature, groups))
    return scores


def _over_frequent(
    names: Sequence[str],
    counts: np.ndarray,
    against: str,
    signature: str,
    groups: Sequence[str] | None,
) -> list[Score]:
    """Micro F1 and macro F1, the mean of each one's, over findings with `MIN_MACRO` positives."""
    often = [
        i
        for i, name in enumerate(names)
        if name not in NOT_MEANT and counts[:, i, 2].sum() >= MIN_MACRO
    ]
    if not often:
        return []
    about = f"{signature}; {len(often)} findings with at least {MIN_MACRO} positives"
    kept = counts[:, often]
    return [
        ratio_score(f"frequent_{against}_micro_F1", kept.sum(axis=1), _f1, about, groups),
        ratio_score(
            f"frequent_{against}_macro_F1", kept.reshape(len(kept), -1), _macro, about, groups
        ),
    ]


def _macro(sums: np.ndarray) -> float:
    return float(np.mean([_f1(one) for one in sums.reshape(-1, 3)]))


def _count(said: set[str], truth: set[str], name: str) -> tuple[int, int, int]:
    return int(name in said and name in truth), int(name in said), int(name in truth)


def _prf(
    name: str, counts: np.ndarray, signature: str, groups: Sequence[str] | None
) -> list[Score]:
    parts: dict[str, Callable[[np.ndarray], float]] = {
        "precision": lambda c: float(c[0] / max(c[1], 1)),
        "recall": lambda c: float(c[0] / max(c[2], 1)),
        "F1": _f1,
    }
    return [ratio_score(f"{name}_{p}", counts, r, signature, groups) for p, r in parts.items()]


def _f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / max(counts[1] + counts[2], 1))


def _distinct(predictions: Sequence[str], groups: Sequence[str] | None) -> Score:
    """Share of reports that no other sample got: 1 over how often each text occurs, averaged."""
    times: dict[str, int] = {}
    for text in predictions:
        times[text] = times.get(text, 0) + 1
    return mean_score("distinct", [1 / times[t] for t in predictions], "distinct texts / n", groups)
