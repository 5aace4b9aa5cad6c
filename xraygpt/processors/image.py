"""Display pixels -> the normalised tensor a vision encoder takes.

Notation: H, W of the file; S the model's `image_size`; C its channels.
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
from xraygpt.media.geometry import Geometry, rotation, window_of
from xraygpt.processors.base import BaseProcessor

Fit = Literal["squash", "pad", "crop"]
Interpolation = Literal["bicubic", "bilinear"]
# Weights of red, green and blue in luminance, ITU-R BT.601; what Pillow's mode L takes.
LUMINANCE = (0.299, 0.587, 0.114)


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a vision encoder wants of an image."""

    image_size: int  # pixels, square
    mean: tuple[float, ...]  # per channel, of values in [0, 1]; one number is repeated
    std: tuple[float, ...]  # per channel, of values in [0, 1]; one number is repeated
    channels: int = 3  # of the tensor: 1 or 3
    grey: bool = False  # colour is taken out first; always so with one channel
    fit: Fit = "squash"  # how an oblong picture becomes square
    interpolation: Interpolation = "bicubic"

    def __str__(self) -> str:
        """One line for logs and documents."""
        kind = "grey" if self.grey or self.channels == 1 else "colour"
        mean, std = (", ".join(f"{v:.4g}" for v in values) for values in (self.mean, self.std))
        return (
            f"{self.image_size} px, {self.channels} x {kind}, {self.fit}, {self.interpolation}, "
            f"mean {mean}, std {std}"
        )


@dataclass(frozen=True, kw_only=True)
class ImageSpec(InputSpec):
    """What a model wants of an image, and what it makes of one."""

    tokens_per_image: int  # placeholders one image takes in the text


