"""Shapes in the coordinates of the body -> layers of pixels.

Body coordinates run from 0 to 1 over the picture, x to the right of the picture, y down. A `Pose`
moves them to pixels, so everything drawn tilts, grows and shifts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Points = np.ndarray  # (n, 2) float, x and y
Layer = np.ndarray  # (H, W) float32, 0 to 1

_FINE = 2  # shapes are drawn so many times finer, then averaged


@dataclass(frozen=True)
class Pose:
    """How the body lies in the picture."""

    tilt: float = 0.0  # radians, clockwise
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def to_picture(self, points: Points) -> Points:
        """(n, 2) body coordinates -> (n, 2) fractions of the picture."""
        turned = (points - 0.5) @ self._turn * self.scale
        placed: Points = turned + 0.5 + self._shift
        return placed

    @cached_property
    def _turn(self) -> np.ndarray:
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        return np.array([[c, s], [-s, c]])

    @cached_property
    def _shift(self) -> np.ndarray:
        return np.array(self.shift)


class Canvas:
    """Draws anti-aliased layers of one size in one pose."""

    def __init__(self, size: int, pose: Pose) -> None:
        self.size, self.pose = size, pose
        axis = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        x, y = np.meshgrid(axis - pose.shift[0], axis - pose.shift[1])
        c, s = np.cos(pose.tilt), np.sin(pose.tilt)
        # Body coordinates of every pixel.
        self.x = ((c * x + s * y) / pose.scale + 0.5).astype(np.float32)
        self.y = ((c * y - s * x) / pose.scale + 0.5).astype(np.float32)

    def fill(self, *outlines: Points, blur: float = 0.0) -> Layer:
        """1 inside closed curves through the given points, 0 outside; `blur` softens the edge."""
        image, draw = self._sheet()
        for outline in outlines:
            draw.polygon(self._pixels(curve(outline, closed=True)), fill=255)
        return self.soften(self._layer(image), blur)

    def strokes(
        self, lines: Sequence[tuple[Points, float, float]], *, blur: float = 0.0, fine: int = 6
    ) -> Layer:
        """Curves of a width and a strength; where they cross, the stronger one shows.

        Args:
            lines: Points, width as a fraction of the picture, strength from 0 to 1.
            blur: Softens them.
            fine: Pieces between two points; 1 draws straight lines.
        """
        image, draw = self._sheet()
        lines = sorted(lines, key=lambda line: line[2])
        smooth = [curve(points, fine=fine) if fine > 1 else points for points, _, _ in lines]
        placed = self._pixels(np.concatenate(smooth)) if smooth else []
        start = 0
        for (_, width, strength), points in zip(lines, smooth, strict=True):
            pixels = placed[start : (start := start + len(points))]
            wide = max(round(width * self.pose.scale * self.size * _FINE), 1)
            joint = "curve" if wide > 4 and fine > 1 else None
            draw.line(pixels, fill=round(255 * strength), width=wide, joint=joint)
        return self.soften(self._layer(image), blur)

    def ellipse(self, x: float, y: float, rx: float, ry: float, *, edge: float = 0.15) -> Layer:
        """1 inside an ellipse, falling to 0 over the share `edge` of its radius."""
        far = np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2)
        inside: Layer = np.clip((1 + edge / 2 - far) / edge, 0, 1)
        return inside

    def soften(self, layer: Layer, blur: float) -> Layer:
        """Gaussian blur; `blur` is its standard deviation as a fraction of the picture."""
        sigma = blur * self.size
        if sigma < 0.3:
            return layer
        soft: Layer = gaussian_filter(layer, sigma, truncate=2.5, mode="nearest")
        return soft

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.size * _FINE, self.size * _FINE))
        return image, ImageDraw.Draw(image)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        placed = self.pose.to_picture(points) * (self.size * _FINE) - 0.5
        return list(map(tuple, placed.tolist()))

    def _layer(self, image: Image.Image) -> Layer:
        return np.asarray(image.reduce(_FINE), dtype=np.float32) / 255


def curve(points: Points, *, closed: bool = False, fine: int = 6) -> Points:
    """A smooth curve through all points (Catmull and Rom 1974), `fine` pieces between each two."""
    points = np.asarray(points, dtype=float)
    if len(points) < 3:
        return points
    if closed:
        ring = np.concatenate([points[-1:], points, points[:2]])
    else:
        ring = np.concatenate(
            [2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]]
        )
    a, b, c, d = ring[:-3, None], ring[1:-2, None], ring[2:-1, None], ring[3:, None]
    t, t2, t3 = _powers(fine)
    between = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t2 + (3 * b - a - 3 * c + d) * t3
    )
    smooth = between.reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, points[-1:]])


@lru_cache
def _powers(fine: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    t = (np.arange(fine) / fine)[:, None]
    return t, t**2, t**3


def mirrored(points: Points) -> Points:
    """The other side of the body: x becomes 1 - x."""
    turned: Points = np.asarray(points, dtype=float) * [-1, 1] + [1, 0]
    return turned


def moved(points: Points | Sequence[tuple[float, float]], dx: float, dy: float = 0.0) -> Points:
    """`points` shifted."""
    shifted: Points = np.asarray(points, dtype=float) + np.array([dx, dy])
    return shifted
