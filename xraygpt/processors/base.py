"""What every processor offers: an item in, a tensor or text out; no device, file or global RNG."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from xraygpt.common.registry import PROCESSORS, Plugin, Registry

if TYPE_CHECKING:
    from xraygpt.media.base import Media
    from xraygpt.media.geometry import Geometry


class BaseProcessor(Plugin):
    """Item -> tensor or text. Subclasses state shape, dtype and range of both sides."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings every processor shares: none."""

        kind: ClassVar[Registry] = PROCESSORS

        def for_eval(self) -> BaseProcessor.Config:
            """The settings to use outside training: the same, unless something is random."""
            return self

    fixed_size = True
    """Whether all pictures come out in one size; features and black pictures of others are not
    shared."""
    deterministic = True
    """Whether the result depends on the item alone; features of others are not cached."""

    config: Config

    def __init__(self, config: Config, **_: object) -> None:
        self.config = config

    def signature(self) -> dict[str, object]:
        """All that decides the result for a given item; part of a feature cache's key."""
        cls = type(self)
        return {"class": f"{cls.__module__}.{cls.__qualname__}", **dataclasses.asdict(self.config)}

    def __call__(self, item: Any, rng_key: str = "") -> Any:
        """Process `item`; `rng_key` keys whatever is random."""
        raise NotImplementedError

    def process(self, media: Media, rng_key: str = "") -> Media:
        """Process a medium, and say where its pixels went.

        Args:
            media: As read.
            rng_key: Keys whatever is random.
        """
        height, width = picture_size(media)
        moved = self.geometry(height, width, rng_key)
        before = media.geometry
        whole = None if moved is None or before is None else before.then(moved)
        return media.with_data(self(media.data.numpy(), rng_key), whole)

    def geometry(self, height: int, width: int, rng_key: str = "") -> Geometry | None:
        """Where the points of a picture go; None, the default, where a processor does not say.

        Args:
            height: Of the picture, in pixels.
            width: Of the picture, in pixels.
            rng_key: As given to `__call__`: the same draw crops and turns alike.
        """
        return None


def picture_size(media: Media) -> tuple[int, int]:
    """Height and width in pixels of a medium as read: (…, H, W), or (…, H, W, 3) in colour."""
    grey = media.data.dim() == (2 if media.kind == "image" else 3)
    height, width = media.data.shape[-2:] if grey else media.data.shape[-3:-1]
    return int(height), int(width)
