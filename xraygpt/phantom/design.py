"""Which findings a phantom has: drawn evenly, or as often and as together as people coded them."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from xraygpt.phantom.findings import KINDS, Finding

# How often a balanced study has so many findings; 0 is a normal one.
_COUNTS = (0.18, 0.40, 0.28, 0.14)
_SIZES = {"nodule": (12.0, 30.0), "calcified_granuloma": (5.0, 9.0)}
# Two that would hide each other or could not be told apart on one side.
_EXCLUDE = (
    {"pleural_effusion", "atelectasis"},
    {"pleural_effusion", "pneumothorax"},
    {"cardiomegaly", "hyperinflation"},
    {"hyperinflation", "atelectasis"},
)
# Drawn in this order, so that fluid covers a consolidation and wires lie over everything.
ORDER = [
    "hyperinflation", "cardiomegaly", "consolidation", "nodule", "calcified_granuloma",
    "atelectasis", "pneumothorax", "pleural_effusion", "fracture", "catheter", "pacemaker",
]  # fmt: skip


def balanced(rng: Random, kinds: Sequence[str] = tuple(KINDS)) -> tuple[Finding, ...]:
    """None to three findings, each kind as often as any other."""
    count = rng.choices(range(len(_COUNTS)), weights=_COUNTS)[0]
    chosen: list[str] = []
    for name in rng.sample(list(kinds), len(kinds)):
        if len(chosen) < count and not any({name, other} in _EXCLUDE for other in chosen):
            chosen.append(name)
    return tuple(draw(name, rng) for name in sorted(chosen, key=ORDER.index))


def draw(name: str, rng: Random, **given: Any) -> Finding:
    """A finding of this kind; what is not `given` (side, zone, degree, size_mm) is drawn."""
    kind = KINDS[name]
    sides = kind.sides
    if name == "pacemaker":
        sides = ("left", "left", "left", "right")
    elif name == "catheter":
        sides = ("right", "right", "left")
    values = {"side": sides, "zone": kind.zones, "degree": kind.degrees}
    drawn: dict[str, Any] = {key: rng.choice(options) for key, options in values.items() if options}
    if name in _SIZES:
        drawn["size_mm"] = round(rng.uniform(*_SIZES[name]))
    return Finding(name, **{**drawn, **given})
