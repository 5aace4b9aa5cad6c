"""A cine of all slices with contours, as an mp4 file."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from scipy import ndimage

from xraygpt.cardiac.figures import COLOURS, OUTLINES
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels, heart_region
from xraygpt.common.requirements import INSTALL_CMR
from xraygpt.media.video import encode_mp4, import_av
from xraygpt.studies.report import NOTICE

TILE = 224
"""Height and width of a slice in pixels."""
DEFAULT_DURATION = 1.0
"""Duration of a heartbeat in s if it is unknown."""
_FOOTER = 20  # pixels
_BEATS = 3  # heartbeats in the file, for players that do not repeat it


def encode_cine(stack: Stack, labelled: StackLabels, notice: str = NOTICE) -> bytes:
    """Encode all phases as H.264 in mp4, at the speed of the heart.

    Args:
        stack: A short-axis cine.
        labelled: Its label maps; phases without them have no contours.
        notice: Text below the slices.

    Raises:
        InputError: PyAV is not installed.
        DataError: An image cannot be read.
    """
    import_av(INSTALL_CMR)
    frames = cine_frames(stack, labelled, notice)
    intervals = stack.rr_intervals
    duration = DEFAULT_DURATION if intervals is None else float(intervals.mean())
    rate = Fraction(len(frames) / duration).limit_denominator(1000)
    return encode_mp4(list(frames) * _BEATS, rate)


def cine_frames(stack: Stack, labelled: StackLabels, notice: str = NOTICE) -> np.ndarray:
    """Return (T, H, W, 3) uint8 frames with all slices side by side, cropped to the heart.

    The notice is written below the slices.
    """
    rows, columns = crop_to_heart(labelled)
    across = min(stack.slices, math.ceil(math.sqrt(stack.slices * 1.5)))
    down = math.ceil(stack.slices / across)
    height, width = down * TILE + _FOOTER, across * TILE
    frames = np.zeros((stack.phases, height, width, 3), np.uint8)
    frames[:, down * TILE :] = _footer(width, notice)
    index = {int(phase): t for t, phase in enumerate(labelled.phases)}
    for i in range(stack.slices):
        grey = read_grey(stack, i, rows, columns)
        top, left = divmod(i, across)
        for phase, one in enumerate(grey):
            labels = np.zeros(one.shape, np.uint8)
            if phase in index:
                labels = labelled.labels[index[phase], i][rows, columns]
            tile = draw_tile(one, labels)
            frames[phase, top * TILE : (top + 1) * TILE, left * TILE : (left + 1) * TILE] = tile
    return frames


def crop_to_heart(labelled: StackLabels) -> tuple[slice, slice]:
    """Return the rows and columns of the heart in all phases and slices, with a margin."""
    region = heart_region(labelled.labels.reshape(-1, *labelled.labels.shape[2:]), margin=0.25)
    if region is None:
        return slice(None), slice(None)
    return slice(region.top, region.bottom), slice(region.left, region.right)


def _footer(width: int, notice: str) -> np.ndarray:
    """Return (_FOOTER, width, 3) uint8 with the notice."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, _FOOTER))
    ImageDraw.Draw(image).text((6, 4), notice, fill=(200, 200, 200))
    return np.asarray(image)


def read_grey(stack: Stack, index: int, rows: slice, columns: slice) -> np.ndarray:
    """Return (T, H, W) values in [0, 1] of a part of all phases of a slice, brightness adjusted.

    Raises:
        DataError: An image cannot be read.
    """
    images = np.stack([stack.image(p, index)[rows, columns] for p in range(stack.phases)])
    low, high = np.percentile(images, (1, 99.5))
    grey: np.ndarray = np.clip((images - low) / max(high - low, 1e-6), 0, 1)
    return grey


def draw_tile(grey: np.ndarray, labels: np.ndarray, size: int = TILE) -> np.ndarray:
    """Return a (size, size, 3) uint8 picture of an image with the contours of its label map.

    Args:
        grey: (H, W) in [0, 1].
        labels: (H, W).
        size: Height and width; the image keeps its aspect ratio.
    """
    from PIL import ImageColor

    resized = enlarge(grey, size)
    height, width = resized.shape
    pixels = np.repeat(resized[..., None], 3, axis=2)
    edges = draw_edges(labels, height, width)
    for i, (name, _) in enumerate(OUTLINES):
        pixels[edges == i + 1] = ImageColor.getrgb(COLOURS[name])
    tile = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    tile[top : top + height, left : left + width] = pixels
    return tile


def enlarge(grey: np.ndarray, size: int) -> np.ndarray:
    """Return an image (H, W) with values in [0, 1] as uint8, its longer side `size` pixels."""
    from PIL import Image

    scale = size / max(grey.shape)
    height, width = (max(1, round(n * scale)) for n in grey.shape)
    image = Image.fromarray((grey * 255).astype(np.uint8))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def draw_edges(labels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return (height, width) uint8: 0, or the position in `OUTLINES`, from 1, of a contour."""
    from PIL import Image

    edges = np.zeros((height, width), np.uint8)
    for i, (_, values) in enumerate(OUTLINES):
        mask = np.isin(labels, values).astype(np.uint8) * 255
        if mask.any():
            large = Image.fromarray(mask).resize((width, height), Image.Resampling.BILINEAR)
            inside = np.asarray(large) > 127
            edges[inside & ~ndimage.binary_erosion(inside)] = i + 1
    return edges
