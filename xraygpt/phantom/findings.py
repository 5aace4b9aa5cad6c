"""The findings a phantom can show, with side, zone, size and degree, and their codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from xraygpt.common.checks import Checks

Side = Literal["left", "right", "bilateral", ""]
Zone = Literal["upper", "middle", "lower", ""]
Degree = Literal["mild", "moderate", "severe", ""]


@dataclass(frozen=True)
class Kind:
    """A finding that can be drawn.

    Attributes:
        name: Key of `KINDS`.
        code: Pattern of its code, for :mod:`xraygpt.vocabulary.chest_mesh`.
        sides: Possible sides; empty if it has none.
        zones: Possible zones; empty if reports do not state one.
        degrees: Possible degrees; empty if it has none.
        measured: Whether it has a size in millimetres.
    """

    name: str
    code: str
    sides: tuple[Side, ...] = ()
    zones: tuple[Zone, ...] = ()
    degrees: tuple[Degree, ...] = ()
    measured: bool = False


_SIDES: tuple[Side, ...] = ("left", "right")
_BOTH: tuple[Side, ...] = ("left", "right", "bilateral")
_ZONES: tuple[Zone, ...] = ("upper", "middle", "lower")
_DEGREES: tuple[Degree, ...] = ("mild", "moderate", "severe")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("cardiomegaly", "Cardiomegaly/{degree}", degrees=_DEGREES),
        Kind("pleural_effusion", "Pleural Effusion/{side}/{degree}", sides=_BOTH, degrees=_DEGREES),
        Kind("pneumothorax", "Pneumothorax/{side}/{degree}", sides=_SIDES, degrees=_DEGREES),
        Kind(
            "consolidation",
            "Consolidation/lung/{zone} lobe/{side}",
            sides=_SIDES,
            zones=_ZONES,
            degrees=_DEGREES,
        ),
        Kind("nodule", "Nodule/lung/{zone} lobe/{side}", sides=_SIDES, zones=_ZONES, measured=True),
        Kind("atelectasis", "Pulmonary Atelectasis/base/{side}", sides=_BOTH),
        Kind(
            "calcified_granuloma",
            "Calcified Granuloma/lung/{zone} lobe/{side}",
            sides=_SIDES,
            zones=_ZONES,
            measured=True,
        ),
        Kind("hyperinflation", "Lung/hyperdistention"),
        Kind("fracture", "Fractures, Bone/ribs/{side}", sides=_SIDES),
        Kind("pacemaker", "Implanted Medical Device/{side}", sides=_SIDES),
        Kind("catheter", "Catheters, Indwelling/{side}", sides=_SIDES),
    )
}


@dataclass(frozen=True)
class Finding:
    """One finding of one study.

    Attributes:
        name: A key of `KINDS`.
        side: The patient's side, not the picture's.
        zone: Third of the lung.
        degree: Severity.
        size_mm: Diameter of a nodule or granuloma; 0 for all others.

    Raises:
        ValueError: If its kind cannot have one of the values.
    """

    name: str
    side: Side = ""
    zone: Zone = ""
    degree: Degree = ""
    size_mm: float = 0.0

    def __post_init__(self) -> None:
        kind = KINDS.get(self.name)
        with Checks(self) as check:
            if kind is None:
                check.refuse(
                    True, "name", f"no finding '{self.name}'; there are {', '.join(KINDS)}"
                )
                return
            allowed = {"side": kind.sides, "zone": kind.zones, "degree": kind.degrees}
            for field, values in allowed.items():
                value, choices = getattr(self, field), ", ".join(values) or "none"
                message = f"{self.name} has no '{value}'; possible: {choices}"
                check.refuse(value not in (values or ("",)), field, message, "name")
            required = "a size_mm above 0" if kind.measured else "no size_mm"
            message = f"{self.name} has {required}, got {self.size_mm}"
            check.refuse(kind.measured != (self.size_mm > 0), "size_mm", message, "name")

    @property
    def code(self) -> str:
        """The code, such as ``Pleural Effusion/left/mild``."""
        return KINDS[self.name].code.format(side=self.side, zone=self.zone, degree=self.degree)

    @property
    def drawn_sides(self) -> tuple[Side, ...]:
        """The sides to draw it on: ``("left", "right")`` if it is bilateral."""
        return _SIDES if self.side == "bilateral" else (self.side,)


def codes_of(findings: Iterable[Finding]) -> list[str]:
    """Codes of a study; ``["normal"]`` without findings."""
    return [f.code for f in findings] or ["normal"]
