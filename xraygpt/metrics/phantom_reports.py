"""Reports of phantoms against the drawn findings: is each named, and on the correct side?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xraygpt.metrics.statistics import (
    Score,
    f1_of_sums,
    macro_ratio,
    ratio_score,
    share_of_sums,
)
from xraygpt.phantom.findings import KINDS
from xraygpt.vocabulary.chest_labeller import mentions

SIGNATURE = "xraygpt rule-based labeller against the drawn findings"
# The labeller's names of a drawn finding, where they differ from the phantom's.
_LABELLER_NAMES: dict[str, tuple[str, ...]] = {
    "nodule": ("lung_lesion",),
    "consolidation": ("consolidation", "lung_opacity"),
    "pacemaker": ("support_devices",),
}
# Words that distinguish a drawn finding from others with the same labeller name.
_REQUIRED_WORDS = {"pacemaker": re.compile(r"pace|generator|defibrillator", re.IGNORECASE)}


def findings_in_text(text: str) -> dict[str, set[str]]:
    """Return the findings that a text affirms, by their phantom names, with the sides it names.

    A side is ``left`` or ``right``; ``bilateral`` counts as both.
    """
    findings: dict[str, set[str]] = {}
    for mention in mentions(text):
        if mention.status == "negative":
            continue
        for name, kind in KINDS.items():
            if mention.finding not in _LABELLER_NAMES.get(name, (name,)):
                continue
            required = _REQUIRED_WORDS.get(name)
            if required and not required.search(text[slice(*mention.span)]):
                continue
            sides = findings.setdefault(name, set())
            sides |= _split_sides(mention.laterality) if kind.sides else set()
    return findings


def _split_sides(side: str | None) -> set[str]:
    return {"left", "right"} if side == "bilateral" else {side} if side else set()


def phantom_report_scores(
    predictions: Sequence[str],
    labels: Sequence[Sequence[Mapping[str, Any]]],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute F1 of each drawn finding, their mean, and how often the text names the correct side.

    Args:
        predictions: Generated reports.
        labels: Per sample the drawn findings: ``{"name": "pneumothorax", "side": "left", …}``.
        groups: The study of each sample; intervals resample whole studies.

    Returns:
        ``drawn_macro_F1`` (over findings drawn at least once), ``drawn_F1/<name>``, and
        ``drawn_laterality``: among drawn findings that have a side and are named in the text, the
        fraction for which exactly that side is named; naming no side is wrong.
    """
    predicted = [findings_in_text(p) for p in predictions]
    drawn = [_sides_by_name(row) for row in labels]
    names = [n for n in KINDS if any(n in d for d in drawn)]
    n = len(predicted)
    pairs = list(zip(predicted, drawn, strict=True))
    counts = np.array(
        [[_count(p, d, name) for name in names] for p, d in pairs], dtype=float
    ).reshape(n, len(names), 3)
    macro = counts.reshape(n, -1)
    scores = [
        ratio_score(
            "drawn_macro_F1", macro, macro_ratio(macro.sum(axis=0)), f"{SIGNATURE}; macro", groups
        )
    ]
    for i, name in enumerate(names):
        scores.append(ratio_score(f"drawn_F1/{name}", counts[:, i], f1_of_sums, SIGNATURE, groups))
    sides = np.array([_count_sides(p, d) for p, d in pairs], dtype=float).reshape(-1, 2)
    laterality = ratio_score("drawn_laterality", sides, share_of_sums, SIGNATURE, groups)
    return [*scores, replace(laterality, n=int((sides[:, 1] > 0).sum()))]


def _sides_by_name(row: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    findings: dict[str, set[str]] = {}
    for finding in row:
        sides = findings.setdefault(str(finding["name"]), set())
        sides |= _split_sides(str(finding["side"]))
    return findings


def _count(
    predicted: dict[str, set[str]], drawn: dict[str, set[str]], name: str
) -> tuple[int, int, int]:
    """Count the true positives, predicted positives and drawn positives in one sample."""
    return int(name in predicted and name in drawn), int(name in predicted), int(name in drawn)


def _count_sides(predicted: dict[str, set[str]], drawn: dict[str, set[str]]) -> tuple[int, int]:
    """Count the named findings on the correct side, and the named findings that have a side."""
    named = [name for name, sides in drawn.items() if sides and name in predicted]
    return sum(predicted[name] == drawn[name] for name in named), len(named)
