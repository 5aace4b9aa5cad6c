"""Boxes in the text of an answer, in any of the spellings, with what was repaired or dropped."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from xraygpt.boxes.spelling import SPELLINGS, Size, Spelling, get_spelling
from xraygpt.media.geometry import Box

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)*|\.\d+)%?"
_SEPARATOR = r"\s*[,;]?\s*"
_LIST = rf"{_NUMBER}(?:{_SEPARATOR}{_NUMBER})*"
# In the order of the alternatives: tokens of PaliGemma, tokens of MAIRA-2, two points, a list.
_FOUND = re.compile(
    r"(?P<loc>(?:<loc\d{1,4}>\s*){4})"
    r"|<box>\s*(?P<maira>(?:<[xy]\d{1,3}>\s*)+)(?:</box>)?"
    rf"|[\[(]?\s*\(\s*(?P<first>{_NUMBER}{_SEPARATOR}{_NUMBER})\s*\)\s*,?\s*"
    rf"\(\s*(?P<second>{_NUMBER}{_SEPARATOR}{_NUMBER})\s*\)\s*[\])]?"
    rf"|[\[(<{{]\s*(?P<list>{_NUMBER}(?:\s*[,;]\s*{_NUMBER}|\s+{_NUMBER}){{1,7}})\s*,?\s*[\])>}}]"
)
_LABEL = re.compile(r"""["']label["']\s*:\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)')""")
_REFERENCE = re.compile(r"<\|?(?:object_ref_start|ref)\|?>([^<]*)<\|?(?:object_ref_end|/ref)\|?>")
_CLOSE_TO_ONE = 1.05  # fractions up to here are cut at the border; larger numbers are no fractions


class FoundBox(NamedTuple):
    """A box in a text.

    Attributes:
        box: Normalised to the original image.
        start: Where its text starts.
        end: Where its text ends.
        label: The label that belongs to it, or "".
    """

    box: Box
    start: int
    end: int
    label: str = ""


@dataclass(frozen=True)
class ParsedBoxes:
    """The boxes in a text.

    Attributes:
        found: The boxes in the order of the text.
        repaired: What was changed, such as "corners swapped: [0.5, 0.1, 0.2, 0.4]".
        dropped: What looks like a box but is none, with the reason.
    """

    found: list[FoundBox] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)

    @property
    def boxes(self) -> list[Box]:
        """The boxes without their places."""
        return [each.box for each in self.found]


def parse_boxes(text: str, spelling: str, size: Size | None = None) -> ParsedBoxes:
    """Read the boxes in a text.

    Tokens and tags say their own spelling. For plain numbers, `spelling` says what they mean,
    unless they cannot mean that: fractions where thousandths or pixels are expected, and numbers
    above 100 where fractions are expected, are read as what they are, and reported.

    Args:
        text: An answer.
        spelling: The spelling that the model was trained with; a key of `SPELLINGS`.
        size: Height and width of the image that the tower reads, for pixels.

    Raises:
        InputError: The spelling is unknown, or the size is missing.
    """
    expected = get_spelling(spelling)
    expected.scales(size)
    result = ParsedBoxes()
    plain = [_plain_numbers(match) for match in _FOUND.finditer(text)]
    largest = max((max(map(abs, numbers)) for numbers, _ in plain if numbers), default=0.0)
    for match, (numbers, broken) in zip(_FOUND.finditer(text), plain, strict=True):
        shown = " ".join(match[0].split())
        if broken:
            result.repaired.append(f"malformed number repaired: {shown}")
        form: Spelling | str
        if match["loc"] or match["maira"]:
            form, numbers = _tokens(match)
        else:
            form = _meaning(numbers, expected, largest)
        if len(numbers) != 4:
            # Two numbers in brackets are often no box: "(2, 3)".
            if len(numbers) > 2 or match["maira"]:
                result.dropped.append(f"{len(numbers)} numbers instead of 4: {shown}")
            continue
        if isinstance(form, str):
            result.dropped.append(f"{form}: {shown}")
            continue
        if form is not expected and not (match["loc"] or match["maira"]):
            result.repaired.append(f"read as {form.name}: {shown}")
        box = _normalise(numbers, form, size, shown, result)
        if box is not None:
            label = _label(text, match.start(), match.end())
            result.found.append(FoundBox(box, match.start(), match.end(), label))
    return result


def _plain_numbers(match: re.Match[str]) -> tuple[list[float], bool]:
    """Return the numbers of a match without tokens, and whether one of them was damaged."""
    inner = match["list"] or " ".join(filter(None, (match["first"], match["second"])))
    numbers, broken = [], False
    for text in re.findall(_NUMBER, inner or ""):
        whole, _, tail = text.rstrip("%").partition(".")
        digits, extra, _ = tail.partition(".")
        broken |= bool(extra)
        value = float(f"{whole}.{digits}0")
        numbers.append(value / 100 if text.endswith("%") else value)
    return numbers, broken


def _tokens(match: re.Match[str]) -> tuple[Spelling, list[float]]:
    """Return the spelling of tokens, and their numbers as x_min, y_min, x_max, y_max."""
    numbers = [float(number) for number in re.findall(r"\d+", match["loc"] or match["maira"])]
    if match["loc"]:
        y_min, x_min, y_max, x_max = numbers
        return SPELLINGS["loc"], [x_min, y_min, x_max, y_max]
    return SPELLINGS["maira"], numbers


def _meaning(numbers: list[float], expected: Spelling, largest: float) -> Spelling | str:
    """Return the spelling of plain numbers, or why it is unknown."""
    highest = max((abs(number) for number in numbers), default=0.0)
    fractions = highest <= _CLOSE_TO_ONE and any(number % 1 for number in numbers)
    if expected.steps == 1:
        if highest <= _CLOSE_TO_ONE:
            return expected
        # Whole numbers up to 100 may be hundredths or thousandths.
        if 100 < largest <= 1000:
            return SPELLINGS["thousand"]
        return "not fractions"
    if fractions:
        return SPELLINGS["unit"]
    return expected


def _normalise(
    numbers: list[float], form: Spelling, size: Size | None, shown: str, result: ParsedBoxes
) -> Box | None:
    """Return the box, corners swapped if needed and cut at the borders; None if it is empty."""
    width, height = form.scales(size)
    x = _edges(numbers[0], numbers[2], width, form)
    y = _edges(numbers[1], numbers[3], height, form)
    if x[0] > x[1] or y[0] > y[1]:
        x, y = (min(x), max(x)), (min(y), max(y))
        result.repaired.append(f"corners swapped: {shown}")
    cut_x, cut_y = _cut(x), _cut(y)
    if cut_x[0] >= cut_x[1] or cut_y[0] >= cut_y[1]:
        outside = "outside the image" if x[0] < x[1] and y[0] < y[1] else "no area"
        result.dropped.append(f"{outside}: {shown}")
        return None
    if (cut_x, cut_y) != (x, y):
        result.repaired.append(f"cut at the border: {shown}")
    return cut_x[0], cut_y[0], cut_x[1], cut_y[1]


def _edges(first: float, second: float, scale: float, form: Spelling) -> tuple[float, float]:
    middle = 0.5 if form.binned else 0.0
    return (first + middle) / scale, (second + middle) / scale


def _cut(edges: tuple[float, float]) -> tuple[float, float]:
    return min(max(edges[0], 0.0), 1.0), min(max(edges[1], 0.0), 1.0)


def _label(text: str, start: int, end: int) -> str:
    """Return the label in the JSON object around a box, or the reference right before its tag."""
    opening, closing = text.rfind("{", 0, start), text.find("}", end)
    if opening >= 0 and closing >= 0 and "}" not in text[opening:start]:
        found = _LABEL.search(text, opening, closing)
        if found:
            return (found[1] or found[2] or "").replace('\\"', '"')
    before = list(_REFERENCE.finditer(text, 0, start))
    if before and re.fullmatch(r"\s*(?:<[^>]*>\s*)?", text[before[-1].end() : start]):
        return before[-1][1].strip()
    return ""
