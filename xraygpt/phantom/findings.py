"""The findings that a phantom can show, with their side, zone, size, degree and code."""

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
        name: Its key in `KINDS`.
        code: Pattern for its code, as :mod:`xraygpt.vocabulary.chest_mesh` expects it.
        sides: Possible sides; empty if the finding has no side.
        zones: Possible zones; empty if reports do not state a zone.
        degrees: Possible degrees; empty if the finding has no degree.
        measured: Whether the finding has a size in millimetres.
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
    """One finding in one study.

    Attributes:
        name: A key in `KINDS`.
        side: The patient's side, not the side of the image.
        zone: Third of the lung.
        degree: Severity.
        size_mm: Diameter of a nodule or granuloma; 0 for all other findings.

    Raises:
        ValueError: If a finding of this kind cannot have one of the values.
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
                    True, "name", f"unknown finding '{self.name}'; choose one of {', '.join(KINDS)}"
                )
                return
            allowed = {"side": kind.sides, "zone": kind.zones, "degree": kind.degrees}
            for field, values in allowed.items():
                value, choices = getattr(self, field), ", ".join(values) or "none"
                message = f"'{value}' is not valid for {self.name}; possible values: {choices}"
                check.refuse(value not in (values or ("",)), field, message, "name")
            required = "a size_mm above 0" if kind.measured else "a size_mm of 0"
            message = f"{self.name} must have {required}, got {self.size_mm}"
            check.refuse(kind.measured != (self.size_mm > 0), "size_mm", message, "name")

    @property
    def code(self) -> str:
        """The finding's code, such as ``Pleural Effusion/left/mild``."""
        return KINDS[self.name].code.format(side=self.side, zone=self.zone, degree=self.degree)

    @property
    def drawn_sides(self) -> tuple[Side, ...]:
        """The sides to draw the finding on: ``("left", "right")`` if it is bilateral."""
        return _SIDES if self.side == "bilateral" else (self.side,)


def codes_of(findings: Iterable[Finding]) -> list[str]:
    """Return the codes for a study's findings, or ``["normal"]`` if there are none."""
    return [f.code for f in findings] or ["normal"]
