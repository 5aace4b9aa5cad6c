"""The lateral view, facing left: superimposed lungs, the heart in front and the spine behind."""

from __future__ import annotations

import numpy as np

from xraygpt.phantom.body import Body
from xraygpt.phantom.canvas import Canvas, Layer, Points, moved
from xraygpt.phantom.scene import Scene

_BACK = [(0.600, 0.085), (0.700, 0.140), (0.770, 0.250), (0.805, 0.380), (0.812, 0.540)]
_BACK += [(0.802, 0.700), (0.790, 0.790)]
_ANGLE = [(0.775, 0.850), (0.745, 0.830)]
_DOME = [(0.660, 0.765), (0.560, 0.722), (0.450, 0.705), (0.340, 0.722), (0.265, 0.760)]
_FRONT = [(0.238, 0.790), (0.228, 0.720), (0.232, 0.560), (0.262, 0.400), (0.318, 0.240)]
_FRONT += [(0.390, 0.135), (0.480, 0.088)]
_BASE = 0.80


def draw(body: Body, size: int, rng: np.random.Generator) -> Scene:
    """Draw the normal anatomy; findings are added to the scene afterwards."""
    canvas = Canvas(size, body.pose)
    mean_raised = (body.raised["left"] + body.raised["right"]) / 2
    right = canvas.fill(_lung(body, body.raised["right"]), blur=0.004)
    left = canvas.fill(_lung(body, body.raised["left"] - 0.028), blur=0.004)
    both = 0.5 * (left + right)
    heart = canvas.fill(_heart(body), blur=0.012)
    scene = Scene(canvas=canvas, body=body, lungs={"both": both}, heart=heart, view="lateral")
    trunk = canvas.fill(_trunk(body), blur=0.004)
    scene.depth = trunk * (1.08 + 0.12 * body.habitus)
    arms = canvas.soften(canvas.ellipse(0.50, 0.0, 0.42, 0.15, edge=0.5), 0.02)
    scene.wall = trunk * (0.24 + 0.12 * body.habitus) + 0.25 * arms * trunk
    if body.female:
        breast = canvas.ellipse(0.20, 0.60, 0.10 + 0.02 * body.habitus, 0.13, edge=0.4)
        scene.wall = scene.wall + 0.12 * breast
    scene.air = both * (0.74 + 0.22 * canvas.soften(both, 0.05))
    scene.air *= (1 - 0.62 * heart) * (1 - 0.45 * canvas.fill(_vessel_root(), blur=0.018))
    # The shoulders hide part of the lung; towards the diaphragm the spine gets darker.
    scene.air *= np.clip(0.62 + 0.9 * canvas.y, 0, 1)
    scene.vessels = _vessels(canvas, rng) * both
    trachea = np.array([(0.455, -0.02), (0.475, 0.12), (0.505, 0.25), (0.53, 0.345)])
    scene.gas = 0.20 * canvas.strokes([(trachea, 0.038, 1.0)], blur=0.006)
    for x, y in ((0.535, 0.355), (0.545, 0.415)):  # the upper bronchi, seen end on
        scene.gas = scene.gas + 0.16 * canvas.ellipse(x, y, 0.014, 0.015, edge=0.5)
    bubble = canvas.ellipse(0.42, 0.81 + body.breath - mean_raised, 0.10, 0.042, edge=0.5)
    scene.gas = scene.gas + 0.28 * rng.uniform(0.5, 1.0) * bubble * (1 - right)
    scene.bones = _bones(canvas, body)
    return scene


def _lung(body: Body, raised: float) -> Points:
    """Return the outline of a lung whose diaphragm is `raised` above the usual level."""
    dome = np.array(_DOME)
    dome[:, 1] = _BASE + (dome[:, 1] - _BASE) * body.dome + body.breath - raised
    angle = moved(_ANGLE, 0, body.breath - 0.4 * raised)
    front = np.array(_FRONT)
    front[0, 1] += body.breath - raised
    outline = np.concatenate([np.array(_BACK), angle, dome, front])
    outline[:, 0] -= body.barrel * np.clip(0.55 - outline[:, 0], 0, None)
    return outline


def _heart(body: Body) -> Points:
    """Return the heart on the front half of the diaphragm; a larger heart extends backwards."""
    growth = 0.35 * (body.heart - 0.45)
    down = 0.8 * body.breath
    shape = [
        (0.470, 0.370),
        (0.360, 0.430),
        (0.275 - 0.2 * growth, 0.530),
        (0.245 - 0.2 * growth, 0.660 + down),
        (0.270, 0.765 + down),
        (0.400, 0.760 + down),
        (0.525 + growth, 0.735 + down),
        (0.575 + 1.4 * growth, 0.640 + down),
        (0.580 + 1.2 * growth, 0.530),
        (0.555 + 0.5 * growth, 0.430),
    ]
    return moved(shape, -0.25 * body.barrel)


