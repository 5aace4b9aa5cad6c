"""The patient before any finding is drawn: build, breathing, pose and exposure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from xraygpt.phantom.canvas import Pose
from xraygpt.phantom.findings import Finding, Side

_RATIO = {"mild": (0.545, 0.58), "moderate": (0.59, 0.64), "severe": (0.65, 0.70)}


@dataclass
class Body:
    """Parameters that both views share; lengths are fractions of the image size."""

    pose: Pose
    habitus: float  # -1 thin, 1 heavy
    female: bool
    rotation: float  # about the body's long axis; > 0 turns the sternum to its left
    heart: float  # cardiothoracic ratio
    breath: float  # distance of the diaphragm below its usual level
    dome: float  # height of the diaphragm's dome, 1 is usual
    bend: float  # sideways curve of the spine
    barrel: float  # extra depth of the chest
    grain: float  # quantum noise
    contrast: float
    bright: float
    raised: dict[Side, float] = field(default_factory=lambda: {"left": 0.0, "right": 0.0})


def sample_body(rng: np.random.Generator, findings: Iterable[Finding], *, lateral: bool) -> Body:
    """Sample a random body, adapted to the findings that change its shape.

    Args:
        rng: Source of all random numbers; their order does not depend on the findings.
        findings: The findings of the study.
        lateral: Whether to sample the pose of the lateral view; each view has its own.
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
    severity = (u[8] + 1) / 2
    for finding in findings:
        if finding.name == "cardiomegaly":
            low, high = _RATIO[finding.degree]
            body.heart = low + (high - low) * severity
        elif finding.name == "hyperinflation":
            body.breath, body.barrel = 0.055 + 0.015 * severity, 0.05
            body.dome = 0.28 + 0.1 * severity
            body.heart = min(body.heart, 0.42) if body.heart < 0.5 else body.heart
        elif finding.name == "atelectasis":
            for side in finding.drawn_sides:
                body.raised[side] += 0.03
    return body
