"""What a phantom can show: findings with side, zone, size and degree, and their codes."""

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
        name: As :mod:`xraygpt.vocabulary.chest_labeller` calls it.
        sides: Sides it may have; empty if it has none.
        zones: Zones it may lie in; empty if that is not said.
        degrees: Degrees it may have; empty if it has none.
        code: Pattern of its code, in the vocabulary of :mod:`xraygpt.vocabulary.chest_mesh`.
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
        side: Of the patient, not of the picture.
        zone: Third of the lung.
        degree: How much of it there is.
        size_mm: Diameter of a nodule or granuloma; 0 where the degree says it all.

    Raises:
        ValueError: A value its kind does not have.
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
            for what, values in allowed.items():
                value, choices = getattr(self, what), ", ".join(values) or "none"
                wrong = f"{self.name} has no '{value}'; possible: {choices}"
                check.refuse(value not in (values or ("",)), what, wrong, "name")
            wanted = "a size_mm above 0" if kind.measured else "no size_mm"
            wrong = f"{self.name} has {wanted}, got {self.size_mm}"
            check.refuse(kind.measured != (self.size_mm > 0), "size_mm", wrong, "name")

    @property
    def code(self) -> str:
        """Its code: ``Pleural Effusion/left/mild``."""
        return KINDS[self.name].code.format(side=self.side, zone=self.zone, degree=self.degree)

    @property
    def drawn_sides(self) -> tuple[Side, ...]:
        """``("left", "right")`` for a bilateral one."""
        return _SIDES if self.side == "bilateral" else (self.side,)


def codes_of(findings: Iterable[Finding]) -> list[str]:
    """Codes of a study, ``["normal"]`` if it has no finding."""
    return [f.code for f in findings] or ["normal"]
