"""Anatomical regions of a frontal phantom: the 29 regions of Chest ImaGenome (Wu et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from xraygpt.phantom import frontal
from xraygpt.phantom.canvas import Layer
from xraygpt.phantom.findings import Side
from xraygpt.phantom.scene import Scene, bounding_box

# Levels in body coordinates, as for the zones in which findings are drawn.
_APEX, _UPPER, _MIDDLE = 0.155, 0.335, 0.525
_CARINA = 0.345
_SIDES: tuple[Side, ...] = ("right", "left")
# Finding -> the regions that a reader searches for it, on both sides; otherwise both lungs.
_SEARCHED: dict[str, tuple[str, ...]] = {
    "cardiomegaly": ("cardiac silhouette",),
    "pleural_effusion": ("right lower lung zone", "left lower lung zone"),
    "atelectasis": ("right lower lung zone", "left lower lung zone"),
    "pacemaker": ("right upper lung zone", "left upper lung zone"),
    "catheter": ("right upper lung zone", "left upper lung zone"),
}


def regions_of(finding: str) -> tuple[str, ...]:
    """Return the regions that must be visible before a kind of finding can be called absent."""
    return _SEARCHED.get(finding, ("right lung", "left lung"))


def region_masks(scene: Scene) -> dict[str, Layer]:
    """Return a mask, bool (H, W), of each of the 29 regions; sides are the patient's."""
    masks = dict(_paired(scene))
    masks.update(_central(scene))
    return masks


def region_boxes(scene: Scene) -> dict[str, list[float]]:
    """Return [x0, y0, x1, y1] of each region as fractions of the image size.

    A region that the image does not show at all is left out.
    """
    boxes = {name: bounding_box(mask) for name, mask in region_masks(scene).items()}
    return {name: box for name, box in boxes.items() if box is not None}


def _paired(scene: Scene) -> Iterator[tuple[str, Layer]]:
    """Yield the regions that exist on both sides."""
    x, y, body = scene.canvas.x, scene.canvas.y, scene.body
    for side in _SIDES:
        lung = scene.lungs[side] > 0.5
        # Distance from the midline towards this side.
        out = 0.5 - x if side == "right" else x - 0.5
        yield f"{side} lung", lung
        yield f"{side} apical zone", lung & (y < _APEX)
        yield f"{side} upper lung zone", lung & (y < _UPPER)
        yield f"{side} mid lung zone", lung & (y >= _UPPER) & (y < _MIDDLE)
        yield f"{side} lower lung zone", lung & (y >= _MIDDLE)
        hilum = (0.068, 0.445) if side == "right" else (0.072, 0.425)
        yield f"{side} hilar structures", _oval(out, y, *hilum, 0.052, 0.095)
        outline = frontal.lung_outline(body, side)
        dome, angle = outline[7:13], outline[13]
        tip = float(abs(angle[0] - 0.5)), float(angle[1])
        yield f"{side} costophrenic angle", _oval(out, y, tip[0] - 0.02, tip[1] - 0.035, 0.05, 0.05)
        ends = np.abs(dome[:, 0] - 0.5)
        within = (out > ends.min()) & (out < ends.max())
        yield (
            f"{side} hemidiaphragm",
            within & (y > dome[:, 1].min() - 0.012) & (y < dome[:, 1].max() + 0.012),
        )
        turn = 0.03 * body.rotation * (-1 if side == "right" else 1)
        clavicle = (out - turn > 0.045) & (out - turn < 0.39) & (y > 0.065) & (y < 0.171)
        yield f"{side} clavicle", clavicle


def _central(scene: Scene) -> Iterator[tuple[str, Layer]]:
    """Yield the regions of the midline, and the abdomen."""
    canvas, body = scene.canvas, scene.body
    x, y = canvas.x, canvas.y
    shift = 0.02 * body.rotation
    heart = frontal.heart_outline(body)
    top, bottom = float(heart[1, 1]) + 0.03, float(heart[:, 1].max())
    left, right = float(heart[:, 0].max()), float(heart[:, 0].min())
    silhouette = (scene.heart > 0.5) & (y > top)
    centre = x - shift
    yield "trachea", (np.abs(centre - 0.498) < 0.021) & (y > 0) & (y < _CARINA)
    yield "carina", _oval(centre, y, 0.503, _CARINA + 0.005, 0.04, 0.03)
    yield "spine", np.abs(x - 0.5) < 0.055
    yield "upper mediastinum", (centre > 0.448) & (centre < 0.582) & (y > 0.0) & (y < 0.385)
    middle = (centre > 0.448) & (centre < 0.582) & (y > 0.0) & (y < bottom)
    yield "mediastinum", middle | silhouette
    yield "cardiac silhouette", silhouette
    yield "aortic arch", _oval(centre, y, 0.562, 0.30, 0.026, 0.056)
    yield "svc", (centre > 0.446) & (centre < 0.478) & (y > 0.20) & (y < 0.41)
    yield "right atrium", (x >= right) & (x < 0.468 + shift) & (y > 0.515) & (y < 0.70)
    yield "cavoatrial junction", _oval(x, y, right + 0.025, 0.50, 0.032, 0.032)
    domes = min(float(frontal.lung_outline(body, side)[7:12, 1].min()) for side in _SIDES)
    yield "abdomen", (y > domes) & (x > 0.03) & (x < 0.97)
    assert left > right


def _oval(x: Layer, y: Layer, cx: float, cy: float, rx: float, ry: float) -> Layer:
    inside: Layer = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1
    return inside
