"""Phantoms with boxes of regions, findings and sentences, seen through a random crop.

Without the crop, a region lies at nearly the same place in every image, and a model that answers
with its mean box scores well without looking. Here, an image is cropped, shifted, flipped and
scaled, so that positions must be read from it. Names follow the anatomy: in a flipped image, the
patient's left lung is on the left. A letter marks one side of every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xraygpt.common.checks import Checks
from xraygpt.media.geometry import MIRRORED, Box, Geometry, crop_geometry
from xraygpt.phantom.canvas import Layer
from xraygpt.phantom.corpus import SOURCE, Recipe, save_picture
from xraygpt.phantom.findings import KINDS, Finding
from xraygpt.phantom.grammar import grounded_sentences
from xraygpt.phantom.regions import region_boxes, regions_of
from xraygpt.phantom.render import Study, draw_scene
from xraygpt.phantom.scene import Scene, bounding_box

MIN_VISIBLE = 0.6  # share of a box that must be inside the image
_WHOLE = 0.9  # share of both lungs above which the normal anatomy is described, too
_SEARCHED = 0.75  # share of the regions of a finding that must be visible to call it absent
_DRAWN = 1.25  # images are drawn at this multiple of their size, then resampled


@dataclass(frozen=True)
class GroundedRecipe(Recipe):
    """Everything that determines the content of a corpus of grounded phantoms.

    Attributes:
        zoom: Smallest and largest side of the crop, as fractions of the image; a crop that is
            larger than the image adds black borders.
        shift: Largest distance of the crop's centre from the image's, as a fraction of the image.
        flips: Share of the images that are flipped.
    """

    zoom: tuple[float, float] = (0.72, 1.35)
    shift: float = 0.16
    flips: float = 0.5

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.include(super().__post_init__)
            low, high = self.zoom
            check.refuse(not 0.3 <= low <= high <= 3, "zoom", "must be two numbers in [0.3, 3]")
            check.fraction("shift", "flips")
            unsuited = self.design != "balanced" or self.texts != "grammar"
            check.refuse(unsuited, "design", "grounded phantoms are balanced, with own texts")
            check.refuse(self.views != ("frontal",), "views", "grounded phantoms are frontal")

    def write_study(self, folder: Path, number: int) -> dict[str, Any]:
        """Draw one study and return its row."""
        study, _, split = self.build_study(number)
        rng = Random(f"{self.seed}/{number}/view")
        image = draw_grounded(study, self.size, self.sample_view(rng), rng)
        name = f"{study.study_id}.png"
        save_picture(image.pixels, folder / "images" / name)
        return {
            "id": study.study_id, "split": split, "image": f"images/{name}",
            "width": self.size, "height": self.size, "flipped": image.flipped,
            "regions": {name: _rounded(box) for name, box in image.regions.items()},
            "findings": {n: [_rounded(b) for b in boxes] for n, boxes in image.findings.items()},
            "searched": image.searched, "complete": image.complete,
            "sentences": [[t, [_rounded(b) for b in boxes]] for t, boxes in image.sentences],
            "source": SOURCE,
        }  # fmt: skip

    def sample_view(self, rng: Random) -> Geometry:
        """Sample the map from the whole image to what is seen."""
        side = rng.uniform(*self.zoom)
        x, y = (0.5 + rng.uniform(-self.shift, self.shift) for _ in range(2))
        crop = crop_geometry(x - side / 2, y - side / 2, side, side)
        return MIRRORED.then(crop) if rng.random() < self.flips else crop


@dataclass(frozen=True)
class GroundedImage:
    """A phantom with its boxes on the image, [x0, y0, x1, y1] in [0, 1].

    Attributes:
        pixels: uint8 of shape (H, W).
        flipped: Whether left and right are exchanged.
        regions: Box by region, for regions of which enough is visible.
        findings: Boxes by finding; two for a finding on both sides.
        searched: Findings that are visible or absent. One that is cut off is neither, nor is one
            that may lie where the image does not reach.
        complete: Whether no finding is cut off.
        sentences: The report: (sentence, boxes), in order; a normal sentence has no box.
    """

    pixels: np.ndarray
    flipped: bool
    regions: dict[str, Box]
    findings: dict[str, list[Box]]
    searched: list[str]
    complete: bool
    sentences: list[tuple[str, list[Box]]]


def draw_grounded(study: Study, size: int, view: Geometry, rng: Random) -> GroundedImage:
    """Draw a study as it is seen through a view.

    Args:
        study: The study; its view is frontal.
        size: Height and width in pixels.
        view: Map from the whole image to what is seen.
        rng: Chooses the wording of the report and the side marker.
    """
    scene, masks, whole = draw_scene(study, "frontal", round(size * _DRAWN))
    pixels = resample(whole, view, size)
    flipped = view.a < 0
    _mark_side(pixels, flipped, rng)
    whole_regions = region_boxes(scene)
    regions = {
        name: seen
        for name, box in whole_regions.items()
        if (seen := view.map_box(box, MIN_VISIBLE)) is not None
    }
    visible: list[tuple[Finding, list[Box]]] = []
    cut_off: list[Finding] = []
    for finding, mask in zip(study.findings, masks, strict=True):
        boxes = [view.map_box(box, MIN_VISIBLE) for box in boxes_by_side(scene, finding, mask)]
        if all(box is not None for box in boxes):
            visible.append((finding, [box for box in boxes if box is not None]))
        elif any(view.map_box(box) for box in boxes_by_side(scene, finding, mask)):
            cut_off.append(finding)
    shown, partly = ({f.name for f in each} for each in ([f for f, _ in visible], cut_off))
    inside = {name for name, box in whole_regions.items() if view.map_box(box, _SEARCHED)}
    searched = [
        name
        for name in KINDS
        if name not in partly and (name in shown or inside.issuperset(regions_of(name)))
    ]
    return GroundedImage(
        pixels=pixels,
        flipped=flipped,
        regions=regions,
        findings={f.name: boxes for f, boxes in visible},
        searched=searched,
        complete=not cut_off,
        sentences=_report(scene, visible, cut_off, view, rng),
    )


def boxes_by_side(scene: Scene, finding: Finding, mask: Layer) -> list[list[float]]:
    """Return the boxes of a finding: one, or one for each side if it is bilateral.

    Fluid behind the heart is not visible, and so outside the box.
    """
    if finding.name == "pleural_effusion":
        mask = mask * (scene.heart <= 0.5)
    if finding.side != "bilateral":
        box = bounding_box(mask)
        return [] if box is None else [box]
    halves = (mask * (scene.canvas.x < 0.5), mask * (scene.canvas.x >= 0.5))
    return [box for half in halves if (box := bounding_box(half)) is not None]


def _report(
    scene: Scene,
    visible: Sequence[tuple[Finding, list[Box]]],
    cut_off: Sequence[Finding],
    view: Geometry,
    rng: Random,
) -> list[tuple[str, list[Box]]]:
    """Return the sentences of the report with their boxes.

    Normal anatomy is described only if both lungs are visible, and nothing is said that a finding
    outside the image would contradict.
    """
    findings = [finding for finding, _ in visible]
    described, _ = grounded_sentences(findings, rng)
    _, normal = grounded_sentences([*findings, *cut_off], rng)
    lungs = bounding_box(np.maximum(scene.lungs["left"], scene.lungs["right"]) > 0.5)
    if lungs is None or view.map_box(lungs, _WHOLE) is None:
        normal = []
    boxes = {id(finding): found for finding, found in visible}
    positive = [(text, boxes[id(finding)]) for finding, text in described]
    sentences = [*positive, *((text, []) for text in normal)]
    return sentences if rng.random() < 0.5 else [*sentences[len(positive) :], *positive]


def resample(pixels: np.ndarray, view: Geometry, size: int) -> np.ndarray:
    """Return what is seen through a view, uint8 (size, size); black outside the image.

    Args:
        pixels: The whole image, uint8 (H, W).
        view: Map from the whole image to what is seen.
        size: Height and width in pixels.
    """
    back, (height, width) = view.inverse(), pixels.shape
    # Pillow maps the centre of an output pixel (x + 0.5) to a position in the input.
    coefficients = (
        back.a * width / size, back.b * width / size, back.c * width,
        back.d * height / size, back.e * height / size, back.f * height,
    )  # fmt: skip
    image = Image.fromarray(pixels).transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC
    )
    return np.array(image)


def _mark_side(pixels: np.ndarray, flipped: bool, rng: Random) -> None:
    """Draw L or R at the side of the image that shows the patient's left or right."""
    size = len(pixels)
    letter = rng.choice("LR")
    at_left = (letter == "R") != flipped
    x = rng.uniform(0.02, 0.07) if at_left else rng.uniform(0.88, 0.93)
    image = Image.new("L", (size, size))
    font = ImageFont.load_default(size=max(size * rng.uniform(0.055, 0.07), 8))
    corner = (x * size, rng.uniform(0.02, 0.12) * size)
    ImageDraw.Draw(image).text(corner, letter, fill=rng.randint(225, 255), font=font)
    np.maximum(pixels, np.asarray(image), out=pixels)


def _rounded(box: Box) -> list[float]:
    return [round(value, 5) for value in box]
