"""CRIMSON: findings weighted by their clinical significance, from a judge's lists.

A judge lists the findings of both reports with their significance, which match, which are missing
or false, and what is wrong with matched ones. `crimson_score` turns the lists into a number, with
the weights and formulas of the authors' package (arXiv:2603.06183), as which it gives the same
numbers (crimson-score 0.2.0). The share of missed urgent findings belongs beside it: a missed
urgent finding alone scores 0, above a harmless false finding in a normal study (-0.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SIGNIFICANCE = {
    "urgent": 1.0, "actionable_not_urgent": 0.5, "not_actionable_not_urgent": 0.25,
    "benign_expected": 0.0,
}  # fmt: skip
SEVERITY = {"significant": 0.5, "negligible": 0.0}
ATTRIBUTES = (
    "location", "severity", "descriptor", "measurement", "certainty", "unspecific",
    "overinterpretation", "temporal",
)  # fmt: skip
Lists = Mapping[str, Any]


def crimson_score(lists: Lists) -> float:
    """Compute CRIMSON from a judge's lists, in (-1, 1].

    Args:
        lists: ``reference_findings`` and ``predicted_findings``: ``{id, clinical_significance}``;
            ``matched_findings``: ``{ref_id, pred_id}``; ``errors`` with ``false_findings`` and
            ``missing_findings`` (ids) and ``attribute_errors``: ``{ref_id, severity}``.
    """
    reference = _weights(lists["reference_findings"])
    predicted = _weights(lists["predicted_findings"])
    errors = lists["errors"]
    false = sum(predicted.get(name, 0.0) for name in errors["false_findings"])
    missing = sum(reference.get(name, 0.0) for name in errors["missing_findings"])
    correct = _correct(lists["matched_findings"], reference, errors["attribute_errors"])
    total = sum(reference.values())
    if not reference:
        total = len(lists["matched_findings"]) + missing
    if total == 0:
        share = 1.0 if false == 0 and missing == 0 else -1.0
    else:
        share = (correct - false) / total
    if share >= 0:
        return share
    excess = false - correct
    return -excess / (1 + excess) if excess > 0 else 0.0


def _weights(findings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {f["id"]: SIGNIFICANCE[f["clinical_significance"]] for f in findings}


def _correct(
    matched: Sequence[Mapping[str, Any]],
    reference: Mapping[str, float],
    attribute_errors: Sequence[Mapping[str, Any]],
) -> float:
    """Sum the weights of matched findings; errors in their attributes reduce the credit."""
    total = 0.0
    for name in dict.fromkeys(pair["ref_id"] for pair in matched):
        weight = reference.get(name, 0.0)
        wrong = [SEVERITY[e["severity"]] for e in attribute_errors if e["ref_id"] == name]
        below = weight + sum(wrong)
        if wrong and below > 0:
            weight *= weight / below
        total += weight
    return total


def urgent_findings(lists: Lists) -> tuple[int, int]:
    """Return how many urgent findings of the reference are missing, and how many there are."""
    urgent = {
        f["id"] for f in lists["reference_findings"] if f["clinical_significance"] == "urgent"
    }
    return len(urgent & set(lists["errors"]["missing_findings"])), len(urgent)


def list_problems(lists: Lists) -> list[str]:
    """Return what contradicts itself in a judge's lists; empty if nothing does."""
    known = {
        side: [f["id"] for f in lists[f"{side}_findings"]] for side in ("reference", "predicted")
    }
    errors = lists["errors"]
    used = {
        "reference": [
            *errors["missing_findings"],
            *(m["ref_id"] for m in lists["matched_findings"]),
        ],
        "predicted": [
            *errors["false_findings"],
            *(m["pred_id"] for m in lists["matched_findings"]),
        ],
    }
    problems = []
    for side, names in known.items():
        if len(set(names)) < len(names):
            problems.append(f"an id of {side}_findings occurs twice")
        if not set(used[side]) <= set(names):
            problems.append(f"an id is not in {side}_findings")
        if not set(names) <= set(used[side]):
            problems.append(f"a finding of {side}_findings is neither matched nor an error")
    matched = {m["ref_id"] for m in lists["matched_findings"]}
    if matched & set(errors["missing_findings"]):
        problems.append("a finding is both matched and missing")
    if not {e["ref_id"] for e in errors["attribute_errors"]} <= matched:
        problems.append("an attribute error of a finding that is not matched")
    return problems
