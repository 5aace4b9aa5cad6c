"""Affine maps between an original image and its processed version.

Coordinates are normalised, so that they do not depend on resolution: (0, 0) is the top left corner
of an image, and (1, 1) is its bottom right corner.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """An affine map of normalised coordinates: x' = a x + b y + c, y' = d x + e y + f."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def map_point(self, x: float, y: float) -> tuple[float, float]:
        """Map a point on the original; the result is outside [0, 1] if it was cropped away."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def then(self, other: Geometry) -> Geometry:
        """Return this map followed by `other`."""
        a, d = other.a * self.a + other.b * self.d, other.d * self.a + other.e * self.d
        b, e = other.a * self.b + other.b * self.e, other.d * self.b + other.e * self.e
        c, f = other.map_point(self.c, self.f)
        return Geometry(a, b, c, d, e, f)

    def inverse(self) -> Geometry:
        """Return the map from the processed image back to the original."""
        det = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Geometry(
            a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f)
        )  # fmt: skip

    def map_box(self, box: Sequence[float], min_visible: float = 0.0) -> Box | None:
        """Map a box and return its axis-aligned bounding box, clipped to the image.

        Args:
            box: x0, y0, x1, y1 on the original.
            min_visible: Fraction of the mapped box's area, in [0, 1], that must remain inside the
                image.

        Returns:
            x0, y0, x1, y1 in [0, 1], or None if nothing or less than `min_visible` remains.
        """
        x0, y0, x1, y1 = box
        corners = [self.map_point(x, y) for x in (x0, x1) for y in (y0, y1)]
        xs, ys = zip(*corners, strict=True)
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        clipped = (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0))
        width, height = clipped[2] - clipped[0], clipped[3] - clipped[1]
        area = (right - left) * (bottom - top)
        if width <= 0 or height <= 0 or width * height < min_visible * area:
            return None
        return clipped

    def map_boxes(
        self, boxes: Iterable[Sequence[float]], min_visible: float = 0.0
    ) -> list[Box | None]:
        """Map several boxes with `map_box`."""
        return [self.map_box(box, min_visible) for box in boxes]


def crop_geometry(left: float, top: float, width: float, height: float) -> Geometry:
    """Return the map from an image to a crop, given in the image's normalised coordinates.

    A crop larger than the image pads it.
    """
    return Geometry(1 / width, 0.0, -left / width, 0.0, 1 / height, -top / height)


MIRRORED = Geometry(-1.0, 0.0, 1.0)
"""Swaps left and right."""


def rotation(degrees: float) -> Geometry:
    """Return the rotation of a square about its centre, counter-clockwise as in torchvision."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # y points down, so a counter-clockwise rotation is (cos, sin; -sin, cos).
    return Geometry(
        cos, sin, 0.5 - 0.5 * cos - 0.5 * sin, -sin, cos, 0.5 + 0.5 * sin - 0.5 * cos
    )  # fmt: skip
