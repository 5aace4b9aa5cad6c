"""A cardiac study: its stacks, and what is known about the patient."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from xraygpt.cardiac.stack import Role, Stack
from xraygpt.measure.cardiac_function import HEIGHTS, WEIGHTS

_ROLES: dict[Role, str] = {  # the first that matches counts
    "LGE": r"\blge\b|psir|late[ -]?gad|delayed|\bde[ -]?(?:sax|2ch|3ch|4ch|fl)|viab",
    "perfusion": r"perf|first[ -]?pass",
    "T2": r"\bt2|stir|tirm",
    "2CH": r"\b2[ -]?c(?:h|\b)|two[ -]?chamber|\bvla\b",
    "3CH": r"\b3[ -]?c(?:h|\b)|three[ -]?chamber|\blvot\b",
    "4CH": r"\b4[ -]?c(?:h|\b)|four[ -]?chamber|\bhla\b",
    "SAX": r"\bsax(?:\b|\d)|short[ -]?ax|\bsa\b",
}
_OTHER_SERIES = re.compile(
    r"\b(?:molli|shmolli|t1|t2|map|tag\w*|flow|tfl|scout|loc\w*|tra|trans\w*|axial|cor|coronal|sag\w*)\b"
)


@dataclass(frozen=True)
class Patient:
    """What the header says about the patient, for indexed values and reference ranges.

    Attributes:
        sex: "male", "female" or empty.
        height: In cm; None if unknown.
        weight: In kg; None if unknown.
    """

    sex: str = ""
    height: float | None = None
    weight: float | None = None


def plausible_height(
    height: float | None, source: str, warnings: list[str], unit: str = "cm"
) -> float | None:
    """Return a height in cm; None if it is implausible.

    Args:
        height: As it is in the file.
        source: Name of the file, for messages.
        warnings: What is unusual is appended to it.
        unit: Unit of the file, ``cm`` or ``metres``; files often use the other one.
    """
    if height is None:
        return None
    other = "metres" if unit == "cm" else "cm"
    for guess in (unit, other):
        centimetres = height if guess == "cm" else 100 * height
        if HEIGHTS[0] <= centimetres <= HEIGHTS[1]:
            if guess != unit:
                warnings.append(f"{source}: the height {height:g} is taken as {guess}, not {unit}")
            return centimetres
    warnings.append(f"{source}: a height of {height:g} {unit} is implausible and ignored")
    return None


def plausible_weight(weight: float | None, source: str, warnings: list[str]) -> float | None:
    """Return a weight in kg; None if it is implausible, which is appended to `warnings`."""
    if weight is None or WEIGHTS[0] <= weight <= WEIGHTS[1]:
        return weight
    warnings.append(f"{source}: a weight of {weight:g} kg is implausible and ignored")
    return None


@dataclass(frozen=True)
class Study:
    """The stacks of a cardiac study.

    Attributes:
        stacks: All stacks, short axis first.
        patient: Sex, height and weight.
        warnings: What is missing or unusual, one sentence each.
    """

    stacks: list[Stack]
    patient: Patient
    warnings: list[str]

    def with_role(self, role: Role) -> list[Stack]:
        """Return the stacks with a role: first those whose name tells, then by their size."""
        found = [stack for stack in self.stacks if stack.role == role]
        return sorted(
            found, key=lambda s: (role_from_name(s.name) != role, -s.slices * s.phases, s.name)
        )


def role_from_name(name: str) -> Role:
    """Return what a series shows according to its name; empty if the name does not tell."""
    words = name.lower().replace("_", " ")
    role: Role = next((role for role, pattern in _ROLES.items() if re.search(pattern, words)), "")
    return "" if role == "SAX" and is_other_series(name) else role


def is_other_series(name: str) -> bool:
    """Check whether a name tells that a series is no short-axis cine, such as a map or a scout."""
    return bool(_OTHER_SERIES.search(name.lower().replace("_", " ")))


def sort_stacks(stacks: Iterable[Stack]) -> list[Stack]:
    """Sort stacks by their role, short axis first, and then by their name."""
    order = list(reversed(_ROLES))
    return sorted(stacks, key=lambda s: (order.index(s.role) if s.role else len(order), s.name))
