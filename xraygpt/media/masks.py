"""Resample segmentation masks between the original and the processed image."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.media.geometry import Geometry


def mask_to_processed(mask: np.ndarray, media: Media) -> np.ndarray:
    """Resample a mask from the original image to the pixels of the processed image.

    Args:
        mask: Class of each pixel of the original image, uint8 of shape (H, W).
        media: The processed image of shape (C, h, w), with its geometry.

    Returns:
        The class at the centre of each pixel, uint8 of shape (h, w); 0 outside the original.

    Raises:
        DataError: The image processor provides no geometry.
    """
    if media.geometry is None:
        raise DataError(
            "the mask cannot be aligned with the processed image: the image processor has no "
            "geometry(); see docs/adding_a_processor.md"
        )
    height, width = media.data.shape[-2:]
    return resample_mask(mask, media.geometry.inverse(), int(height), int(width))


def mask_to_original(mask: np.ndarray, geometry: Geometry, height: int, width: int) -> np.ndarray:
    """Resample a predicted mask to the pixels of the original image.

    Args:
        mask: Class of each pixel of the processed image, uint8 of shape (h, w).
        geometry: The processor's map from the original to the processed image.
        height: Height of the original in pixels.
        width: Width of the original in pixels.

    Returns:
        uint8 of shape (height, width); 0 where the model did not see the image.
    """
    return resample_mask(mask, geometry, height, width)


def resample_mask(mask: np.ndarray, grid_to_mask: Geometry, height: int, width: int) -> np.ndarray:
    """Resample a mask to another pixel grid, using the nearest neighbour.

    Args:
        mask: The mask, uint8 of shape (H, W).
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
