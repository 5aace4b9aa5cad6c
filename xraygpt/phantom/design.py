"""Random findings for phantoms, balanced over all kinds or completing a code's attributes."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

from xraygpt.phantom.findings import KINDS, Finding

# Probabilities of 0 (a normal study), 1, 2 and 3 findings.
_COUNTS = (0.18, 0.40, 0.28, 0.14)
_SIZES = {"nodule": (12.0, 30.0), "calcified_granuloma": (5.0, 9.0)}  # mm
# Pairs that would hide each other or be indistinguishable on the same side.
_EXCLUDE = (
    {"pleural_effusion", "atelectasis"},
    {"pleural_effusion", "pneumothorax"},
    {"cardiomegaly", "hyperinflation"},
    {"hyperinflation", "atelectasis"},
)
# Order in which findings are drawn: fluid covers a consolidation, and wires cover everything.
ORDER = [
    "hyperinflation", "cardiomegaly", "consolidation", "nodule", "calcified_granuloma",
    "atelectasis", "pneumothorax", "pleural_effusion", "fracture", "catheter", "pacemaker",
]  # fmt: skip


def sample_balanced_findings(
    rng: Random, kinds: Sequence[str] = tuple(KINDS)
) -> tuple[Finding, ...]:
    """Sample zero to three findings, each kind about equally often."""
    count = rng.choices(range(len(_COUNTS)), weights=_COUNTS)[0]
    chosen: list[str] = []
    for name in rng.sample(list(kinds), len(kinds)):
        if len(chosen) < count and not any({name, other} in _EXCLUDE for other in chosen):
            chosen.append(name)
    return tuple(sample_finding(name, rng) for name in sorted(chosen, key=ORDER.index))


def sample_finding(name: str, rng: Random, **fixed: Any) -> Finding:
    """Sample a finding of this kind with random attributes, except for those in `fixed`.

    The attributes are side, zone, degree and size_mm.
    """
    kind = KINDS[name]
    sides = kind.sides
    if name == "pacemaker":
        sides = ("left", "left", "left", "right")
    elif name == "catheter":
        sides = ("right", "right", "left")
    choices = {"side": sides, "zone": kind.zones, "degree": kind.degrees}
    sampled: dict[str, Any] = {k: rng.choice(options) for k, options in choices.items() if options}
    if name in _SIZES:
        sampled["size_mm"] = round(rng.uniform(*_SIZES[name]))
    return Finding(name, **{**sampled, **fixed})
