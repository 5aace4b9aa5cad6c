"""Reports of phantoms against what was drawn: is each finding named, and on the right side?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xraygpt.metrics.statistics import Score, ratio_score
from xraygpt.phantom.findings import KINDS
from xraygpt.vocabulary.chest_labeller import mentions

SIGNATURE = "xraygpt rule-based labeller against the drawn findings"
# What the labeller calls a drawn finding, and words that tell it from others of that name.
_NAMES: dict[str, tuple[str, ...]] = {
    "nodule": ("lung_lesion",),
    "consolidation": ("consolidation", "lung_opacity"),
    "pacemaker": ("support_devices",),
}
_WORDS = {"pacemaker": re.compile(r"pace|generator|defibrillator", re.IGNORECASE)}


def drawn_in(text: str) -> dict[str, set[str]]:
    """Findings that a text affirms, by the name they are drawn under, each with the sides named.

    A side is ``left``, ``right``; ``bilateral`` counts as both.
    """
    found: dict[str, set[str]] = {}
    for mention in mentions(text):
        if mention.status == "negative":
            continue
        for name in KINDS:
            words = _WORDS.get(name)
            said = text[slice(*mention.span)]
            if mention.finding in _NAMES.get(name, (name,)) and (not words or words.search(said)):
                sides = found.setdefault(name, set())
                sides |= _both(mention.laterality) if KINDS[name].sides else set()
    return found


def _both(side: str | None) -> set[str]:
    return {"left", "right"} if side == "bilateral" else {side} if side else set()


def drawn_scores(
    predictions: Sequence[str],
    labels: Sequence[Sequence[Mapping[str, Any]]],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """F1 of each drawn finding and their mean, and how often a found one is on its side.

    Args:
        predictions: Generated reports.
        labels: Per sample what was drawn: ``{"name": "pneumothorax", "side": "left", …}``.
        groups: Per sample its study, which intervals resample.

    Returns:
        ``drawn_macro_F1`` (over findings drawn at least once), ``drawn_F1/<name>``, and
        ``drawn_laterality``: of drawn findings that have a side and are named in the text, the
        share where exactly that side is named; no side is wrong.
    """
    said = [drawn_in(p) for p in predictions]
    drawn = [_drawn(row) for row in labels]
    names = [n for n in KINDS if any(n in d for d in drawn)]
    counts = np.array(
        [[_count(s, d, n) for n in names] for s, d in zip(said, drawn, strict=True)], dtype=float
    ).reshape(len(said), len(names), 3)
    scores = [
        ratio_score(
            "drawn_macro_F1", counts.reshape(len(said), -1), _macro, f"{SIGNATURE}; macro", groups
        )
    ]
    for i, name in enumerate(names):
        scores.append(ratio_score(f"drawn_F1/{name}", counts[:, i], _f1, SIGNATURE, groups))
    sides = np.array([_sides(s, d) for s, d in zip(said, drawn, strict=True)], dtype=float)
    sides = sides.reshape(-1, 2)
    share = ratio_score("drawn_laterality", sides, _share, SIGNATURE, groups)
    return [*scores, replace(share, n=int((sides[:, 1] > 0).sum()))]


def _drawn(row: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for finding in row:
        sides = found.setdefault(str(finding["name"]), set())
        sides |= _both(str(finding["side"]))
    return found


def _count(
    said: dict[str, set[str]], drawn: dict[str, set[str]], name: str
) -> tuple[int, int, int]:
    return int(name in said and name in drawn), int(name in said), int(name in drawn)


def _sides(said: dict[str, set[str]], drawn: dict[str, set[str]]) -> tuple[int, int]:
    found = [name for name, sides in drawn.items() if sides and name in said]
    return sum(said[name] == drawn[name] for name in found), len(found)


def _f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / max(counts[1] + counts[2], 1))


def _macro(counts: np.ndarray) -> float:
    return float(np.mean([_f1(one) for one in counts.reshape(-1, 3)]))


def _share(counts: np.ndarray) -> float:
    return float(counts[0] / counts[1]) if counts[1] else float("nan")
