"""Where a point of the original picture lies in the processed one.

Coordinates are normalised: (0, 0) is the top left corner, (1, 1) the bottom right one, of whichever
picture is meant, so that a change of resolution changes nothing.
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

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the original lies; outside [0, 1] if it was cut away."""
        return self.a * x + self.b * y + self.c, self.d * x + self.e * y + self.f

    def then(self, other: Geometry) -> Geometry:
        """This map followed by `other`."""
        a, d = other.a * self.a + other.b * self.d, other.d * self.a + other.e * self.d
        b, e = other.a * self.b + other.b * self.e, other.d * self.b + other.e * self.e
        c, f = other.point(self.c, self.f)
        return Geometry(a, b, c, d, e, f)

    def inverse(self) -> Geometry:
        """From the processed picture back to the original."""
        det = self.a * self.e - self.b * self.d
        a, b, d, e = self.e / det, -self.b / det, -self.d / det, self.a / det
        return Geometry(
            a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f)
        )  # fmt: skip

    def box(self, box: Sequence[float], least: float = 0.0) -> Box | None:
        """The upright box around a mapped box, clipped to the picture.

        Args:
            box: x0, y0, x1, y1 on the original.
            least: Share of the mapped box's area that must remain inside the picture, in [0, 1].

        Returns:
            x0, y0, x1, y1 in [0, 1]; None where less than `least`, or nothing, is left of it.
        """
        x0, y0, x1, y1 = box
        corners = [self.point(x, y) for x in (x0, x1) for y in (y0, y1)]
        xs, ys = zip(*corners, strict=True)
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        kept = (max(left, 0.0), max(top, 0.0), min(right, 1.0), min(bottom, 1.0))
        width, height = kept[2] - kept[0], kept[3] - kept[1]
        area = (right - left) * (bottom - top)
        if width <= 0 or height <= 0 or width * height < least * area:
            return None
        return kept

    def boxes(self, boxes: Iterable[Sequence[float]], least: float = 0.0) -> list[Box | None]:
        """`box` of each."""
        return [self.box(one, least) for one in boxes]


def window_of(left: float, top: float, width: float, height: float) -> Geometry:
    """The map of a picture to a window of it, given in the picture's normalised coordinates.

    A window larger than the picture is padding.
    """
    return Geometry(1 / width, 0.0, -left / width, 0.0, 1 / height, -top / height)


MIRRORED = Geometry(-1.0, 0.0, 1.0)
"""Left and right exchanged."""


def rotation(degrees: float) -> Geometry:
    """A turn of a square picture about its middle, counter-clockwise as torchvision turns it."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # y points down, so a counter-clockwise turn is (cos, sin; -sin, cos).
    return Geometry(
        cos, sin, 0.5 - 0.5 * cos - 0.5 * sin, -sin, cos, 0.5 + 0.5 * sin - 0.5 * cos
    )  # fmt: skip
