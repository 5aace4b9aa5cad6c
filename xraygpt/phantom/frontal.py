"""The frontal (PA) view: lungs, heart, vessels, diaphragm and bones."""

from __future__ import annotations

import math

import numpy as np

from xraygpt.phantom.body import Body
from xraygpt.phantom.canvas import Canvas, Layer, Points, mirrored, moved
from xraygpt.phantom.findings import Side
from xraygpt.phantom.scene import Scene

# Outline of the right lung, on the left of the image: from the apex down along the spine,
# outwards along the diaphragm, and up along the ribs.
_MEDIAL = [(0.415, 0.100), (0.447, 0.150), (0.460, 0.220), (0.462, 0.320), (0.462, 0.45)]
_MEDIAL += [(0.466, 0.58), (0.468, 0.70)]
_DOME = [(0.462, 0.745), (0.400, 0.710), (0.330, 0.690), (0.260, 0.700), (0.185, 0.735)]
_ANGLE = [(0.135, 0.785), (0.112, 0.825)]
_WALL = [(0.102, 0.74), (0.105, 0.62), (0.118, 0.50), (0.145, 0.38), (0.187, 0.26)]
_WALL += [(0.240, 0.165), (0.305, 0.105), (0.365, 0.082)]
_BASE = 0.79  # level of a completely flat diaphragm
CHEST = 0.79  # inner width of the chest


def draw(body: Body, size: int, rng: np.random.Generator) -> Scene:
    """Draw the normal anatomy; findings are added to the scene afterwards."""
    canvas = Canvas(size, body.pose)
    lungs: dict[str, Layer] = {
        "right": canvas.fill(lung_outline(body, "right"), blur=0.004),
        "left": canvas.fill(lung_outline(body, "left"), blur=0.004),
    }
    heart = canvas.fill(heart_outline(body), blur=0.006)
    scene = Scene(canvas=canvas, body=body, lungs=lungs, heart=heart, view="frontal")
    trunk = canvas.fill(_trunk(), blur=0.004)
    thickness = np.sqrt(np.clip(1 - ((canvas.x - 0.5) / 0.53) ** 2, 0.02, 1))
    scene.depth = trunk * thickness * (1 + 0.12 * body.habitus)
    scene.wall = trunk * (0.30 + 0.14 * body.habitus) + _soft_tissue(canvas, body)
    both = lungs["left"] + lungs["right"]
    scene.air = both * (0.80 + 0.20 * canvas.soften(both, 0.05))
    shift = 0.02 * body.rotation
    middle = canvas.fill(_mediastinum(body), blur=0.005)
    scene.air *= (1 - 0.85 * heart) * (1 - 0.92 * middle)
    _recesses(scene)
    scene.vessels = _vessels(canvas, rng) * both
    trachea = np.array([(0.497 + shift, 0.0), (0.498 + shift, 0.18), (0.503 + shift, 0.345)])
    bronchi = [
        np.array([(0.503 + shift, 0.34), (0.46 + shift, 0.40), (0.425 + shift, 0.445)]),
        np.array([(0.503 + shift, 0.34), (0.555 + shift, 0.395), (0.60 + shift, 0.42)]),
    ]
    lines = [(trachea, 0.038, 1.0), *((b, 0.026, 0.75) for b in bronchi)]
    scene.gas = 0.30 * canvas.strokes(lines, blur=0.005) * (1 - np.clip(both, 0, 1))
    amount, x, ry = rng.uniform(0.6, 1.0), 0.66 + rng.uniform(-0.03, 0.03), rng.uniform(0.035, 0.06)
    level = 0.775 + body.breath - body.raised["left"]
    bubble = canvas.ellipse(x, level + ry, 0.075, ry, edge=0.5)  # gas in the stomach
    scene.gas += 0.40 * amount * bubble * (1 - lungs["left"])
    scene.bones = _bones(canvas, body, rng)
    return scene


def lung_outline(body: Body, side: Side) -> Points:
    """Return the outline of one lung in body coordinates, of shape (n, 2)."""
    low = 0.0 if side == "right" else 0.022
    drop = body.breath + low - body.raised[side]
    dome = np.array(_DOME)
    dome[:, 1] = _BASE + (dome[:, 1] - _BASE) * body.dome + drop
    angle = moved(_ANGLE, 0, body.breath + low * 0.6 - 0.4 * body.raised[side])
    medial = np.array(_MEDIAL)
    medial[-1, 1] = min(medial[-1, 1], dome[0, 1] - 0.02)
    outline = np.concatenate([medial, dome, angle, np.array(_WALL)])
    outline[:, 0] += 0.006 * body.rotation
    return outline if side == "right" else mirrored(outline)


