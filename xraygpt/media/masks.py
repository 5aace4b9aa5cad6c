"""Masks of the original picture, as a processor changed the picture."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.media.geometry import Geometry


def mask_on(mask: np.ndarray, media: Media) -> np.ndarray:
    """The classes of a mask at every pixel of a processed image.

    Args:
        mask: (H, W) uint8 on the original picture.
        media: What its processor made of the picture, (C, h, w); says where the pixels went.

    Returns:
        (h, w) uint8; each pixel takes the class at its centre, 0 outside the original.

    Raises:
        DataError: The processor does not say where the pixels went.
    """
    if media.geometry is None:
        raise DataError(
            "a mask cannot follow its picture: the image processor has no geometry() "
            "(docs/adding_a_processor.md)"
        )
    height, width = media.data.shape[-2:]
    return resampled(mask, media.geometry.inverse(), int(height), int(width))


def mask_back(mask: np.ndarray, geometry: Geometry, height: int, width: int) -> np.ndarray:
    """The classes of a predicted mask at every pixel of the original picture.

    Args:
        mask: (h, w) uint8 on the processed image.
        geometry: Where the processor put the picture's points.
        height: Of the original, in pixels.
        width: Of the original, in pixels.

    Returns:
        (height, width) uint8; 0 where the model was not shown the picture.
    """
    return resampled(mask, geometry, height, width)


def resampled(mask: np.ndarray, back: Geometry, height: int, width: int) -> np.ndarray:
    """The classes of a mask on another grid of pixels.

    Args:
        mask: (H, W) uint8.
        back: Normalised coordinates of the new grid -> those of `mask`.
        height: Of the new grid.
        width: Of the new grid.
    """
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    across, down = back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f
    grid = torch.stack([across, down], dim=-1)[None] * 2 - 1
    values = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    found = F.grid_sample(values, grid.float(), mode="nearest", align_corners=False)
    classes: np.ndarray = found[0, 0].round().numpy().astype(np.uint8)
    return classes
