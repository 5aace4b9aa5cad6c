"""Base class for processors, which turn an item into a tensor or a text.

Processors do not access devices, files or global random state.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xraygpt.common.registry import PROCESSORS, Plugin, Registry

if TYPE_CHECKING:
    from xraygpt.media.base import Media
    from xraygpt.media.geometry import Geometry


class BaseProcessor(Plugin):
    """Turns an item into a tensor or a text; subclasses document shapes, dtypes and ranges."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings of a processor; the base class has none."""

        kind: ClassVar[Registry] = PROCESSORS

        def for_eval(self) -> BaseProcessor.Config:
            """Return the settings to use outside training, without random augmentation."""
            return self

    fixed_size = True
    """Whether the output size is the same for all images. If not, features are not cached and blank
    control images are not shared."""
    reads_uint8 = False
    """Whether `process` accepts media with 8-bit pixels."""
    deterministic = True
    """Whether the result depends only on the item. If not, features are not cached."""

    config: Config

    def __init__(self, config: Config, **_: object) -> None:
        self.config = config

    def signature(self) -> dict[str, object]:
        """Return all that determines the result for an item; part of the feature cache key."""
        cls = type(self)
        return {"class": f"{cls.__module__}.{cls.__qualname__}", **dataclasses.asdict(self.config)}

    def __call__(self, item: Any, rng_key: str = "") -> Any:
        """Process `item`, seeding random choices with `rng_key`."""
        raise NotImplementedError

    def process(self, media: Media, rng_key: str = "") -> Media:
        """Process a medium and update its geometry.

        Args:
            media: The medium as read from its file.
            rng_key: Seeds the random choices.
        """
        height, width = picture_size(media)
        step = self.geometry(height, width, rng_key)
        before = media.geometry
        total = None if step is None or before is None else before.then(step)
        return media.with_data(self(media.display_values(), rng_key), total)

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry | None:
        """Return the map from the input image to the output, or None (the default) if unknown.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.
            rng_key: The key passed to `__call__`; equal keys produce the same crop and rotation.
        """
        return None


def picture_size(media: Media) -> tuple[int, int]:
    """Return the height and width of an unprocessed medium, (…, H, W) or (…, H, W, 3)."""
    is_grey = media.data.dim() == (2 if media.kind == "image" else 3)
    height, width = media.data.shape[-2:] if is_grey else media.data.shape[-3:-1]
    return int(height), int(width)