def heart_outline(body: Body) -> Points:
    """Return the heart and great vessels, whose width follows from the cardiothoracic ratio."""
    width = body.heart * CHEST
    right = 0.085 + 0.22 * max(width - 0.34, -0.04)
    left = width - right
    top = 0.40 - 0.25 * max(body.heart - 0.5, 0)
    down = body.breath * 0.7
    round_ = 0.06 * max(body.heart - 0.5, 0)
    shape = [
        (0.500, top - 0.03),
        (0.447, top + 0.03),
        (0.5 - right * 0.82, 0.515),
        (0.5 - right, 0.605 + down / 2),
        (0.5 - right * 0.93, 0.69 + down),
        (0.46, 0.765 + down),
        (0.56, 0.795 + down),
        (0.5 + left * 0.86, 0.785 + down),
        (0.5 + left * 0.995, 0.73 + down),
        (0.5 + left * 0.95, 0.64 + down - round_),
        (0.5 + left * 0.72, 0.535 + down / 2 - round_),
        (0.5 + left * 0.46, 0.455 - round_),
        (0.577, top + 0.015),
    ]
    return moved(shape, 0.02 * body.rotation)


def _trunk() -> Points:
    """Return the outline of the skin."""
    half = [(0.410, -0.04), (0.405, 0.015), (0.33, 0.045), (0.20, 0.062), (0.09, 0.095)]
    half += [(0.01, 0.15), (-0.06, 0.24), (-0.06, 0.36), (0.018, 0.42), (0.035, 0.60)]
    half += [(0.032, 0.80), (0.02, 1.06)]
    return np.array([*half, *mirrored(np.array(half))[::-1].tolist()])


def _mediastinum(body: Body) -> Points:
    """Return the outline of the mediastinum: vena cava on the right, aortic arch on the left."""
    shape = [
        (0.465, -0.03), (0.462, 0.10), (0.452, 0.20), (0.448, 0.32), (0.450, 0.46),
        (0.470, 0.62), (0.475, 0.80), (0.545, 0.80), (0.550, 0.60), (0.556, 0.46),
        (0.572, 0.385), (0.566, 0.352), (0.580, 0.315), (0.574, 0.275), (0.553, 0.248),
        (0.543, 0.18), (0.538, 0.10), (0.535, -0.03),
    ]  # fmt: skip
    return moved(shape, 0.018 * body.rotation)


def _soft_tissue(canvas: Canvas, body: Body) -> Layer:
    """Draw breasts, armpit folds and shoulder muscles."""
    layer = 0.10 * canvas.soften(canvas.ellipse(0.5, 0.02, 0.62, 0.16, edge=0.8), 0.02)
    if body.female:
        ry, drop = 0.13 + 0.03 * body.habitus, 0.03 * body.habitus
        for x in (0.27, 0.73):
            breast = canvas.ellipse(x, 0.66 + drop, 0.145 + 0.02 * body.habitus, ry, edge=0.35)
            layer = layer + (0.11 + 0.05 * body.habitus) * breast
    return layer


def _recesses(scene: Scene) -> None:
    """Add the lung behind the dome: a thin wedge of air below the diaphragm's outline."""
    below = np.roll(scene.air, round(0.035 * scene.canvas.size), axis=0)
    lung = scene.lungs["left"] + scene.lungs["right"]
    scene.air = np.maximum(scene.air, 0.16 * below * (1 - lung))


def _vessels(canvas: Canvas, rng: np.random.Generator) -> Layer:
    """Draw the pulmonary vessels as trees that fan out from each hilum and get thinner outwards."""
    lines: list[tuple[Points, float, float]] = []
    for right in (True, False):
        hilum = np.array([0.432, 0.445] if right else [0.572, 0.425])
        for angle in np.linspace(-80, 82, 9) + rng.uniform(-9, 9, 9):
            reach = rng.uniform(0.26, 0.36) * (0.8 + 0.2 * np.cos(np.radians(angle - 20)))
            start = hilum + np.array([rng.uniform(-0.01, 0.01), 0.05 * np.sin(np.radians(angle))])
            _branch(lines, start, np.radians(angle), reach, 0.017, right, rng, 3)
        artery = hilum + np.array([(0, -0.06), (0, 0), (0, 0.03), (0, 0.10)])
        artery[:, 0] += np.array([0.012, 0, -0.006, -0.022]) * (1 if right else -1)
        lines += [(artery, 0.034, 0.85), (artery[:3], 0.048, 0.7)]
    return canvas.strokes(lines, blur=0.0025, fine=1)


def _branch(
    lines: list[tuple[Points, float, float]],
    start: Points,
    angle: float,
    reach: float,
    width: float,
    right: bool,
    rng: np.random.Generator,
    splits: int,
) -> None:
    """Append a vessel and its branches; angles point downwards from the outward horizontal."""
    step, bend = reach * 0.45 / 3, 0.0
    x = y = 0.0
    path = [(0.0, 0.0)]
    for turn in rng.uniform(-0.22, 0.22, 3).tolist():  # plain floats: faster than tiny arrays
        bend += turn
        x += math.cos(angle + bend) * (-step if right else step)
        y += math.sin(angle + bend) * step
        path.append((x, y))
    points = start + np.array(path)
    lines.append((points, width, min(0.25 + 45 * width, 0.9)))
    if splits:
        for turn in (-1, 1):
            spread = turn * rng.uniform(0.12, 0.62)
            _branch(
                lines,
                points[-1],
                angle + spread,
                reach * 0.72,
                width * 0.66,
                right,
                rng,
                splits - 1,
            )


