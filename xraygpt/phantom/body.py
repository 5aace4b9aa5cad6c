"""The person in the picture, before any finding is drawn: build, breath, stance, exposure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from xraygpt.phantom.canvas import Pose
from xraygpt.phantom.findings import Finding, Side

_RATIO = {"mild": (0.545, 0.58), "moderate": (0.59, 0.64), "severe": (0.65, 0.70)}


@dataclass
class Body:
    """Numbers that the drawings of both views share; fractions of the picture where lengths."""

    pose: Pose
    habitus: float  # -1 thin, 1 heavy
    female: bool
    rotation: float  # of the body about its long axis; > 0 turns the sternum to its left
    heart: float  # cardiothoracic ratio
    breath: float  # how far the diaphragm lies below its usual level
    dome: float  # height of the diaphragm's dome, 1 is usual
    bend: float  # sideways curve of the spine
    barrel: float  # extra depth of the chest
    grain: float  # quantum noise
    contrast: float
    bright: float
    raised: dict[Side, float] = field(default_factory=lambda: {"left": 0.0, "right": 0.0})


def draw_body(rng: np.random.Generator, findings: Iterable[Finding], *, lateral: bool) -> Body:
    """A body that has `findings`, as far as they change its shape.

    Args:
        rng: All is drawn from it, in the same order whatever the findings.
        findings: Of the study.
        lateral: The pose is drawn apart for each view.
    """
    u = rng.uniform(-1, 1, 14)
    grain, heart, poses = rng.uniform(0.006, 0.02), rng.uniform(0.40, 0.485), rng.uniform(-1, 1, 8)
    p = poses[4:] if lateral else poses[:4]
    body = Body(
        pose=Pose(
            tilt=0.035 * p[0], scale=1 + 0.05 * p[1], shift=(0.02 * p[2], 0.02 * p[3] + 0.005)
        ),
        habitus=u[0],
        female=u[1] > 0,
        rotation=0.5 * u[2] ** 3,
        heart=heart,
        breath=0.02 * u[3],
        dome=1 + 0.15 * u[4],
        bend=0.006 * u[5],
        barrel=0.0,
        grain=grain,
        contrast=1 + 0.10 * u[6],
        bright=0.05 * u[7],
    )
    share = (u[8] + 1) / 2
    for finding in findings:
        if finding.name == "cardiomegaly":
            low, high = _RATIO[finding.degree]
            body.heart = low + (high - low) * share
        elif finding.name == "hyperinflation":
            body.breath, body.dome, body.barrel = 0.055 + 0.015 * share, 0.28 + 0.1 * share, 0.05
            body.heart = min(body.heart, 0.42) if body.heart < 0.5 else body.heart
        elif finding.name == "atelectasis":
            for side in finding.drawn_sides:
                body.raised[side] += 0.03
    return body
