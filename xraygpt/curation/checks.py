"""Checks that a rewritten report must pass before it is accepted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xraygpt.curation.rules import COMPARISON, MASK
from xraygpt.vocabulary.chest_labeller import Mention, mentions

MIN_RATIO, MAX_RATIO = 0.2, 1.5
"""Limits for the number of words in the result, divided by the number in the source."""
_STATUSES = {"positive": "affirmed", "negative": "denied", "uncertain": "doubted"}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:[\s-]*(mm|cm|%|th|st|nd|rd|degrees?)\b)?")


def rejection_reasons(
    source: str,
    result: str,
    *,
    priors: bool = False,
    findings: bool = True,
    complete: bool = True,
    max_ratio: float = MAX_RATIO,
) -> list[str]:
    """Return why a rewritten text is rejected, without report text; empty if accepted.

    Args:
        source: The findings and the impression of the report.
        result: The rewritten text.
        priors: Whether comparisons with earlier studies are allowed.
        findings: Whether to compare the findings with the source; False for questions.
        complete: Whether all findings that the source affirms and a similar length are required.
        max_ratio: Maximum number of words for each word in the source.
    """
    if not result.strip():
        return ["nothing is left"]
    reasons = []
    if MASK.search(result):
        reasons.append("a mask of de-identification is left")
    if not priors and COMPARISON.search(result):
        reasons.append("it compares with an earlier study")
    if findings:
        reasons += _changed_findings(source, result, complete)
    if _numbers(result) - _numbers(source):
        reasons.append("a number or unit that is not in the source")
    ratio = len(result.split()) / max(len(source.split()), 1)
    if complete and not MIN_RATIO <= ratio <= max_ratio:
        reasons.append(f"{ratio:.1f} times as many words as the source")
    return reasons


def _numbers(text: str) -> set[tuple[str, str]]:
    """Return all numbers in a text with their units."""
    return {(number, unit.lower()) for number, unit in _NUMBER.findall(text)}


def _changed_findings(source: str, result: str, complete: bool) -> list[str]:
    """Return which findings were added, lost, negated or moved to another side."""
    before, after = mentions(source), mentions(result)
    reasons = []
    for status, word in _STATUSES.items():
        findings_before, findings_after = (
            {m.finding for m in text_mentions if m.status == status}
            for text_mentions in (before, after)
        )
        lost, new = findings_before - findings_after, findings_after - findings_before
        # Denied findings may be omitted, but new denials and doubts are invented.
        if lost and status != "negative" and complete:
            reasons.append(f"no longer {word}: {', '.join(sorted(lost))}")
        if new:
            reasons.append(f"newly {word}: {', '.join(sorted(new))}")
    return reasons + _changed_sides(before, after, complete)


def _changed_sides(
    before: Sequence[Mention], after: Sequence[Mention], complete: bool
) -> list[str]:
    """Return which affirmed or denied findings changed or lost their side."""
    wrong, lost = set(), set()
    for status in ("positive", "negative"):
        sides_before, sides_after = _sides(before, status), _sides(after, status)
        for finding in sides_before.keys() & sides_after.keys():
            named, unspecified = sides_before[finding] - {None}, None in sides_before[finding]
            new = sides_after[finding] - {None} - named
            # "No effusion" denies an effusion on both sides; "an effusion" does not name a side.
            if new and not (unspecified and status == "negative"):
                wrong.add(finding)
            if complete and status == "positive" and named and sides_after[finding] == {None}:
                lost.add(finding)
    reasons = [f"another side: {', '.join(sorted(wrong))}"] if wrong else []
    return reasons + ([f"side no longer said: {', '.join(sorted(lost))}"] if lost else [])


def _sides(text_mentions: Sequence[Mention], status: str) -> dict[str, set[str | None]]:
    """Return a map from each finding mentioned with this status to its sides."""
    sides: dict[str, set[str | None]] = {}
    for mention in text_mentions:
        if mention.status == status:
            sides.setdefault(mention.finding, set()).add(mention.laterality)
    return sides


def wilson_interval(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Compute the 95 % interval of a proportion (Wilson 1927).

    Args:
        hits: Number of successes.
        count: Number of trials, at least 1.
        z: Quantile of the standard normal distribution.
    """
    rate, spread = hits / count, z * z / count
    middle = (rate + spread / 2) / (1 + spread)
    half = z * (rate * (1 - rate) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def count_reasons(reasons_per_text: Sequence[Sequence[str]]) -> dict[str, int]:
    """Count the texts rejected for each kind of reason, without the names of findings."""
    counts: dict[str, int] = {}
    for reasons in reasons_per_text:
        for kind in dict.fromkeys(reason.split(":")[0] for reason in reasons):
            kind = re.sub(r"[\d.]+ times", "x times", kind)
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: -item[1]))
