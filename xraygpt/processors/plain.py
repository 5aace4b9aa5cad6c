"""Pass images on unchanged, for models whose own processor resizes and normalises them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from xraygpt.common.registry import registry
from xraygpt.media.geometry import Geometry
from xraygpt.processors.base import BaseProcessor
from xraygpt.processors.image import channels_first


@registry.register_processor("plain_pixels")
class PlainPixels(BaseProcessor):
    """Returns display values in [0, 1] at the file's own size, as three channels."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """This processor has no settings."""

    fixed_size = False

    def __call__(self, pixels: np.ndarray, rng_key: str = "") -> Tensor:
        """Convert (H, W) or (H, W, 3) to (3, H, W) float32, keeping a leading frame axis."""
        return channels_first(pixels).contiguous()

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry:
        """Return the identity map, since no point moves."""
        return Geometry()
