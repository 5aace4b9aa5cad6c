"""What a rewritten report must keep and must not hold, before it is accepted."""

from __future__ import annotations

import re
from collections.abc import Sequence

from xraygpt.curation.rules import COMPARISON, MASK
from xraygpt.vocabulary.chest_labeller import Mention, mentions

MIN_RATIO, MAX_RATIO = 0.2, 1.5  # of words, result to source
_STATUSES = {"positive": "affirmed", "negative": "denied", "uncertain": "doubted"}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:[\s-]*(mm|cm|%|th|st|nd|rd|degrees?)\b)?")


def problems(
    source: str,
    result: str,
    *,
    priors: bool = False,
    findings: bool = True,
    complete: bool = True,
    max_ratio: float = MAX_RATIO,
) -> list[str]:
    """Why `result` cannot stand for `source`; empty if it can. No report text in the reasons.

    Args:
        source: Findings and impression as they were.
        result: The rewritten text.
        priors: Whether comparisons with earlier studies may stay.
        findings: Whether findings are held against the source; questions affirm nothing.
        complete: Whether all that is affirmed must be said again, at the length of a report.
        max_ratio: Most words for each word of the source.
    """
    if not result.strip():
        return ["nothing is left"]
    found = []
    if MASK.search(result):
        found.append("a mask of de-identification is left")
    if not priors and COMPARISON.search(result):
        found.append("it compares with an earlier study")
    if findings:
        found += _findings(source, result, complete)
    if _numbers(result) - _numbers(source):
        found.append("a number or unit that is not in the source")
    ratio = len(result.split()) / max(len(source.split()), 1)
    if complete and not MIN_RATIO <= ratio <= max_ratio:
        found.append(f"{ratio:.1f} times as many words as the source")
    return found


def _numbers(text: str) -> set[tuple[str, str]]:
    return {(number, unit.lower()) for number, unit in _NUMBER.findall(text)}


def _findings(source: str, result: str, complete: bool) -> list[str]:
    """Findings, their negation and their side, which a rewriting must not change."""
    then, now = mentions(source), mentions(result)
    found = []
    for status, word in _STATUSES.items():
        before, after = ({m.finding for m in said if m.status == status} for said in (then, now))
        lost, new = before - after, after - before
        # What was only denied may go unsaid; what is denied or doubted anew was made up.
        if lost and status != "negative" and complete:
            found.append(f"no longer {word}: {', '.join(sorted(lost))}")
        if new:
            found.append(f"newly {word}: {', '.join(sorted(new))}")
    return found + _other_sides(then, now, complete)


def _other_sides(then: Sequence[Mention], now: Sequence[Mention], complete: bool) -> list[str]:
    """Findings said of another side, affirmed or denied, and those that lost theirs."""
    wrong, lost = set(), set()
    for status in ("positive", "negative"):
        before, after = _sides(then, status), _sides(now, status)
        for finding in before.keys() & after.keys():
            named, plain = before[finding] - {None}, None in before[finding]
            new = after[finding] - {None} - named
            # "No effusion" denies it on each side; "an effusion" does not say which.
            if new and not (plain and status == "negative"):
                wrong.add(finding)
            if complete and status == "positive" and named and after[finding] == {None}:
                lost.add(finding)
    found = [f"another side: {', '.join(sorted(wrong))}"] if wrong else []
    return found + ([f"side no longer said: {', '.join(sorted(lost))}"] if lost else [])


def _sides(said: Sequence[Mention], status: str) -> dict[str, set[str | None]]:
    sides: dict[str, set[str | None]] = {}
    for mention in said:
        if mention.status == status:
            sides.setdefault(mention.finding, set()).add(mention.laterality)
    return sides


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927).

    Args:
        hits: Of `count`.
        count: At least 1.
        z: Quantile of the normal distribution.
    """
    share, spread = hits / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / count + spread / (4 * count)) ** 0.5 / (1 + spread)
    return middle - half, middle + half


def reasons_counted(reasons: Sequence[Sequence[str]]) -> dict[str, int]:
    """How many texts each kind of reason holds back; names of findings are left out."""
    counts: dict[str, int] = {}
    for each in reasons:
        for kind in {r.split(":")[0] for r in each}:
            kind = re.sub(r"[\d.]+ times", "x times", kind)
            counts[kind] = counts.get(kind, 0) + 1
    return dict(sorted(counts.items(), key=lambda c: -c[1]))
