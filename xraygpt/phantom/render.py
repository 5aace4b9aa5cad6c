"""Render the images of a study, with a mask and a box for every finding."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from xraygpt.phantom import frontal, lateral, lesions
from xraygpt.phantom.body import sample_body
from xraygpt.phantom.canvas import Layer
from xraygpt.phantom.findings import Finding
from xraygpt.phantom.scene import Scene, View, bounding_box

VIEWS: tuple[View, ...] = ("frontal", "lateral")


@dataclass(frozen=True)
class Study:
    """A study to draw; equal studies produce bit-identical images.

    Attributes:
        study_id: Identifies the study; also part of the seed.
        findings: The findings in the order in which they are drawn.
        seed: Seed for the body, the technique and everything that the findings do not determine.
    """

    study_id: str
    findings: tuple[Finding, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Picture:
    """One rendered view.

    Attributes:
        pixels: uint8 of shape (H, W), with bright bones.
        view: Frontal or lateral.
        masks: For each finding, a float32 mask (H, W) of 0 and 1; all zeros if this view does not
            show the finding.
        boxes: For each finding, [x0, y0, x1, y1] as fractions of the image size, or None.
    """

    pixels: np.ndarray
    view: View
    masks: list[Layer] = field(repr=False)
    boxes: list[list[float] | None]


def render(study: Study, view: View = "frontal", size: int = 224) -> Picture:
    """Draw one view of a study.

    Args:
        study: The study to draw.
        view: ``frontal`` (PA) or ``lateral`` (the patient faces left).
        size: Height and width in pixels, at least 32.

    Raises:
        ValueError: If `size` is too small or `view` is unknown.
    """
    if size < 32:
        raise ValueError(f"size ({size}) must be at least 32")
    if view not in VIEWS:
        raise ValueError(f"unknown view '{view}'; choose one of {', '.join(VIEWS)}")
    scene, masks, pixels = draw_scene(study, view, size)
    _mark_side(pixels, scene, make_rng(study, f"{view}/marker"))
    return Picture(pixels, view, masks, [bounding_box(m) for m in masks])


def draw_scene(study: Study, view: View, size: int) -> tuple[Scene, list[Layer], np.ndarray]:
    """Draw one view without a side marker.

    Returns:
        The scene; the mask of each finding, see `Picture.masks`; and the pixels, uint8 (H, W).
    """
    body = sample_body(make_rng(study, "body"), study.findings, lateral=view == "lateral")
    draw = frontal.draw if view == "frontal" else lateral.draw
    scene = draw(body, size, make_rng(study, view))
    masks = [
        lesions.draw_finding(scene, finding, make_rng(study, f"{view}/{i}"))
        for i, finding in enumerate(study.findings)
    ]
    return scene, masks, scene.picture(make_rng(study, f"{view}/noise"))


def make_rng(study: Study, purpose: str) -> np.random.Generator:
    """Return an independent generator per purpose, so that a finding does not change the ribs."""
    key = zlib.crc32(f"{study.study_id}/{purpose}".encode())
    return np.random.default_rng([study.seed, key])


def _mark_side(pixels: np.ndarray, scene: Scene, rng: np.random.Generator) -> None:
    """Draw the letter that marks the side, at a random position, as departments differ in this."""
    size = len(pixels)
    letter, x = (
        ("L", rng.uniform(0.90, 0.95)) if rng.random() < 0.5 else ("R", rng.uniform(0.03, 0.07))
    )
    if scene.view == "lateral":
        letter, x = "L", rng.uniform(0.04, 0.09)
    image = Image.new("L", (size, size))
    font = ImageFont.load_default(size=max(size * rng.uniform(0.05, 0.065), 6))
    corner = (x * size - size * 0.02, rng.uniform(0.02, 0.10) * size)
    ImageDraw.Draw(image).text(corner, letter, fill=round(rng.uniform(215, 255)), font=font)
    np.maximum(pixels, np.asarray(image), out=pixels)
