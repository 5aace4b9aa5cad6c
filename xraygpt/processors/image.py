"""Convert display pixels to the normalised input tensor of a vision encoder.

`BaseProcessor.process` calls these processors for each image or frame, and stores the result and
its `Geometry` in a `Media`.

Notation: H and W are the height and width of the file, S is the model's `image_size` and C its
number of channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.common.registry import registry
from xraygpt.media.geometry import Geometry, crop_geometry, rotation
from xraygpt.processors.base import BaseProcessor

Fit = Literal["squash", "pad", "crop"]
Interpolation = Literal["bicubic", "bilinear"]
# Weights of red, green and blue for luminance (ITU-R BT.601), as in Pillow's mode L.
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Image format that a vision encoder expects."""

    image_size: int  # pixels, square
    mean: tuple[float, ...]  # per channel, of values in [0, 1]; one number is repeated
    std: tuple[float, ...]  # per channel, of values in [0, 1]; one number is repeated
    channels: int = 3  # of the input tensor: 1 or 3
    grey: bool = False  # whether to convert to grey first; implied by one channel
    fit: Fit = "squash"  # how a non-square image becomes square
    interpolation: Interpolation = "bicubic"

    def __str__(self) -> str:
        """Return a one-line summary for logs and documents."""
        kind = "grey" if self.grey or self.channels == 1 else "colour"
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{self.image_size} px, {self.channels} x {kind}, {self.fit}, {self.interpolation}, "
            f"mean {mean}, std {std}"
        )


@dataclass(frozen=True, kw_only=True)
class ImageSpec(InputSpec):
    """Image format that a model expects, and its number of tokens per image."""

    tokens_per_image: int  # placeholder tokens per image in the text
    processor: str = "xray_image"  # image processor, unless the configuration names another


