"""Pass images on as they are displayed, for models that resize and normalise them themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from xraygpt.common.checks import Checks
from xraygpt.common.registry import registry
from xraygpt.media.base import Media
from xraygpt.media.geometry import Geometry
from xraygpt.processors.base import BaseProcessor
from xraygpt.processors.image import ImageSpec, channels_first


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


@registry.register_processor("native_pixels")
class NativePixels(PlainPixels):
    """Returns 8-bit pixels at the file's own size, as three channels.

    Large clips take a quarter of the memory of `plain_pixels`.
    """

    @dataclass(kw_only=True)
    class Config(PlainPixels.Config):
        """This processor has no settings."""

    reads_uint8 = True

    def process(self, media: Media, rng_key: str = "") -> Media:
        """Convert (…, H, W[, 3]) to uint8 of shape (3, H, W), or (F, 3, H, W) for a clip."""
        data = media.data
        if data.dtype != torch.uint8:
            data = (data * 255).round().to(torch.uint8)
        is_grey = data.dim() == (2 if media.kind == "image" else 3)
        data = (
            data.unsqueeze(-3).expand(*[-1] * (data.dim() - 2), 3, -1, -1)
            if is_grey
            else (data.movedim(-1, -3))
        )
        return media.with_data(data.contiguous(), media.geometry)


@registry.register_processor("display_image")
class DisplayImage(BaseProcessor):
    """Returns display values in [0, 1] with their aspect ratio, and reduces large images."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """The size of the result."""

        max_side: int | None = None
        """Longest side in pixels; larger images are reduced to it. None uses the `image_size` in
        the model's `image_spec`."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(8, "max_side")

    fixed_size = False
    config: Config

    def __init__(self, config: Config, *, image_spec: ImageSpec, **_: Any) -> None:
        super().__init__(config)
        self.max_side = config.max_side or image_spec.image_size

    def __call__(self, pixels: np.ndarray, rng_key: str = "") -> Tensor:
        """Convert (H, W) to (1, h, w) and (H, W, 3) to (3, h, w) float32, also with a frame axis.

        An image that is no larger than `max_side` keeps its size and its values.
        """
        image = channels_first(pixels)
        if image.shape[-2:] == pixels.shape[-2:]:  # grey: three equal channels
            image = image[..., :1, :, :]
        height, width = image.shape[-2:]
        scale = self.max_side / max(height, width)
        if scale >= 1:
            return image.contiguous()
        size = [max(1, round(side * scale)) for side in (height, width)]
        mode = tvf.InterpolationMode.BICUBIC
        return tvf.resize(image, size, mode).clamp(0, 1)  # bicubic overshoots at edges

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry:
        """Return the identity map: normalised coordinates do not change."""
        return Geometry()

    def signature(self) -> dict[str, object]:
        """Return the base class's signature with the size that is used."""
        return {**super().signature(), "max_side": self.max_side}
