"""Sentences of an echocardiogram report, with their headings and without statements on the past."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from xraygpt.vocabulary.echo_rules import GRADE, echo_rules, spaced

_ALIKE = str.maketrans(
    {"\u2013": "-", "\u2014": "-", "\u2212": "-", "\u2019": "'", "\u00a0": " ", "\t": " "}
)
_END = re.compile(r"[.!?](?=\s|$)(?<!vs\.)(?<!approx\.)(?<!e\.g\.)(?<!i\.e\.)|\n(?=\s*\n)|\n")
_OTHER_HEADING = re.compile(r"\s*(?:[-*\u2022]|\d+[.)])?\s*([a-z][a-z /&()-]{1,40}):")

_QUANTITY = re.compile(
    r"\b(?:ef|lvef|ejection|rvsp|pasp|spap|pressures?|velocity|gradient|area|diameter|index|lavi|ava)\b"
)

_STUDY = "(?:(?:the|a|an|her|his) )?(?:prior|previous|last|earlier|outside)(?: (?:tte|tee))?(?: (?:study|studies|exam\\w*|echo\\w*|report|tte|tee|imaging))"  # noqa: E501
_DATE = r"(?:,? ?(?:(?:of|from|dated|on|in|performed|done) )+[\d/.\-]{0,8}(?:[a-z]{3,9} )?[\d/.\-]{1,8}\d)?"  # noqa: E501
_AMOUNT = rf"(?:(?:{GRADE})(?:[\s-]*(?:to|or|/|-)[\s-]*(?:{GRADE}))?|\d[\d.]{{0,4}}(?: ?- ?\d[\d.]{{0,4}})? ?(?:%|mm ?hg|percent|cm|mm)?)"  # noqa: E501
_LINK = "(?:(?:reported|noted|seen|described|estimated|graded|measured|was|were|at|as|of|about) )*"
# What is said of another day, in parts of a sentence; a part is replaced by spaces.
_PAST = [
    re.compile(spaced(pattern))
    for pattern in (
        rf"{_STUDY}{_DATE} (?:showed|demonstrated|reported|revealed|described|noted|had|with|was|were)[^.;]*?(?=[.;]|,? ?(?:now|currently|today)|$)",  # noqa: E501
        rf"^ ?(?:on|in|at|by) {_STUDY}{_DATE},[^.;]*?(?=[.;]|(?:now|currently|today)|$)",
        rf"(?:compared|in comparison|relative) (?:to|with) (?:an? |the )?(?:(?:lvef|ef|rvsp|pasp) )?(?:of )?{_AMOUNT}(?: (?:previously|before|on {_STUDY}{_DATE}))?",  # noqa: E501
        rf"(?:compared|in comparison|relative) (?:to|with) {_STUDY}{_DATE}",
        rf"(?:previously|formerly|earlier|before that),? {_LINK}{_AMOUNT}",
        rf"(?:prior|previous|earlier|old) (?:lvef|ef|rvsp|pasp|ejection fraction) {_LINK}{_AMOUNT}",
        rf"(?:was|were|had been|of|which was) {_AMOUNT},? (?:previously|before|earlier|(?:on|in|at|by) {_STUDY}{_DATE}|in (?:19|20)\d\d)",  # noqa: E501
        rf"{_AMOUNT},? (?:previously|(?:on|in|at|by) {_STUDY}{_DATE}|in (?:19|20)\d\d)",
        rf"from {_AMOUNT} (?=to {_AMOUNT})",
        rf"(?:was|had been) (?:previously )?{_AMOUNT}(?=[),]? ?(?:and|but)? ?(?:is )?now)",
        r"\((?:was|were|previously|prior|before)[^)]*\)",
        r"(?:history|h/o|hx) of [^.;,]*",
        r"(?:previously|formerly) (?:dilated|enlarged|reduced|depressed|normal)",
    )
]
_DEVICE = re.compile(r"pace|tav[ri]|clip|impella|icd|defib|transcatheter")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report.

    Attributes:
        text: The sentence in lower case, with the same offsets as `original`; parts on the past
            are replaced by spaces.
        original: The sentence as written.
        start: Offset in the report.
        heading: Structure of the section, ``other`` or empty.
        has_past: Whether a part of it was about the past.
    """

    text: str
    original: str
    start: int
    heading: str
    has_past: bool

    @property
    def span(self) -> tuple[int, int]:
        """Start and end in the report, without surrounding white space."""
        left = len(self.original) - len(self.original.lstrip())
        return self.start + left, self.start + len(self.original.rstrip())


def normalise(text: str) -> str:
    """Convert to lower case and unify dashes, quotes and spaces without changing any offset."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(c.lower() if len(c.lower()) == 1 else c for c in text)
    return lower.replace("\r", " ").translate(_ALIKE)


def sentences(report: str) -> Iterator[Sentence]:
    """Yield the sentences of a report that describe this study.

    Sections such as the indication and the comparison are skipped.
    """
    heading = ""
    for start, end in _split(report):
        text = normalise(report[start:end]).replace("\n", " ")
        found = echo_rules().headings.match(text)
        other = None if found else _OTHER_HEADING.match(text)
        if found:
            heading = found.lastgroup or ""
            start, text = start + found.end(), text[found.end() :]
        elif other and not _says_something(other[1]):
            heading = "other"
            start, text = start + other.end(), text[other.end() :]
        if heading == "skip" or not text.strip():
            continue
        current = _without_past(text)
        yield Sentence(current, report[start:end], start, heading, current != text)


def _says_something(label: str) -> bool:
    """Return whether the words before a colon belong to a statement: "mitral regurgitation:"."""
    return bool(echo_rules().pattern.search(label) or _QUANTITY.search(label))


def _split(report: str) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each sentence; a line that continues a sentence is no new one."""
    start = 0
    for match in _END.finditer(report):
        if match[0] == "\n":
            following = report[match.end() :].lstrip(" ")[:1]
            if following and (following.islower() or following.isdigit()):
                rest = report[match.end() :]
                if not re.match(r" *\d+[.)] ", rest) and not _OTHER_HEADING.match(rest):
                    continue
        if report[start : match.end()].strip():
            yield start, match.end()
        start = match.end()
    if report[start:].strip():
        yield start, len(report)


def _without_past(text: str) -> str:
    """Replace what is said of another day by spaces; devices that were implanted are kept."""
    for pattern in _PAST:
        text = pattern.sub(_blank, text)
    return text


def _blank(match: re.Match[str]) -> str:
    return match[0] if _DEVICE.search(match[0]) else " " * len(match[0])