@registry.register_processor("xray_image", "blip2_image_eval")
class XrayImage(BaseProcessor):
    """Resizes to a square and normalises with the encoder's mean and std; deterministic."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """Settings of an image processor; None uses the value in the model's `image_spec`."""

        image_size: int | None = None
        """Side of the output in pixels."""
        mean: list[float] | None = None
        """Per channel, of values in [0, 1]; one number is repeated."""
        std: list[float] | None = None
        """Per channel, of values in [0, 1]; one number is repeated."""
        fit: Fit | None = None
        """`squash` ignores the aspect ratio, `pad` adds black borders, and `crop` cuts out the
        centre square. None uses the encoder's default."""
        draft: bool = False
        """Whether to decode a large JPEG at a half, a quarter or an eighth of its size, but at
        least twice the output size. This is faster, but the values differ slightly."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                size, std = self.image_size, self.std
                invalid = size is not None and not 8 <= size <= 4096
                check.refuse(invalid, "image_size", f"must be in 8..4096 pixels, got {size}")
                invalid = std is not None and not min(std, default=0) > 0
                check.refuse(invalid, "std", f"must be above 0, got {std}")

    config: Config

    def __init__(self, config: Config, *, image_spec: ImageSpec, **_: Any) -> None:
        super().__init__(config)
        self.size = config.image_size or image_spec.image_size
        self.channels = image_spec.channels
        self.grey = image_spec.grey or self.channels == 1
        self.fit: Fit = config.fit or image_spec.fit
        self.interpolation = image_spec.interpolation
        self.mean = _per_channel(config.mean or image_spec.mean, self.channels)
        self.std = _per_channel(config.std or image_spec.std, self.channels)

    @property
    def min_side(self) -> int | None:
        """Smallest side, in pixels, at which an image may be decoded; None decodes it in full."""
        return 2 * self.size if self.config.draft else None

    def __call__(self, pixels: np.ndarray, rng_key: str = "") -> Tensor:
        """Process one image or clip.

        Args:
            pixels: float32 display values in [0, 1] with bright bones, of shape (H, W) or
                (H, W, 3) for an image, (F, H, W[, 3]) for a clip.
            rng_key: Seeds random augmentation; not used here.

        Returns:
            Normalised float32 tensor of shape (C, S, S), or (F, C, S, S) for a clip.
        """
        image = channels_first(pixels)
        if self.grey:
            grey = (image * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(dim=-3, keepdim=True)
            image = grey.expand(*grey.shape[:-3], self.channels, *grey.shape[-2:])
        return (self.resize(image, rng_key) - self.mean) / self.std

    def resize(self, image: Tensor, rng_key: str) -> Tensor:
        """Resize (…, C, H, W) to (…, C, S, S) with antialiasing; values stay in [0, 1]."""
        if self.fit == "pad":
            image = _pad_to_square(image)
        elif self.fit == "crop":
            image = tvf.center_crop(image, [min(image.shape[-2:])] * 2)
        mode = tvf.InterpolationMode(self.interpolation)
        resized = tvf.resize(image, [self.size, self.size], mode)
        return resized.clamp(0, 1)  # bicubic overshoots at edges

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry:
        """Return the map from an image to its padded or cropped version."""
        return _square_geometry(self.fit, height, width)

    def signature(self) -> dict[str, Any]:
        """Return the base class's signature, with the values from the model's `image_spec`."""
        return {
            **super().signature(),
            "image_size": self.size,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
            "fit": self.fit,
            "grey": self.grey,
            "interpolation": self.interpolation,
        }


@registry.register_processor("xray_image_train", "blip2_image_train")
class XrayImageTrain(XrayImage):
    """`xray_image` with random cropping, rotation and grey-level changes.

    Images are never mirrored, since findings depend on left and right.
    """

    @dataclass(kw_only=True)
    class Config(XrayImage.Config):
        """Settings of the augmentation."""

        min_scale: float = 0.5
        """Smallest crop, as a fraction of the image's area, in (0, 1]; 1 disables cropping."""
        ratio: list[float] = field(default_factory=lambda: [0.75, 1.333])
        """Range of the crop's aspect ratio, as in Inception-style random resized crops."""
        degrees: float = 0.0
        """Largest rotation in degrees, in either direction."""
        grey_change: float = 0.0
        """Largest change in contrast (a fraction) and in the logarithm of the gamma exponent, in
        [0, 1); brightness changes by at most half of this value."""

        def for_eval(self) -> BaseProcessor.Config:
            """Return the same settings without augmentation."""
            return XrayImage.Config(
                image_size=self.image_size,
                mean=self.mean,
                std=self.std,
                fit=self.fit,
                draft=self.draft,
            )

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                scale, degrees = self.min_scale, self.degrees
                check.refuse(not 0 < scale <= 1, "min_scale", f"must be in (0, 1], got {scale}")
                check.refuse(
                    not 0 <= degrees <= 180, "degrees", f"must be in [0, 180], got {degrees}"
                )
                check.fraction_below_one("grey_change")

    config: Config

    def __init__(self, config: Config, *, image_spec: ImageSpec, **runtime: Any) -> None:
        super().__init__(config, image_spec=image_spec, **runtime)
        self.deterministic = config.min_scale == 1 and not (config.degrees or config.grey_change)

    @property
    def min_side(self) -> int | None:
        """Smallest side, in pixels, at which the smallest crop is still large enough, or None."""
        narrowest = min(self.config.ratio[0], 1 / self.config.ratio[1], 1.0)
        fraction = math.sqrt(self.config.min_scale * narrowest)
        return math.ceil(2 * self.size / fraction) if self.config.draft else None

    def resize(self, image: Tensor, rng_key: str) -> Tensor:
        """Crop, resize, rotate and change the grey levels, seeded with `rng_key`."""
        if self.config.min_scale < 1:
            image = self._crop(image, rng_key)
        image = super().resize(image, rng_key)
        if self.config.degrees:
            image = tvf.rotate(image, self._angle(rng_key), tvf.InterpolationMode.BILINEAR)
        return self._change_grey(image, rng_key) if self.config.grey_change else image

    def _change_grey(self, image: Tensor, rng_key: str) -> Tensor:
        rng, limit = keyed_random(rng_key, "grey"), self.config.grey_change
        contrast, exponent = 1 + rng.uniform(-limit, limit), math.exp(rng.uniform(-limit, limit))
        return (image**exponent * contrast + rng.uniform(-limit, limit) / 2).clamp(0, 1)

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry:
        """Return the map from an image to its crop after squaring and rotation."""
        geometry = Geometry()
        if self.config.min_scale < 1:
            top, left, h, w = self._crop_window(height, width, rng_key)
            geometry = crop_geometry(left / width, top / height, w / width, h / height)
            height, width = h, w
        geometry = geometry.then(_square_geometry(self.fit, height, width))
        return geometry.then(rotation(self._angle(rng_key))) if self.config.degrees else geometry

    def _angle(self, rng_key: str) -> float:
        return keyed_random(rng_key, "turn").uniform(-self.config.degrees, self.config.degrees)

    def _crop(self, image: Tensor, rng_key: str) -> Tensor:
        height, width = image.shape[-2:]
        top, left, h, w = self._crop_window(height, width, rng_key)
        return image[..., top : top + h, left : left + w]

    def _crop_window(self, height: int, width: int, rng_key: str) -> tuple[int, int, int, int]:
        """Sample the top, left, height and width of the crop, in pixels."""
        rng = keyed_random(rng_key, "crop")
        area = height * width * rng.uniform(self.config.min_scale, 1)
        low, high = self.config.ratio
        ratio = float(np.exp(rng.uniform(np.log(low), np.log(high)))) * width / height
        w = min(width, max(1, round((area * ratio) ** 0.5)))
        h = min(height, max(1, round((area / ratio) ** 0.5)))
        return rng.randint(0, height - h), rng.randint(0, width - w), h, w


def _per_channel(values: Any, channels: int) -> Tensor:
    repeated = list(values) * (channels if len(values) == 1 else 1)
    if len(repeated) != channels:
        raise InputError(
            f"mean or std has {len(repeated)} values, but the encoder has {channels} channels"
        )
    return torch.tensor(repeated, dtype=torch.float32).view(-1, 1, 1)


def channels_first(pixels: np.ndarray) -> Tensor:
    """Convert (…, H, W) or (…, H, W, 3) to (…, 3, H, W), repeating grey three times."""
    image = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    if image.shape[-1] == 3 and image.dim() > 2:
        return image.movedim(-1, -3)
    return image.unsqueeze(-3).expand(*image.shape[:-2], 3, *image.shape[-2:])


def _pad_to_square(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(image, (left, side - width - left, top, side - height - top))


def _square_geometry(fit: Fit, height: int, width: int) -> Geometry:
    """Return the map from an image to the square made from it, exact to the pixel."""
    if fit == "squash":
        return Geometry()
    side = max(height, width) if fit == "pad" else min(height, width)
    if fit == "pad":
        left, top = -((side - width) // 2), -((side - height) // 2)
    else:  # rounds as torchvision's center_crop does
        left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return crop_geometry(left / width, top / height, side / width, side / height)