def _vessel_root() -> Points:
    """Return the outline of the aortic arch, the descending aorta and the hila."""
    shape = [(0.44, 0.38), (0.46, 0.29), (0.52, 0.235), (0.60, 0.245), (0.645, 0.31)]
    shape += [(0.67, 0.44), (0.67, 0.60), (0.63, 0.60), (0.63, 0.46), (0.60, 0.36), (0.55, 0.45)]
    return np.array(shape)


def _trunk(body: Body) -> Points:
    front = [(0.36, -0.04), (0.33, 0.06), (0.26, 0.16), (0.205, 0.32), (0.175, 0.52)]
    front += [(0.165, 0.72), (0.150, 0.90), (0.145, 1.06)]
    back = [(0.86, 1.06), (0.88, 0.80), (0.90, 0.52), (0.885, 0.32), (0.84, 0.16), (0.78, 0.02)]
    shape = np.array([*front, *back, (0.76, -0.04)])
    shape[: len(front), 0] -= 0.02 * body.habitus + body.barrel * 0.4
    shape[len(front) :, 0] += 0.02 * body.habitus
    return shape


def _vessels(canvas: Canvas, rng: np.random.Generator) -> Layer:
    """Draw vessels that fan out from the superimposed hila of both lungs."""
    lines = []
    for angle in np.linspace(0, 2 * np.pi, 22, endpoint=False) + rng.uniform(-0.12, 0.12, 22):
        turn, points, width = angle, [np.array([0.545, 0.43])], 0.013
        for _ in range(4):
            turn += rng.uniform(-0.3, 0.3)
            step = np.array([np.cos(turn), np.sin(turn)]) * rng.uniform(0.045, 0.075)
            points.append(points[-1] + step)
        lines.append((np.array(points[:3]), width, 0.55))
        lines.append((np.array(points[2:]), width * 0.55, 0.35))
    return canvas.strokes(lines, blur=0.003)


def _bones(canvas: Canvas, body: Body) -> Layer:
    """Return the attenuation of the spine, the sternum and the ribs on both sides."""
    blocks, ends, tips = [], [], []
    for y in np.arange(0.02, 1.04, 0.066):
        bow = 0.715 + 0.055 * np.sin(np.pi * min(y, 0.95) * 0.95)
        lean = 0.10 * np.cos(np.pi * y)  # vertebrae tilt along the curved spine
        w, h = 0.030 + 0.010 * y, 0.025
        corner = np.array([(-w, -h), (w, -h), (w * 0.9, 0), (w, h), (-w, h), (-w * 0.88, 0)])
        turn = np.array([[np.cos(lean), -np.sin(lean)], [np.sin(lean), np.cos(lean)]])
        block = corner @ turn + [bow, y]
        blocks.append(block)
        ends += [(block[:2], 0.005, 1.0), (block[3:5], 0.005, 1.0)]
        tips.append(
            (np.array([(bow + w + 0.02, y + 0.01), (bow + w + 0.055, y + 0.035)]), 0.018, 0.8)
        )
    bones = 0.20 * canvas.fill(*blocks, blur=0.003) + 0.12 * canvas.strokes(ends, blur=0.0015)
    bones += 0.09 * canvas.strokes(tips, blur=0.003)
    front = np.array([(0.330, 0.135), (0.265, 0.270), (0.215, 0.430), (0.196, 0.600)])
    front[:, 0] -= 0.5 * body.barrel
    bones += 0.20 * canvas.strokes([(front, 0.024, 1.0)], blur=0.003)
    ribs = []
    for side in (0.0, 0.022):  # the two sides do not coincide completely
        for number in range(1, 11):
            y = 0.07 + 0.066 * number + side
            back = 0.73 + 0.07 * np.sin(np.pi * min(y, 1.0))
            reach = back - 0.40 + 0.015 * number
            points = [(back, y), (back + 0.03, y + 0.03), (back - 0.10, y + 0.085)]
            points += [(back - 0.6 * reach, y + 0.16), (back - reach, y + 0.20)]
            ribs.append((np.array(points), 0.016, 0.8 - 0.25 * (side > 0)))
    return bones + 0.085 * canvas.strokes(ribs, blur=0.003)
