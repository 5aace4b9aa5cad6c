"""Resampling of segmentation masks between the original and the processed picture."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.media.geometry import Geometry


def mask_to_processed(mask: np.ndarray, media: Media) -> np.ndarray:
    """Resample a mask of the original picture to the pixels of the processed image.

    Args:
        mask: (H, W) uint8 class of each pixel of the original picture.
        media: The processed image, (C, h, w), with its geometry.

    Returns:
        (h, w) uint8; each pixel takes the class at its centre, 0 outside the original.

    Raises:
        DataError: The processor provides no geometry.
    """
    if media.geometry is None:
        raise DataError(
            "the mask cannot be aligned with the processed image: the image processor has no "
            "geometry() (docs/adding_a_processor.md)"
        )
    height, width = media.data.shape[-2:]
    return resample_mask(mask, media.geometry.inverse(), int(height), int(width))


def mask_to_original(mask: np.ndarray, geometry: Geometry, height: int, width: int) -> np.ndarray:
    """Resample a predicted mask to the pixels of the original picture.

    Args:
        mask: (h, w) uint8 class of each pixel of the processed image.
        geometry: The processor's map from the original to the processed image.
        height: Height of the original in pixels.
        width: Width of the original in pixels.

    Returns:
        (height, width) uint8; 0 where the model did not see the picture.
    """
    return resample_mask(mask, geometry, height, width)


def resample_mask(mask: np.ndarray, grid_to_mask: Geometry, height: int, width: int) -> np.ndarray:
    """Resample a mask to another pixel grid, by nearest neighbour.

    Args:
        mask: (H, W) uint8.
        grid_to_mask: Map from normalised coordinates of the new grid to those of `mask`.
        height: Height of the new grid.
        width: Width of the new grid.
    """
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    back = grid_to_mask
    mask_x, mask_y = back.a * x + back.b * y + back.c, back.d * x + back.e * y + back.f
    grid = torch.stack([mask_x, mask_y], dim=-1)[None] * 2 - 1
    values = torch.from_numpy(np.array(mask, dtype=np.float32))[None, None]
    resampled = F.grid_sample(values, grid.float(), mode="nearest", align_corners=False)
    classes: np.ndarray = resampled[0, 0].round().numpy().astype(np.uint8)
    return classes
