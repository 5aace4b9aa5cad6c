"""Draw findings into a scene; each function returns the mask of its changes, (H, W) in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np

from xraygpt.phantom import frontal
from xraygpt.phantom.canvas import Layer, Points, mirrored, moved
from xraygpt.phantom.findings import Finding, Side
from xraygpt.phantom.scene import MM, Scene

DrawFunction = Callable[[Scene, Finding, Side, np.random.Generator], Layer]
_ZONES = {"upper": (0.16, 0.31), "middle": (0.36, 0.50), "lower": (0.55, 0.70)}  # body y, frontal


def draw_finding(scene: Scene, finding: Finding, rng: np.random.Generator) -> Layer:
    """Draw `finding`, on both sides if it is bilateral.

    Returns:
        The mask of the finding; all zeros if this view does not show it.
    """
    draw = _DRAW[finding.name]
    masks = [draw(scene, finding, side, rng) for side in finding.drawn_sides]
    return cast(Layer, np.max(masks, axis=0))


def _empty_mask(scene: Scene) -> Layer:
    return np.zeros_like(scene.heart)


def _lung(scene: Scene, side: Side) -> Layer:
    return scene.lungs[side if scene.view == "frontal" else "both"]


def _texture(scene: Scene, rng: np.random.Generator, grain: float) -> Layer:
    """Sample smooth noise, mean 0 and standard deviation 1, with structures about `grain` wide."""
    size = scene.canvas.size
    noise = scene.canvas.soften(rng.standard_normal((size, size), dtype=np.float32), grain)
    layer: Layer = (noise - noise.mean()) / (noise.std() + 1e-6)
    return layer


def _sample_point(
    scene: Scene, finding: Finding, side: Side, margin: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Sample a point in the finding's zone of the lung, about `margin` from the lung's edge."""
    canvas = scene.canvas
    depth = canvas.soften(_lung(scene, side) * (1 - scene.heart), margin / 2)
    top, bottom = _ZONES[finding.zone]
    shift = scene.body.breath * (0.8 if finding.zone == "lower" else 0.2)
    in_zone = (canvas.y > top) & (canvas.y < bottom + shift)
    weight = np.where(in_zone, np.clip(depth - 0.75, 0, None), 0).ravel()
    if weight.sum() == 0:
        weight = np.where(in_zone, depth, 0).ravel() ** 8
    pixel = int(np.searchsorted(np.cumsum(weight), rng.random() * weight.sum()))
    pixel = min(pixel, canvas.size**2 - 1)
    return float(canvas.x.flat[pixel]), float(canvas.y.flat[pixel])


# --- heart and chest shape: already drawn with the body, so mainly their masks -------------------


