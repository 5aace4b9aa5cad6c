"""Thumbnails for the result page, with outlines of boxes and masks."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.tasks.payload import LabelledBox

MAX_SIDE, JPEG_QUALITY = 256, 70  # longer side in pixels; JPEG quality
PREDICTION_COLOUR, REFERENCE_COLOUR = (255, 140, 0), (0, 190, 90)  # red, green, blue

Colour = tuple[int, int, int]


def thumbnail(
    ref: MediaRef,
    boxes: Sequence[tuple[Colour, LabelledBox]] = (),
    masks: Sequence[tuple[Colour, np.ndarray]] = (),
) -> str:
    """Return a small JPEG as a data URI.

    Args:
        ref: The image.
        boxes: Boxes to draw, with their colours.
        masks: Masks of classes, (H, W) or (D, H, W) uint8, to outline, with their colours; only
            the middle slice of a volume is shown.

    Raises:
        ValueError: The file cannot be read or contains no image.
    """
    pixels = read_media_file(ref).still_image()
    image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    if boxes or masks:
        image = image.convert("RGB")
        for colour, box in boxes:
            _draw_box(image, box, colour)
        for colour, mask in masks:
            image = _outline_mask(image, mask, colour)
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=JPEG_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def _draw_box(image: Image.Image, box: LabelledBox, colour: Colour) -> None:
    width, height = image.size
    x0, y0, x1, y1 = box["box"]
    corners = (x0 * width, y0 * height, x1 * width, y1 * height)
    ImageDraw.Draw(image).rectangle(corners, outline=colour, width=2)


def _outline_mask(image: Image.Image, mask: np.ndarray, colour: Colour) -> Image.Image:
    plane = mask if mask.ndim == 2 else mask[len(mask) // 2]
    classes = np.asarray(Image.fromarray(plane).resize(image.size, Image.Resampling.NEAREST))
    edge = np.zeros(classes.shape, bool)
    edge[1:] |= classes[1:] != classes[:-1]
    edge[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    pixels = np.array(image)
    pixels[edge] = colour
    return Image.fromarray(pixels)
