"""Find the ultrasound sector in a picture, so that everything else can be blackened.

Inside the sector, speckle and tissue change from frame to frame; text, logos, scales and the
background do not. An ECG trace changes too, but it is a thin line, whose pixels are bright in a few
frames only. What is left of it, such as its baseline, is removed by an opening. The
sector is the convex hull of what remains, since the fans, trapezoids and rectangles of scanners are
convex, except for the arc of a curved probe at their top. In a still image, and in a clip in which
nothing moves, the sector is the largest area that differs densely from the background.

A valid region table bounds the sector, as its rectangles have text in their corners, too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from xraygpt.ultrasound.clip import Clip, luminance
from xraygpt.ultrasound.regions import Region

_SHORT_SIDE = 300  # pixels of the picture in which the sector is sought
_FRAMES = 48  # from which the change is measured
_MOVING = 0.8  # standard deviation over time, in grey levels of 255
_LIT, _RARELY, _TRACE = 24, 0.2, 12.0  # grey level, fraction of the frames, standard deviation
_LINE = 0.008  # of the short side: largest thickness of a trace
_SMOOTHING = 5  # pixels over which the variance is averaged
_DIFFERENT = 4  # grey levels from the background of a still image
_DENSE = 0.6  # of the neighbourhood: lines of text are less dense
_NEIGHBOURHOOD = 0.06  # of the short side
_CLOSING, _OPENING = 0.005, 0.016  # radii, relative to the short side
_PART_AREA, _PART_HEIGHT = 0.05, 0.15  # of the largest part, of the short side; others are left out
_PLAUSIBLE = (0.04, 0.98)  # of the picture


@dataclass(frozen=True)
class Sector:
    """Where the ultrasound picture is.

    Attributes:
        mask: Bool (H, W), true inside.
        source: How it was found: region table, motion, brightness, several of these, or none.
    """

    mask: np.ndarray
    source: str

    @property
    def share(self) -> float:
        """Fraction of the picture that is inside."""
        return float(self.mask.mean())


def find_sector(clip: Clip) -> Sector:
    """Find the sector of a clip or a still image; without one, the mask is true everywhere.

    Regions of the table that show an M-mode or a Doppler spectrum are part of the mask.
    """
    height, width = clip.size
    found = _by_content(clip.pixels)
    if not clip.regions.sectors:
        return found or Sector(np.ones((height, width), bool), "none")
    mask = np.zeros((height, width), bool)
    source = "region table"
    for region in clip.regions.regions:
        if not (region.is_sector or region.spatial_format in ("M-mode", "spectral")):
            continue
        x0, y0, x1, y1 = region.box
        refined = _inside(clip, region) if region.is_sector and not clip.is_still else None
        mask[y0:y1, x0:x1] |= True if refined is None else refined
        source = source if refined is None else "region table and motion"
    return Sector(mask, source)


def _inside(clip: Clip, region: Region) -> np.ndarray | None:
    """Return the part of a region that moves, or None if that is not plausible."""
    x0, y0, x1, y1 = region.box
    found = _by_content(clip.pixels[:, y0:y1, x0:x1])
    return found.mask if found is not None and found.source == "motion" else None


def _by_content(pixels: np.ndarray) -> Sector | None:
    """Find the sector by motion, or else by brightness; None if there is none."""
    if len(pixels) > 2:
        mask = _hull_of_parts(_shrink(_changes(pixels) > _MOVING), pixels.shape[1:3])
        if mask is not None:
            return Sector(mask, "motion")
    picture = luminance(pixels[len(pixels) // 2])
    mask = _hull_of_parts(_dense_part(picture), pixels.shape[1:3])
    return None if mask is None else Sector(mask, "brightness")


def _changes(pixels: np.ndarray) -> np.ndarray:
    """Return the standard deviation over time around each pixel, float32 (H, W).

    It is 0 where a pixel is black except in a few frames, in which it belongs to a thin line: a
    trace that moves over the background.
    """
    from scipy import ndimage

    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(_FRAMES, len(pixels))).astype(int))
    total = np.zeros(pixels.shape[1:3], np.float64)
    squares, lit = np.zeros_like(total), np.zeros_like(total)
    solid = np.zeros(total.shape, bool)
    thick = 1 + round(_LINE * min(total.shape))
    for index in chosen:
        frame = luminance(pixels[index])
        is_lit = frame > _LIT
        lit += is_lit
        solid |= ndimage.grey_opening(is_lit.view(np.uint8), thick).view(bool)
        total += frame
        squares += frame.astype(np.float64) ** 2
    variance = np.maximum(squares / len(chosen) - (total / len(chosen)) ** 2, 0)
    is_trace = ~solid & (lit <= _RARELY * len(chosen)) & (variance > _TRACE**2)
    variance[is_trace] = 0
    return np.sqrt(ndimage.uniform_filter(variance, _SMOOTHING).clip(0)).astype(np.float32)


def _dense_part(picture: np.ndarray) -> np.ndarray:
    """Return where most of the neighbourhood differs from the background, in a smaller picture.

    The background is the most frequent grey level.

    Args:
        picture: uint8 (H, W).
    """
    from scipy import ndimage

    background = int(np.bincount(picture.ravel(), minlength=256).argmax())
    differs = _shrink(np.abs(picture.astype(np.int16) - background) > _DIFFERENT)
    size = 2 * round(min(differs.shape) * _NEIGHBOURHOOD / 2) + 1
    dense: np.ndarray = ndimage.uniform_filter(differs.astype(np.float32), size) > _DENSE
    return dense


def _step(shape: tuple[int, ...]) -> int:
    """Return how many pixels become one in the smaller picture."""
    return max(1, round(min(shape) / _SHORT_SIDE))


def _shrink(mask: np.ndarray) -> np.ndarray:
    """Return which blocks of pixels are at least half true."""
    step = _step(mask.shape)
    height, width = (-(-n // step) * step for n in mask.shape)
    padded = np.zeros((height, width), np.float32)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(height // step, step, width // step, step)
    half: np.ndarray = blocks.mean(axis=(1, 3)) >= 0.5
    return half


def _hull_of_parts(small: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the convex hull of the large parts of a mask; None if it is not plausible.

    Args:
        small: Bool, the mask in the smaller picture.
        shape: Height and width of the picture.
    """
    from scipy import ndimage

    side = min(small.shape)
    pad = 1 + round(side * _CLOSING)
    closed = ndimage.binary_closing(np.pad(small, pad), _disc(side * _CLOSING))
    opened = ndimage.binary_opening(closed[pad:-pad, pad:-pad], _disc(side * _OPENING))
    labels, count = ndimage.label(opened)
    if not count:
        return None
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    heights = np.array([rows.stop - rows.start for rows, _ in ndimage.find_objects(labels)])
    is_part = (areas >= _PART_AREA * areas.max()) & (heights >= _PART_HEIGHT * side)
    if not is_part.any():
        return None
    mask = _hull(np.isin(labels, np.flatnonzero(is_part) + 1), _step(shape), shape)
    low, high = _PLAUSIBLE
    return mask if low <= mask.mean() <= high else None


def _disc(radius: float) -> np.ndarray:
    size = max(1, round(radius))
    y, x = np.ogrid[-size : size + 1, -size : size + 1]
    disc: np.ndarray = x**2 + y**2 <= size**2 + 0.5
    return disc


def _hull(part: np.ndarray, step: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the convex hull of blocks of step × step pixels, in a picture of the given shape."""
    from PIL import Image, ImageDraw
    from scipy.spatial import ConvexHull

    rows, columns = np.nonzero(part)
    corners = np.concatenate(
        [np.stack([columns + i, rows + j], axis=1) for i in (0, 1) for j in (0, 1)]
    )
    outline = np.minimum(corners[ConvexHull(corners).vertices] * step, [shape[1], shape[0]])
    canvas = Image.new("1", (shape[1], shape[0]))
    ImageDraw.Draw(canvas).polygon([(int(x), int(y)) for x, y in outline], fill=1)
    return np.asarray(canvas)
