"""Boxes normalised to the original image, and their conversion from pixels.

Everywhere in this project, a box is (x_min, y_min, x_max, y_max) in [0, 1]: fractions of the width
and height of the original image, from its upper left corner. Such a box stays the same when an
image is resized, also if its aspect ratio changes; `media.geometry` maps it through crops, padding
and flips.
"""

from __future__ import annotations

from collections.abc import Sequence

from xraygpt.common.errors import DataError
from xraygpt.media.geometry import Box

TOLERANCE = 1e-3  # of the width or height: rounding in annotation files


def from_corners(
    corners: Sequence[float], width: float, height: float, tolerance: float = TOLERANCE
) -> Box:
    """Normalise a box given by two corners in pixels.

    Args:
        corners: x_min, y_min, x_max, y_max in pixels.
        width: Width of the image on which the box was drawn, in pixels.
        height: Its height.
        tolerance: How far a box may leave the image, as a fraction of its width or height; what is
            outside is cut off.

    Raises:
        DataError: The box is empty, has its corners swapped, or leaves the image.
    """
    if not (width > 0 and height > 0):
        raise DataError(f"the image of a box has the size {width} x {height}")
    x_min, y_min, x_max, y_max = corners
    box = (x_min / width, y_min / height, x_max / width, y_max / height)
    return check_box(box, tolerance)


def from_extent(extent: Sequence[float], width: float, height: float) -> Box:
    """Normalise a box given by its upper left corner, width and height in pixels (as in COCO).

    Raises:
        DataError: See `from_corners`.
    """
    x, y, w, h = extent
    return from_corners((x, y, x + w, y + h), width, height)


def to_corners(box: Sequence[float], width: float, height: float) -> Box:
    """Return a box in pixels of an image of this size, not rounded."""
    return box[0] * width, box[1] * height, box[2] * width, box[3] * height


def to_extent(box: Sequence[float], width: float, height: float) -> Box:
    """Return x, y, width and height in pixels, as in COCO, not rounded."""
    x_min, y_min, x_max, y_max = to_corners(box, width, height)
    return x_min, y_min, x_max - x_min, y_max - y_min


def check_box(box: Sequence[float], tolerance: float = TOLERANCE) -> Box:
    """Return a normalised box, cut at the borders of the image.

    Raises:
        DataError: The box is empty, has its corners swapped, or leaves the image by more than
            `tolerance`.
    """
    x_min, y_min, x_max, y_max = box
    if not (x_min < x_max and y_min < y_max):
        raise DataError(
            f"the box {_shown(box)} is empty or has its corners swapped; expected (x_min, y_min, "
            "x_max, y_max)"
        )
    if min(box) < -tolerance or max(box) > 1 + tolerance:
        raise DataError(
            f"the box {_shown(box)} leaves the image; coordinates are fractions of the width and "
            "height of the original image"
        )
    cut = (max(x_min, 0.0), max(y_min, 0.0), min(x_max, 1.0), min(y_max, 1.0))
    if not (cut[0] < cut[2] and cut[1] < cut[3]):
        raise DataError(f"the box {_shown(box)} is outside the image")
    return cut


def _shown(box: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in box) + ")"
