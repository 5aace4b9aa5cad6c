"""Reports that are stored as phrases of a bank: a list of (section, phrase, value).

The bank is a JSON object of sections, each an object of groups with lists of phrases. A section's
groups are concatenated in order, and the numbers in a report count sections and phrases from 0. A
phrase may have slots, which the value fills. The bank is the user's own file.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from xraygpt.common.annotation_files import load_json
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError

UNKNOWN = "[?]"
"""Written where a slot has no value of its own."""
_MARK = re.compile(r"<[^<>\s]{1,40}>")


@dataclass(frozen=True)
class Slots:
    """How the slots of phrases are spelled.

    Attributes:
        number_slot: A slot for a number, such as ``<#>``.
        text_slots: Slots for text, such as ``<string>``.
        single_value: What to write if one value is given for a range of two slots. `once`:
            "between <#> and <#> mm" becomes "12 mm". `mark`: it becomes "between 12 and [?] mm".
    """

    number_slot: str = "<#>"
    text_slots: tuple[str, ...] = ("<string>",)
    single_value: Literal["once", "mark"] = "once"

    def __post_init__(self) -> None:
        with Checks(self) as check:
            for field, names in (
                ("number_slot", (self.number_slot,)),
                ("text_slots", self.text_slots),
            ):
                wrong = [name for name in names if not _MARK.fullmatch(name)]
                message = f"must be in angle brackets, such as <#>, got {', '.join(wrong)}"
                check.refuse(wrong, field, message)
            repeated = [name for name in self.names if self.names.count(name) > 1]
            message = f"must differ from each other and from number_slot, got {repeated}"
            check.refuse(repeated, "text_slots", message, "number_slot")

    @property
    def names(self) -> tuple[str, ...]:
        """All spellings of slots."""
        return (self.number_slot, *self.text_slots)


class PhraseBank:
    """Sections with their phrases.

    Args:
        path: The JSON file.
        slots: How slots are spelled.

    Raises:
        DataError: The file has another structure, or a mark that is no slot.
    """

    def __init__(self, path: Path, slots: Slots) -> None:
        self.slots = slots
        content = load_json(path)
        if not isinstance(content, dict) or not content:
            raise DataError(f"{path}: expected an object of sections")
        self.sections = [(name, list(_phrases(path, name, v))) for name, v in content.items()]
        slot = "|".join(map(re.escape, slots.names))
        self._slot = re.compile(slot)
        number = re.escape(slots.number_slot)
        self._range = re.compile(
            rf"(?:\b(?:between|from)\s+)?{number}\s*(?:\band\b|\bto\b|[-–—])\s*{number}", re.I
        )
        self._check_marks(path)

    def _check_marks(self, path: Path) -> None:
        texts = [text for _, phrases in self.sections for text in phrases]
        marks = Counter(mark for text in texts for mark in _MARK.findall(text))
        unknown = sorted(set(marks) - set(self.slots.names))
        if unknown:
            raise DataError(
                f"{path}: phrases contain the marks {', '.join(unknown)}, which are no slots; name "
                "all slots with --number-slot and --text-slots"
            )
        unused = [name for name in self.slots.names if not marks[name]]
        if unused and len(unused) == len(self.slots.names):
            raise DataError(
                f"{path}: no phrase contains a slot ({', '.join(unused)}); check the spelling, "
                "--number-slot and --text-slots"
            )

    def __len__(self) -> int:
        return sum(len(phrases) for _, phrases in self.sections)

    def decode(self, report: Any, counts: Counter[str]) -> str:
        """Return the text of a report: a line for each section, ``Name: phrase phrase``.

        Args:
            report: A list of (section, phrase, value).
            counts: Counter to which the uses of phrases and values are added.

        Raises:
            DataError: An entry is malformed, or names a section or phrase that does not exist, or
                has another number of values than its phrase has slots.
        """
        if not isinstance(report, list | tuple):
            raise DataError(f"expected a list of (section, phrase, value), got {report!r:.60}")
        lines: list[list[str]] = []
        current = None
        for entry in report:
            section, phrase, value = self._parse(entry)
            name, phrases = self.sections[section]
            if section != current:
                lines.append([f"{name}:"])
                current = section
            lines[-1].append(self._fill(phrases[phrase].strip(), value, counts))
            counts["phrases"] += 1
        return "\n".join(" ".join(line) for line in lines)

    def _parse(self, entry: Any) -> tuple[int, int, Any]:
        if not isinstance(entry, list | tuple) or len(entry) != 3:
            raise DataError(f"expected (section, phrase, value), got {entry!r:.60}")
        section, phrase, value = entry
        if not (_is_index(section) and _is_index(phrase)):
            raise DataError(f"the section and the phrase must be whole numbers, got {entry!r:.60}")
        if not 0 <= section < len(self.sections):
            raise DataError(f"there is no section {section}; the bank has {len(self.sections)}")
        name, phrases = self.sections[section]
        if not 0 <= phrase < len(phrases):
            raise DataError(f"there is no phrase {phrase} in {name}; it has {len(phrases)}")
        return section, phrase, value

    def _fill(self, phrase: str, value: Any, counts: Counter[str]) -> str:
        """Return a phrase with its slots filled."""
        slots = len(self._slot.findall(phrase))
        values = _values(value)
        if not slots:
            counts["values without a slot"] += bool(values)
            return phrase
        if not values:
            counts["slots without a value"] += slots
            return self._slot.sub(UNKNOWN, phrase)
        if len(values) == 1 and slots > 1:
            counts["one value for several slots"] += 1
            return self._fill_single(phrase, values[0])
        if len(values) != slots:
            raise DataError(f"{len(values)} values for a phrase with {slots} slots: {values}")
        counts["filled slots"] += slots
        return self._fill_in_order(phrase, values)

    def _fill_single(self, phrase: str, value: str) -> str:
        """Return a phrase with several slots, for which there is one value, never repeating it."""
        if self.slots.single_value == "once":
            phrase = self._range.sub(self.slots.number_slot, phrase, count=1)
        return self._fill_in_order(phrase, [value])

    def _fill_in_order(self, phrase: str, values: Sequence[str]) -> str:
        remaining = iter(values)
        return self._slot.sub(lambda _: next(remaining, UNKNOWN), phrase)


def _phrases(path: Path, section: str, content: Any) -> Iterator[str]:
    groups = list(content.values()) if isinstance(content, dict) else [content]
    for group in groups:
        if not isinstance(group, list) or not all(isinstance(text, str) for text in group):
            raise DataError(f"{path}: section {section} must contain groups of lists of texts")
        yield from group


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _values(value: Any) -> list[str]:
    """Return the values as text; a whole number without its decimal point."""
    items = list(value) if isinstance(value, list | tuple) else [value]
    texts = [_format(item) for item in items]
    return [text for text in texts if text] if len(texts) == 1 else [t or UNKNOWN for t in texts]


def _format(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value).strip()
    raise DataError(f"a value must be a number or text, got {value!r:.60}")
