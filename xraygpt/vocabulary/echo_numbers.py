"""Numbers in sentences of echocardiogram reports, with their ranges and units."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from xraygpt.vocabulary.echo_rules import (
    EJECTION_FRACTION,
    PULMONARY_PRESSURE,
    Measure,
    echo_rules,
    whole_words,
)
from xraygpt.vocabulary.echo_sentences import Sentence
from xraygpt.vocabulary.traits import GRADES, Status, Trait, TraitValue

_NUMBER = r"\d{1,3}(?:\.\d{1,2})?"
_UNIT = (
    r"%|percent\b|per cent\b|mm ?hg\b|torr\b|cm ?(?:2|\u00b2|\^2)(?!\d)|m[lL]/m(?:2|\u00b2|\^2)|cm/s\w*|m/s\w*"  # noqa: E501
    r"|mm/m\w*|cm/m\w*|cm\b|mm\b|ml\b|bpm\b|-?chamber|-?ch\b|-?d\b|d\b|beats?\b|years?\b|-?year"
)
_UNDER = "<=?|\u2264|less than|under|below|at most|up to|no more than|not more than"
_OVER = ">=?|\u2265|greater than|more than|over|above|at least|exceeding|in excess of"
_PATTERN = re.compile(
    rf"(?<![\w.])(?:(?P<under>{_UNDER})|(?P<over>{_OVER})|(?P<between>between))?\s*"
    rf"(?P<first>{_NUMBER})(?![\d])(?:\s*(?P<unit1>{_UNIT}))?"
    rf"(?:\s*(?P<to>-|to|and|\+/-|\u00b1)\s*(?P<second>{_NUMBER})(?![\d]))?(?:/\d{{1,3}})?"
    rf"(?:\s*(?P<unit2>{_UNIT}))?"
)
_TERMS = {
    EJECTION_FRACTION: re.compile(
        whole_words(r"(?:(?:left ventricular|lv) )?(?:ejection fraction|ef)|lvef")
    ),
    PULMONARY_PRESSURE: re.compile(
        whole_words(
            r"rvsp|pasp|spap|(?:right ventricular|rv|pulmonary artery|pa|pulmonary arterial"
            r"|pulmonary)(?: peak)? systolic pressures?|(?:peak )?systolic (?:pulmonary artery|pa"
            r"|pulmonary arterial|pulmonary|right ventricular|rv) pressures?"
            r"|(?:pulmonary artery|pa|pulmonary arterial) pressures?"
        )
    ),
}
_UNITS = {EJECTION_FRACTION: "%", PULMONARY_PRESSURE: "mmhg"}
_OTHER_SIDE = re.compile(r"(?:right ventricular|right ventricle|\brv|3d rv|la|atrial) ?$")
_NOT_SYSTOLIC = re.compile(r"(?:mean|diastolic|end diastolic)(?: estimated)? ?$")
_OTHER_QUANTITY = re.compile(
    r"velocit|gradient|(?:right atrial|\bra|central venous) pressure|diameter|diastolic|fractional"
    r"|strain|stroke|global longitudinal|mean\b"
)
_MAX_GAP = 80  # characters between the name of a quantity and its number
_SCALES = {
    ("mm", "mm"): 1.0,
    ("mm", "cm"): 10.0,
    ("m/s", "m/s"): 1.0,
    ("m/s", "cm/s"): 0.01,
    ("ml/m2", "ml/m2"): 1.0,
    ("mmhg", "mmhg"): 1.0,
    ("cm2", "cm2"): 1.0,
}


@dataclass(frozen=True)
class Number:
    """A number or a range with its unit; `low` or `high` is None for "less than" and "more than".

    Attributes:
        start: Offset in the sentence.
        end: End in the sentence.
        low: Lower limit.
        high: Upper limit.
        unit: Unit in lower case, such as ``mmhg``; empty if there is none.
    """

    start: int
    end: int
    low: float | None
    high: float | None
    unit: str

    @property
    def value(self) -> float:
        """The midpoint of a range, or the one limit that is given."""
        limits = [x for x in (self.low, self.high) if x is not None]
        return sum(limits) / len(limits)


def numbers(text: str) -> Iterator[Number]:
    """Yield the numbers and ranges of a sentence in lower case."""
    for match in _PATTERN.finditer(text):
        unit = _unit(match["unit2"] or match["unit1"] or "")
        first, low, high = float(match["first"]), None, None
        end = match.end()
        if match["under"]:
            high = first
        elif match["over"]:
            low = first
        else:
            low = high = first
        second = match["second"]
        if second and match["to"] in {"+/-", "\u00b1"}:
            low, high = first - float(second), first + float(second)
        elif second and (match["to"] != "and" or match["between"]):
            low, high = sorted((first, float(second)))
        elif second:  # "3 and 4": only the first number
            end, unit = match.end("first"), _unit(match["unit1"] or "")
        yield Number(match.start("first"), end, low, high, unit)


def _unit(text: str) -> str:
    plain = text.lower().replace(" ", "").replace("\u00b2", "2").replace("^2", "2")
    if plain.startswith("per"):
        return "%"
    for prefix in ("cm/s", "m/s"):
        if plain.startswith(prefix):
            return prefix
    return "mmhg" if plain == "torr" else plain


def number_values(sentence: Sentence, traits: dict[str, Trait]) -> Iterator[tuple[str, TraitValue]]:
    """Yield the number traits that a sentence states.

    Args:
        sentence: The sentence.
        traits: Number traits by name.
    """
    found = list(numbers(sentence.text))
    if not found:
        return
    for name, pattern in _TERMS.items():
        for term in pattern.finditer(sentence.text):
            if _is_other_quantity(name, term, sentence):
                continue
            number = _value_of(name, term, sentence.text, found)
            value = number and _as_value(number, traits[name], sentence)
            if value:
                yield name, value
                break


def _is_other_quantity(name: str, term: re.Match[str], sentence: Sentence) -> bool:
    """Return whether a term is about the other ventricle, or about a mean pressure."""
    before = sentence.text[: term.start()].rstrip(" -")
    if name == PULMONARY_PRESSURE:
        return bool(_NOT_SYSTOLIC.search(before))
    if term[0].startswith("l"):
        return False
    return bool(_OTHER_SIDE.search(before)) or sentence.heading == "right_ventricle"


def _value_of(name: str, term: re.Match[str], text: str, found: list[Number]) -> Number | None:
    """Return the first number after a term in its unit or without one, or one just before it."""
    for number in found:
        gap = text[term.end() : number.start]
        if number.start < term.end() or number.unit not in ("", _UNITS[name]):
            continue
        if len(gap) > _MAX_GAP or ";" in gap or _OTHER_QUANTITY.search(gap):
            break
        return number
    for number in found:
        gap = text[number.end : term.start()]
        if number.end <= term.start() and re.fullmatch(r"\s*(?:of |for (?:the )?|lv)?\s*", gap):
            return number if number.unit == _UNITS[name] else None
    return None


def _as_value(number: Number, trait: Trait, sentence: Sentence) -> TraitValue | None:
    """Return a trait's value; None if it is impossible. An EF of 0.6 is 60 %."""
    low, high = trait.limits
    is_share = trait.unit == "%" and number.unit == "" and number.value < 1
    scale = 100.0 if is_share else 1.0
    value = round(number.value * scale, 4)
    if not low <= value <= high:
        return None
    bounds = (
        low if number.low is None else max(low, round(number.low * scale, 4)),
        high if number.high is None else min(high, round(number.high * scale, 4)),
    )
    return TraitValue("positive", number=value, bounds=bounds, span=sentence.span)


def measured_grades(sentence: Sentence) -> Iterator[tuple[Measure, TraitValue]]:
    """Yield the grades that a sentence's measurements imply (`measures` in the YAML file)."""
    found = [n for n in numbers(sentence.text) if n.unit]
    for measure in echo_rules().measures if found else ():
        for term in measure.term.finditer(sentence.text):
            value = _measured(measure, term.end(), sentence.text, found)
            if value is not None:
                grade = GRADES.index(measure.grade(value))
                status: Status = "positive" if grade else "negative"
                yield measure, TraitValue(status, grade, grade, span=sentence.span)
                break


def _measured(measure: Measure, end: int, text: str, found: list[Number]) -> float | None:
    for number in found:
        scale = _SCALES.get((measure.unit, number.unit))
        gap = text[end : number.start]
        if number.start < end or scale is None or len(gap) > _MAX_GAP // 2 or ";" in gap:
            continue
        if re.search(r"gradient|velocity|area|diameter|index", gap) and measure.unit != "mm":
            continue
        value = number.value * scale
        low, high = measure.range
        return value if low <= value <= high else None
    return None