@registry.register_processor("xray_image", "blip2_image_eval")
class XrayImage(BaseProcessor):
    """Resize to a square, normalise with the encoder's mean and std; nothing random."""

    @dataclass(kw_only=True)
    class Config(BaseProcessor.Config):
        """Settings of an image processor; None means what the model's `image_spec` says."""

        image_size: int | None = None
        """Side of the result in pixels."""
        mean: list[float] | None = None
        """Per channel, of values in [0, 1]; one number is repeated."""
        std: list[float] | None = None
        """Per channel, of values in [0, 1]; one number is repeated."""
        fit: Fit | None = None
        """`squash` ignores the aspect ratio, `pad` adds black, `crop` keeps the middle square and
        loses the rest; None takes the encoder's own."""
        draft: bool = False
        """Decode a large JPEG at a half, a quarter or an eighth of its size, never below twice what
        is left of it afterwards: faster, and values differ a little."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                size, std = self.image_size, self.std
                wrong = size is not None and not 8 <= size <= 4096
                check.refuse(wrong, "image_size", f"must lie in 8..4096 pixels, got {size}")
                wrong = std is not None and not min(std, default=0) > 0
                check.refuse(wrong, "std", f"must be above 0, got {std}")

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
    def at_least(self) -> int | None:
        """Pixels that each side of a picture should have; None wants all there are."""
        return 2 * self.size if self.config.draft else None

    def __call__(self, pixels: np.ndarray, rng_key: str = "") -> Tensor:
        """Process one picture.

        Args:
            pixels: (H, W) or (H, W, 3) float32 display values in [0, 1], bones bright; or
                (F, H, W[, 3]) for the frames of a clip.
            rng_key: Keys random augmentation; unused here.

        Returns:
            (C, S, S) float32, normalised; (F, C, S, S) for a clip.
        """
        image = channels_first(pixels)
        if self.grey:
            grey = (image * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(dim=-3, keepdim=True)
            image = grey.expand(*grey.shape[:-3], self.channels, *grey.shape[-2:])
        return (self.resize(image, rng_key) - self.mean) / self.std

    def resize(self, image: Tensor, rng_key: str) -> Tensor:
        """(…, C, H, W) in [0, 1] -> (…, C, S, S) in [0, 1], with antialias."""
        if self.fit == "pad":
            image = _pad_to_square(image)
        elif self.fit == "crop":
            image = tvf.center_crop(image, [min(image.shape[-2:])] * 2)
        mode = tvf.InterpolationMode(self.interpolation)
        sized = tvf.resize(image, [self.size, self.size], mode)
        return sized.clamp(0, 1)  # bicubic overshoots at edges

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry:
        """Where the points of a picture go: its padding, or the middle square."""
        return _square(self.fit, height, width)

    def signature(self) -> dict[str, Any]:
        """As every processor's, with what came from the model's `image_spec`."""
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
    """As `xray_image`, after a random crop, turn and change of grey.

    Never mirrored: left and right are findings.
    """

    @dataclass(kw_only=True)
    class Config(XrayImage.Config):
        """Settings of the training processor."""

        min_scale: float = 0.5
        """Smallest share of the picture's area a crop keeps, in (0, 1]; 1 crops nothing."""
        ratio: list[float] = field(default_factory=lambda: [0.75, 1.333])
        """Range of the crop's aspect ratio, as in Inception-style random resized crops."""
        degrees: float = 0.0
        """Turned by up to so many degrees, either way."""
        grey_change: float = 0.0
        """Most change of contrast, as a share, and of the exponent of grey values, as a logarithm;
        brightness changes by half of it. In [0, 1)."""

        def for_eval(self) -> BaseProcessor.Config:
            """A random crop is never right outside training: the same without it."""
            return XrayImage.Config(
                image_size=self.image_size,
                mean=self.mean,
                std=self.std,
                fit=self.fit,
                draft=self.draft,
            )

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.also(super().__post_init__)
                scale, degrees = self.min_scale, self.degrees
                check.refuse(not 0 < scale <= 1, "min_scale", f"must lie in (0, 1], got {scale}")
                check.refuse(
                    not 0 <= degrees <= 180, "degrees", f"must lie in [0, 180], got {degrees}"
                )
                check.share_below_one("grey_change")

    config: Config

    def __init__(self, config: Config, *, image_spec: ImageSpec, **runtime: Any) -> None:
        super().__init__(config, image_spec=image_spec, **runtime)
        self.deterministic = config.min_scale == 1 and not (config.degrees or config.grey_change)

    @property
    def at_least(self) -> int | None:
        """As of `xray_image`, for the narrowest crop."""
        narrow = min(self.config.ratio[0], 1 / self.config.ratio[1], 1.0)
        share = math.sqrt(self.config.min_scale * narrow)
        return math.ceil(2 * self.size / share) if self.config.draft else None

    def resize(self, image: Tensor, rng_key: str) -> Tensor:
        """Crop by a draw keyed with `rng_key`, then resize."""
        if self.config.min_scale < 1:
            image = self._crop(image, rng_key)
        image = super().resize(image, rng_key)
        if self.config.degrees:
            image = tvf.rotate(image, self._angle(rng_key), tvf.InterpolationMode.BILINEAR)
        return self._change_grey(image, rng_key) if self.config.grey_change else image

    def _change_grey(self, image: Tensor, rng_key: str) -> Tensor:
        """Contrast, exponent and brightness, drawn with `rng_key`."""
        rng, most = keyed_random(rng_key, "grey"), self.config.grey_change
        contrast, exponent = 1 + rng.uniform(-most, most), math.exp(rng.uniform(-most, most))
        return (image**exponent * contrast + rng.uniform(-most, most) / 2).clamp(0, 1)

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry:
        """Where the points of a picture go: crop, padding or middle square, turn."""
        moved = Geometry()
        if self.config.min_scale < 1:
            top, left, h, w = self._window(height, width, rng_key)
            moved = window_of(left / width, top / height, w / width, h / height)
            height, width = h, w
        moved = moved.then(_square(self.fit, height, width))
        return moved.then(rotation(self._angle(rng_key))) if self.config.degrees else moved

    def _angle(self, rng_key: str) -> float:
        return keyed_random(rng_key, "turn").uniform(-self.config.degrees, self.config.degrees)

    def _crop(self, image: Tensor, rng_key: str) -> Tensor:
        height, width = image.shape[-2:]
        top, left, h, w = self._window(height, width, rng_key)
        return image[..., top : top + h, left : left + w]

    def _window(self, height: int, width: int, rng_key: str) -> tuple[int, int, int, int]:
        """Top, left, height and width of the crop, in pixels."""
        rng = keyed_random(rng_key, "crop")
        area = height * width * rng.uniform(self.config.min_scale, 1)
        low, high = self.config.ratio
        ratio = float(np.exp(rng.uniform(np.log(low), np.log(high)))) * width / height
        w = min(width, max(1, round((area * ratio) ** 0.5)))
        h = min(height, max(1, round((area / ratio) ** 0.5)))
        return rng.randint(0, height - h), rng.randint(0, width - w), h, w


def _per_channel(values: Any, channels: int) -> Tensor:
    each = list(values) * (channels if len(values) == 1 else 1)
    if len(each) != channels:
        raise InputError(
            f"{len(each)} values of mean or std, but the encoder has {channels} channels"
        )
    return torch.tensor(each, dtype=torch.float32).view(-1, 1, 1)


def channels_first(pixels: np.ndarray) -> Tensor:
    """(…, H, W) or (…, H, W, 3) -> (…, 3, H, W); grey is repeated."""
    image = torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
    if image.shape[-1] == 3 and image.dim() > 2:
        return image.movedim(-1, -3)
    return image.unsqueeze(-3).expand(*image.shape[:-2], 3, *image.shape[-2:])


def _pad_to_square(image: Tensor) -> Tensor:
    height, width = image.shape[-2:]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return F.pad(image, (left, side - width - left, top, side - height - top))


def _square(fit: Fit, height: int, width: int) -> Geometry:
    """Where the points of an oblong picture go when it is made square, to the pixel as above."""
    if fit == "squash":
        return Geometry()
    side = max(height, width) if fit == "pad" else min(height, width)
    if fit == "pad":
        left, top = -((side - width) // 2), -((side - height) // 2)
    else:  # as torchvision's center_crop rounds
        left, top = round((width - side) / 2.0), round((height - side) / 2.0)
    return window_of(left / width, top / height, side / width, side / height)
