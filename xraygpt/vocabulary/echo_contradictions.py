"""Sentences of an echocardiogram report that cannot both be true."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from xraygpt.vocabulary.echo_rules import EJECTION_FRACTION, LV_FUNCTION, PULMONARY_PRESSURE
from xraygpt.vocabulary.traits import GRADES, Contradiction, TraitValue

#: Trait, value, and whether it holds for a part of the heart only.
Statement = tuple[str, TraitValue, bool]

# Ejection fractions in % for words of systolic function (Lang et al. 2015, table 4, for women and
# men: normal above 52, mildly reduced 41-53, moderately 30-40, severely below 30), widened by 5
# points on each side, because visual estimates are given in steps of 5.
_EF_BY_GRADE = {
    "none": (47.0, 100.0),
    "trace": (42.0, 100.0),
    "mild": (36.0, 58.0),
    "mild-moderate": (30.0, 58.0),
    "moderate": (25.0, 45.0),
    "moderate-severe": (15.0, 45.0),
    "severe": (0.0, 35.0),
}
_EF_REDUCED = (0.0, 58.0)  # "reduced", without a grade
_EF_TOLERANCE = 10.0  # % between two ejection fractions: variability of one examination
_PRESSURE_TOLERANCE = 15.0  # mmHg between two pressures
_FAR = 2  # steps of `GRADES` between two grades that contradict each other


def contradictions(
    statements: Sequence[Statement], names: Sequence[str]
) -> tuple[Contradiction, ...]:
    """Return the pairs of statements that contradict each other.

    Doubted statements contradict nothing. Statements about a part of the heart, such as one wall,
    contradict only each other's grade if both are about a part.

    Args:
        statements: All statements of a report.
        names: The traits to compare, in the order of the result.
    """
    found = [
        contradiction
        for name in names
        for contradiction in _within(name, [s for s in statements if s[0] == name])
    ]
    if EJECTION_FRACTION in names and LV_FUNCTION in names:
        found += _against_function(statements)
    unique = {(c.about, c.first, c.second): c for c in found}
    return tuple(unique.values())


def _within(name: str, statements: Sequence[Statement]) -> list[Contradiction]:
    """Return the contradictions between statements about one trait; the first pair of each."""
    firm = [s for s in statements if s[1].status != "uncertain"]
    found = []
    for (_, a, a_local), (_, b, b_local) in combinations(firm, 2):
        if a_local != b_local:
            continue
        reason = _conflict(name, a, b)
        if reason:
            about = EJECTION_FRACTION if name == LV_FUNCTION else name
            found.append(Contradiction(about, a.span, b.span, reason))
    return found


def _conflict(name: str, a: TraitValue, b: TraitValue) -> str:
    if a.bounds and b.bounds:
        gap = max(a.bounds[0], b.bounds[0]) - min(a.bounds[1], b.bounds[1])
        allowed = _PRESSURE_TOLERANCE if name == PULMONARY_PRESSURE else _EF_TOLERANCE
        return f"{_words(a)} and {_words(b)}" if gap > allowed else ""
    if (a.number is None) != (b.number is None):
        return ""
    if max(a.low, b.low) - min(a.high, b.high) >= _FAR:
        return f"{_words(a)} and {_words(b)}"
    return ""


def _against_function(statements: Sequence[Statement]) -> list[Contradiction]:
    """Compare ejection fractions with words such as "severely reduced systolic function"."""
    found = []
    values = [v for name, v, _ in statements if name == EJECTION_FRACTION and v.bounds]
    for name, words, _ in statements:
        if name != LV_FUNCTION or words.status == "uncertain":
            continue
        low, high = _EF_BY_GRADE[words.grade] if words.grade else _EF_REDUCED
        for value in values:
            assert value.bounds is not None
            if value.bounds[1] < low or value.bounds[0] > high:
                first, second = sorted((value.span, words.span))
                reason = f"an ejection fraction of {_words(value)} and function {_function(words)}"
                found.append(Contradiction(EJECTION_FRACTION, first, second, reason))
    return found


def _function(value: TraitValue) -> str:
    if value.status == "negative":
        return "called normal"
    return f"called reduced ({value.grade})" if value.grade else "called reduced"


def _words(value: TraitValue) -> str:
    if value.bounds is not None:
        low, high = value.bounds
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if value.status == "negative" and value.high == 0:
        return "none"
    if value.grade:
        return value.grade
    return "present" if value.high == len(GRADES) - 1 else f"at most {GRADES[value.high]}"