def _cardiomegaly(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    return (scene.heart > 0.5).astype(np.float32)


def _hyperinflation(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    scene.air = np.clip(scene.air * 1.06, 0, 1)
    scene.vessels = scene.vessels * 0.75
    lungs = np.max(list(scene.lungs.values()), axis=0)
    return (lungs > 0.5).astype(np.float32)


# --- pleura ------------------------------------------------------------------------------------

_LEVEL = {"mild": (0.045, 0.075), "moderate": (0.11, 0.18), "severe": (0.24, 0.38)}


def _effusion(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw fluid above the diaphragm, with a meniscus that is highest at the chest wall."""
    canvas, lung = scene.canvas, _lung(scene, side)
    low, high = _LEVEL[finding.degree]
    height = rng.uniform(low, high)
    bottom = 0.825 + scene.body.breath
    if scene.view == "frontal":
        out = (0.5 - canvas.x if side == "right" else canvas.x - 0.5) / 0.39
        rise = np.clip(out, 0, 1) ** 3.5 * 0.085 + np.clip(out, 0, 1) * 0.02
    else:
        out = np.clip((canvas.x - 0.45) / 0.37, 0, 1)
        rise, bottom = out**3 * 0.10, 0.85 + scene.body.breath
        height *= 0.85
    surface = bottom - height - rise
    fluid = np.clip((canvas.y - surface) / 0.016, 0, 1) * lung
    veil = np.clip((canvas.y - surface + 0.09) / 0.12, 0, 1) * lung
    scene.air = scene.air * (1 - 0.97 * fluid) * (1 - 0.22 * veil)
    scene.vessels = scene.vessels * (1 - 0.9 * fluid)
    return (fluid > 0.4).astype(np.float32)


_RIM = {"mild": (0.030, 0.045), "moderate": (0.055, 0.08), "severe": (0.11, 0.17)}


def _pneumothorax(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw a collapsed lung: a rim without vessels at the apex and wall, bounded by a thin line."""
    if scene.view == "lateral":
        return _empty_mask(scene)
    canvas, lung = scene.canvas, _lung(scene, side)
    rim = rng.uniform(*_RIM[finding.degree])
    outline = frontal.lung_outline(scene.body, side)
    hilum = np.array([0.45 if side == "right" else 0.55, 0.50])
    inward = hilum - outline
    distance = np.linalg.norm(inward, axis=1, keepdims=True)
    apical = np.clip((0.85 - outline[:, 1:]) / 0.7, 0, 1)  # air rises
    lateral = np.clip((np.abs(outline[:, :1] - 0.5) - 0.05) / 0.10, 0, 1)
    above = np.clip((0.80 - outline[:, 1:]) / 0.12, 0, 1)  # the base stays on the diaphragm
    shift = rim * (0.35 + 0.95 * apical) * lateral * above
    shrunk = outline + inward / distance * np.minimum(shift, 0.7 * distance)
    collapsed = canvas.fill(shrunk, blur=0.002)
    high = np.clip((0.76 - canvas.y) / 0.03, 0, 1)
    gap = np.clip(lung - collapsed, 0, 1) * high
    line = canvas.strokes([(np.concatenate([shrunk, shrunk[:1]]), 0.006, 1.0)], blur=0.0015)
    line = line * lung * high * np.clip(4 * canvas.soften(gap, 0.01), 0, 1)
    scene.vessels = scene.vessels * (1 - np.clip(gap * 1.5, 0, 1))
    scene.air = np.clip(scene.air * (1 + 0.13 * gap - 0.09 * collapsed), 0, 1)
    scene.dense = scene.dense + 0.13 * line
    return (gap > 0.5).astype(np.float32)


# --- lung --------------------------------------------------------------------------------------

_EXTENT = {"mild": (0.045, 0.06), "moderate": (0.065, 0.085), "severe": (0.095, 0.12)}


def _consolidation(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw filled air spaces: an uneven shadow with soft edges that hides the vessels."""
    canvas, lung = scene.canvas, _lung(scene, side)
    r = rng.uniform(*_EXTENT[finding.degree])
    x, y = _sample_point(scene, finding, side, 0.7 * r, rng)
    rx = r * rng.uniform(0.9, 1.3)
    distance = np.sqrt(((canvas.x - x) / rx) ** 2 + ((canvas.y - y) / r) ** 2)
    uneven = distance + 0.22 * _texture(scene, rng, 0.022) + 0.10 * _texture(scene, rng, 0.008)
    shade = np.clip(1.35 - uneven, 0, 1) * lung
    shade = canvas.soften(shade, 0.006)
    amount = rng.uniform(0.55, 0.8)
    scene.air = scene.air * (1 - amount * shade)
    scene.vessels = scene.vessels * (1 - 0.8 * shade)
    return (shade > 0.35).astype(np.float32)


def _nodule(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw a round soft-tissue shadow with the density profile of a ball."""
    canvas, r = scene.canvas, finding.size_mm * MM / 2
    x, y = _sample_point(scene, finding, side, 2 * r, rng)
    squash = rng.uniform(0.88, 1.12)
    distance = np.sqrt(((canvas.x - x) / (r * squash)) ** 2 + ((canvas.y - y) * squash / r) ** 2)
    ball = np.sqrt(np.clip(1 - distance**2, 0, 1))
    scene.dense = scene.dense + 0.36 * canvas.soften(ball, 0.0025)
    return (distance < 1).astype(np.float32)


def _granuloma(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw a small shadow that is as bright as bone and has sharp edges."""
    canvas, r = scene.canvas, finding.size_mm * MM / 2
    x, y = _sample_point(scene, finding, side, 0.03, rng)
    spots = [(x, y, r)]
    if rng.random() < 0.4:  # a second, smaller spot nearby
        angle = rng.uniform(0, 2 * np.pi)
        spots.append((x + 3 * r * np.cos(angle), y + 3 * r * np.sin(angle), 0.7 * r))
    mask = _empty_mask(scene)
    for sx, sy, sr in spots:
        spot = canvas.ellipse(sx, sy, sr, sr, edge=0.5)
        scene.dense = scene.dense + 0.75 * spot
        mask = np.maximum(mask, (spot > 0.2).astype(np.float32))
    return mask


def _atelectasis(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw horizontal bands at the base of the lung, above a raised diaphragm."""
    canvas, lung = scene.canvas, _lung(scene, side)
    level = 0.66 + scene.body.breath - scene.body.raised[side or "left"]
    bands = []
    for k in range(int(rng.integers(2, 4))):
        y = level + 0.028 * k + rng.uniform(-0.008, 0.008)
        tilt, bow = rng.uniform(-0.03, 0.03), rng.uniform(-0.012, 0.004)
        if scene.view == "frontal":
            x0, x1 = rng.uniform(0.13, 0.20), rng.uniform(0.36, 0.42)
        else:
            x0, x1 = rng.uniform(0.48, 0.55), rng.uniform(0.68, 0.76)
        line = np.array([(x0, y + tilt), ((x0 + x1) / 2, y + bow), (x1, y - tilt)])
        if scene.view == "frontal" and side == "left":
            line = mirrored(line)
            edge = 0.5 + 0.50 * scene.body.heart  # next to the heart, not over it
            line[:, 0] = 0.87 - (0.87 - line[:, 0]) * (0.87 - edge) / 0.29
        bands.append((line, rng.uniform(0.010, 0.017), 1.0))
    shade = canvas.strokes(bands, blur=0.003) * lung
    haze = canvas.soften(shade, 0.02)
    scene.dense = scene.dense + 0.30 * shade
    scene.air = scene.air * (1 - 0.35 * np.clip(haze * 1.5, 0, 1))
    return (shade > 0.3).astype(np.float32)


# --- bone --------------------------------------------------------------------------------------


def _fracture(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw one to three broken ribs, each with a displaced piece and callus around the break."""
    if scene.view == "lateral":
        return _empty_mask(scene)
    canvas, mask = scene.canvas, _empty_mask(scene)
    first, count = int(rng.integers(4, 8)), int(rng.integers(1, 4))
    for number in range(first, first + count):
        course = frontal.rib(number, side)
        center = course[3] * 0.45 + course[4] * 0.55 + rng.uniform(-0.006, 0.006, 2)
        along = course[5] - course[3]
        along = along / np.linalg.norm(along)
        across = np.array([-along[1], along[0]])
        step = 0.011 * np.sign(across[1])
        gap = np.array([center - 0.016 * across, center + 0.016 * across])
        piece = np.array([center + 0.006 * along, center + 0.045 * along]) + step * across
        scene.dense = scene.dense - 0.20 * canvas.strokes([(gap, 0.009, 1.0)], blur=0.0015)
        scene.dense = scene.dense + 0.13 * canvas.strokes([(piece, 0.020, 1.0)], blur=0.002)
        callus = canvas.ellipse(center[0], center[1], 0.019, 0.016, edge=0.8)
        scene.dense = scene.dense + 0.16 * callus * rng.uniform(0.7, 1.2)
        mask = np.maximum(mask, canvas.ellipse(center[0], center[1], 0.03, 0.03) > 0.5)
    return mask.astype(np.float32)


# --- devices -----------------------------------------------------------------------------------


def _pacemaker(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw a generator below the clavicle, with a lead via the vena cava to the right ventricle."""
    canvas = scene.canvas
    if scene.view == "lateral":
        x, y, rx, ry = 0.25, 0.27, 0.018, 0.05
        lead = [(0.26, 0.24), (0.40, 0.22), (0.46, 0.34), (0.43, 0.55), (0.34, 0.68)]
        leads: list[Points] = [np.array(lead)]
    else:
        x, y, rx, ry = 0.205 + rng.uniform(-0.02, 0.02), 0.225, 0.052, 0.043
        tip = 0.5 + scene.body.heart * 0.42, 0.745 + 0.7 * scene.body.breath
        path = [(x + 0.03, y - 0.03), (0.33, 0.135), (0.43, 0.165), (0.457, 0.28), (0.455, 0.47)]
        if side == "left":
            x = 1 - x
            path = [(x - 0.03, y - 0.03), (0.66, 0.135), (0.56, 0.16), (0.475, 0.22), (0.455, 0.47)]
        leads = [np.array([*path, (0.455, 0.63), (0.50, 0.71), tip])]
        if rng.random() < 0.6:  # a second lead, in the atrium
            atrium = [(0.457, 0.53), (0.448, 0.60), (0.435, 0.575)]
            leads.append(moved([*path, *atrium], 0.004, 0.002))
    box = canvas.fill(_rounded_box(x, y, rx, ry), blur=0.001)
    wires = canvas.strokes([(lead, 0.007, 1.0) for lead in leads], blur=0.001)
    inner = canvas.fill(_rounded_box(x, y, rx * 0.6, ry * 0.5), blur=0.002)
    scene.dense = scene.dense + 1.5 * box + 0.4 * inner + 0.75 * wires
    return (np.maximum(box, wires) > 0.4).astype(np.float32)


def _rounded_box(x: float, y: float, rx: float, ry: float) -> Points:
    angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    c, s = np.cos(angles), np.sin(angles)
    power = 0.55
    shape = np.stack([np.sign(c) * abs(c) ** power * rx, np.sign(s) * abs(s) ** power * ry], axis=1)
    return moved(shape, x, y)


def _catheter(scene: Scene, finding: Finding, side: Side, rng: np.random.Generator) -> Layer:
    """Draw a central venous catheter from the neck or the arm to the vena cava."""
    canvas = scene.canvas
    if scene.view == "lateral":
        line = np.array([(0.47, -0.02), (0.45, 0.12), (0.46, 0.25), (0.45, 0.38)])
    else:
        tip = (0.455 + rng.uniform(-0.004, 0.006), rng.uniform(0.36, 0.46))
        if rng.random() < 0.5:  # through the jugular vein
            from_right = [(0.425, -0.03), (0.43, 0.08), (0.445, 0.17)]
            from_left = [(0.575, -0.03), (0.57, 0.08), (0.545, 0.16), (0.48, 0.215)]
        else:  # from the arm
            from_right = [(-0.02, 0.30), (0.08, 0.20), (0.20, 0.145), (0.33, 0.145), (0.43, 0.175)]
            from_left = [(1.02, 0.30), (0.92, 0.20), (0.80, 0.145), (0.67, 0.145), (0.56, 0.17)]
            from_left += [(0.48, 0.215)]
        line = np.array([*(from_right if side == "right" else from_left), (0.453, 0.29), tip])
    wire = canvas.strokes([(line, 0.0085, 1.0)], blur=0.001)
    core = canvas.strokes([(line, 0.003, 1.0)])
    scene.dense = scene.dense + 0.50 * wire - 0.12 * core
    return (wire > 0.4).astype(np.float32)


_DRAW: dict[str, DrawFunction] = {
    "cardiomegaly": _cardiomegaly,
    "hyperinflation": _hyperinflation,
    "pleural_effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "nodule": _nodule,
    "calcified_granuloma": _granuloma,
    "atelectasis": _atelectasis,
    "fracture": _fracture,
    "pacemaker": _pacemaker,
    "catheter": _catheter,
}
