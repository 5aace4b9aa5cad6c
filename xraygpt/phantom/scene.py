"""The layers of an image and their combination into pixels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from xraygpt.phantom.body import Body
from xraygpt.phantom.canvas import Canvas, Layer

View = Literal["frontal", "lateral"]
MM = 1 / 380  # one millimetre as a fraction of the image size
_AERATION = 0.82  # fraction of a lung's depth that does not attenuate


@dataclass
class Scene:
    """Layers for one view; attenuation is in units of the chest's depth in soft tissue.

    Attributes:
        canvas: The canvas on which the layers are drawn.
        body: The body that is drawn.
        lungs: Mask of each lung by the patient's side; in the lateral view, only ``both``.
        heart: Mask of the heart.
        view: Frontal or lateral.
        depth: Depth of the body without its wall.
        wall: Skin, fat and muscle.
        air: Fraction of the depth that is aerated lung.
        vessels: Pulmonary vessels, which fluid and pneumothorax remove.
        gas: Gas in the windpipe and the stomach, which is subtracted.
        bones: Attenuation of bones, which is added.
        dense: Attenuation that findings add.
    """

    canvas: Canvas
    body: Body
    lungs: dict[str, Layer]
    heart: Layer
    view: View
    depth: Layer = field(default_factory=lambda: np.zeros(0))
    wall: Layer = field(default_factory=lambda: np.zeros(0))
    air: Layer = field(default_factory=lambda: np.zeros(0))
    vessels: Layer = field(default_factory=lambda: np.zeros(0))
    gas: Layer = field(default_factory=lambda: np.zeros(0))
    bones: Layer = field(default_factory=lambda: np.zeros(0))
    dense: Layer | float = 0.0

    def attenuation(self) -> Layer:
        """Return the attenuation integrated along the beam, before noise."""
        soft = self.depth * (1 - _AERATION * self.air) + 0.11 * self.vessels * self.air
        inside = np.clip(self.wall * 8, 0, 1)
        total: Layer = self.wall + soft - self.gas + (self.bones + self.dense) * inside
        return total

    def picture(self, rng: np.random.Generator) -> np.ndarray:
        """Return the image, uint8 of shape (H, W), with bright bones.

        The detector counts quanta, so the noise grows with the attenuation of the beam (Beer and
        Lambert). The reading is proportional to the logarithm of the exposure and is then windowed.
        """
        body, size = self.body, self.canvas.size
        total = self.attenuation()
        total = 0.93 * total + 0.07 * self.canvas.soften(total, 0.06)  # scatter
        noise = rng.standard_normal((size, size), dtype=np.float32)
        total = total + body.grain * np.exp(0.55 * total) * noise
        value = np.clip((total - 0.30 + body.bright) / 1.28 * body.contrast, 0, None)
        displayed = 1 - np.exp(-((1.12 * value) ** 1.05) * 1.5)  # shoulder of the display curve
        return np.clip(255 * displayed, 0, 255).astype(np.uint8)


def bounding_box(mask: Layer) -> list[float] | None:
    """Return [x0, y0, x1, y1] around a mask as fractions of the image size; None if it is empty."""
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    if not len(rows):
        return None
    h, w = mask.shape
    corners = columns[0] / w, rows[0] / h, (columns[-1] + 1) / w, (rows[-1] + 1) / h
    return [round(float(c), 4) for c in corners]