def rib(number: int, side: str, *, anterior: bool = False) -> Points:
    """Return the course of a rib: from the spine outwards, or at the front towards the sternum.

    Args:
        number: 1 to 10.
        side: The patient's ``left`` or ``right``.
        anterior: Whether to return the front part.
    """
    y = 0.075 + 0.0665 * number - 0.012 * max(3 - number, 0)
    turn = y + 0.035 + 0.012 * min(number, 7)  # level at which the rib turns to the front
    wall = float(np.interp(turn, [p[1] for p in _WALL[::-1]], [p[0] for p in _WALL[::-1]])) - 0.006
    if anterior:
        drop = 0.05 + 0.012 * min(number, 8)
        points = [
            (wall, turn),
            (wall + 0.028, turn + 0.038),
            (wall + 0.11, turn + 0.045 + drop * 0.8),
            (wall + 0.20, turn + 0.055 + drop * 1.3),
        ]
    else:
        out = 0.455 - wall
        points = [
            (0.470, y),
            (0.455 - 0.22 * out, y - 0.016),
            (0.455 - 0.50 * out, y - 0.012),
            (0.455 - 0.80 * out, y + 0.35 * (turn - y)),
            (wall + 0.01, turn - 0.025),
            (wall, turn),
        ]
    course = np.array(points)
    return course if side == "right" else mirrored(course)


def _bones(canvas: Canvas, body: Body, rng: np.random.Generator) -> Layer:
    """Return the attenuation of ribs, clavicles, shoulder blades, upper arms and spine."""
    lines: list[tuple[Points, float, float]] = []
    cores: list[tuple[Points, float, float]] = []
    for side in ("right", "left"):
        for number in range(1, 11):
            back, front = rib(number, side), rib(number, side, anterior=True)
            lines.append((back, 0.022, 0.85))
            cores.append((back, 0.011, 0.9))
            if 1 < number < 8:
                lines.append((front, 0.021, 0.50))
                cores.append((front, 0.011, 0.5))
    ribs = canvas.strokes(lines, blur=0.003) - 0.35 * canvas.strokes(cores, blur=0.002)
    bones = 0.17 * ribs
    turn = body.rotation * 0.03
    clavicles = []
    for flip in (False, True):
        line = np.array(
            [(0.455, 0.158), (0.39, 0.150), (0.30, 0.122), (0.20, 0.092), (0.11, 0.078)]
        )
        clavicles.append(moved(mirrored(line) if flip else line, turn))
    bones += 0.26 * canvas.strokes([(c, 0.027, 1.0) for c in clavicles], blur=0.003)
    bones -= 0.10 * canvas.strokes([(c, 0.012, 1.0) for c in clavicles], blur=0.002)
    blade = np.array([(0.20, 0.115), (0.07, 0.12), (0.055, 0.20), (0.10, 0.33), (0.125, 0.43)])
    blade = np.concatenate([blade, [(0.150, 0.40), (0.165, 0.28), (0.185, 0.18)]])
    bones += 0.10 * canvas.fill(blade, mirrored(blade), blur=0.003)
    for x in (0.025, 0.975):
        bones += 0.30 * canvas.ellipse(x, 0.155, 0.055, 0.055, edge=0.15)
    return bones + _spine(canvas, body)


def _spine(canvas: Canvas, body: Body) -> Layer:
    """Draw the vertebral bodies with the discs between them, pedicles and spinous processes."""
    levels = np.arange(-0.01, 1.03, 0.061)
    blocks, marks, tips = [], [], []
    for i, y in enumerate(levels):
        x = 0.5 + body.bend * np.sin(5 * y) - 0.012 * body.rotation
        w, h = 0.026 + 0.011 * y, 0.0245
        blocks.append(
            np.array(
                [(x - w, y - h), (x, y - h * 0.93), (x + w, y - h), (x + w * 0.9, y),
                 (x + w, y + h), (x, y + h * 0.93), (x - w, y + h), (x - w * 0.9, y)]
            )
        )  # fmt: skip
        for dx in (-0.62, 0.62):
            marks.append((np.array([(x + dx * w, y - 0.010), (x + dx * w, y + 0.002)]), 0.011, 1.0))
        tips.append((np.array([(x, y + 0.012), (x, y + 0.024)]), 0.008, 1.0))
        if i < 8:  # transverse processes of the upper vertebrae
            marks.append(
                (np.array([(x - w * 1.7, y - 0.01), (x + w * 1.7, y - 0.01)]), 0.008, 0.35)
            )
    spine = 0.17 * canvas.fill(*blocks, blur=0.003)
    spine += 0.09 * canvas.strokes([*marks, *tips], blur=0.002)
    column = canvas.strokes(
        [(np.stack([np.full(6, 0.5), np.linspace(-0.05, 1.05, 6)], 1), 0.085, 1.0)]
    )
    return spine + 0.07 * canvas.soften(column, 0.01)
