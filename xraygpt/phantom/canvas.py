"""Draw shapes given in body coordinates as layers of pixels.

Body coordinates run from 0 to 1 over the image, with x to the right and y down. A `Pose` maps them
to pixels, so that everything drawn tilts, grows and shifts together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from PIL import Image, ImageDraw

Points = np.ndarray  # (n, 2) float, x and y
Layer = np.ndarray  # (H, W) float32, 0 to 1

_SUPERSAMPLING = 2  # shapes are drawn at this multiple of the size, then averaged


@dataclass(frozen=True)
class Pose:
    """Position of the body in the image."""

    tilt: float = 0.0  # radians, clockwise
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)

    def to_picture(self, points: Points) -> Points:
        """Convert body coordinates (n, 2) to fractions of the image size (n, 2)."""
        rotated = (points - 0.5) @ self._rotation * self.scale
        positions: Points = rotated + 0.5 + self._shift
        return positions

    @cached_property
    def _rotation(self) -> np.ndarray:
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
        """Return 1 inside closed curves through the points, 0 outside; for `blur`, see `soften`."""
        image, draw = self._new_image()
        for outline in outlines:
            draw.polygon(self._pixels(curve(outline, closed=True)), fill=255)
        return self.soften(self._layer(image), blur)

    def strokes(
        self, lines: Sequence[tuple[Points, float, float]], *, blur: float = 0.0, fine: int = 6
    ) -> Layer:
        """Draw curves; where they cross, the stronger one is visible.

        Args:
            lines: For each line, its points, its width as a fraction of the image size, and its
                strength from 0 to 1.
            blur: See `soften`.
            fine: Number of segments between two points; 1 draws straight lines.
        """
        image, draw = self._new_image()
        lines = sorted(lines, key=lambda line: line[2])
        smooth = [curve(points, fine=fine) if fine > 1 else points for points, _, _ in lines]
        positions = self._pixels(np.concatenate(smooth)) if smooth else []
        start = 0
        for (_, width, strength), points in zip(lines, smooth, strict=True):
            pixels = positions[start : (start := start + len(points))]
            pixel_width = max(round(width * self.pose.scale * self.size * _SUPERSAMPLING), 1)
            joint = "curve" if pixel_width > 4 and fine > 1 else None
            draw.line(pixels, fill=round(255 * strength), width=pixel_width, joint=joint)
        return self.soften(self._layer(image), blur)

    def ellipse(self, x: float, y: float, rx: float, ry: float, *, edge: float = 0.15) -> Layer:
        """Return 1 inside an ellipse, falling to 0 over the fraction `edge` of its radius."""
        distance = np.sqrt(((self.x - x) / rx) ** 2 + ((self.y - y) / ry) ** 2)
        inside: Layer = np.clip((1 + edge / 2 - distance) / edge, 0, 1)
        return inside

    def soften(self, layer: Layer, blur: float) -> Layer:
        """Apply a Gaussian blur; its standard deviation `blur` is a fraction of the image size."""
        sigma = blur * self.size
        if sigma < 0.3:
            return layer
        from scipy.ndimage import gaussian_filter  # takes a quarter of a second to import

        soft: Layer = gaussian_filter(layer, sigma, truncate=2.5, mode="nearest")
        return soft

    def _new_image(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.size * _SUPERSAMPLING, self.size * _SUPERSAMPLING))
        return image, ImageDraw.Draw(image)

    def _pixels(self, points: Points) -> list[tuple[float, float]]:
        positions = self.pose.to_picture(points) * (self.size * _SUPERSAMPLING) - 0.5
        return list(map(tuple, positions.tolist()))

    def _layer(self, image: Image.Image) -> Layer:
        return np.asarray(image.reduce(_SUPERSAMPLING), dtype=np.float32) / 255


def curve(points: Points, *, closed: bool = False, fine: int = 6) -> Points:
    """Return a smooth curve through all points (Catmull and Rom 1974), in `fine` steps each."""
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
    """Return the points on the other side of the body: x becomes 1 - x."""
    mirror: Points = np.asarray(points, dtype=float) * [-1, 1] + [1, 0]
    return mirror


def moved(points: Points | Sequence[tuple[float, float]], dx: float, dy: float = 0.0) -> Points:
    """Return `points` shifted by `dx` and `dy`."""
    shifted: Points = np.asarray(points, dtype=float) + np.array([dx, dy])
    return shifted
