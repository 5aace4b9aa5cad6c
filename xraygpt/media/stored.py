"""Media that stand for features from a cache, and media whose features are to be cached.

A model that caches features of whole media describes each by a *layout*, a vector that only the
model itself interprets; see `models.capabilities.CachesMedia`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from xraygpt.media.base import Media
from xraygpt.media.content import ContentDigest

_LAYOUT = "stored_layout"
_NAME = "store_name"
_PIXELS = "read_pixels"
NAME_BYTES = 16  # of a name in the store, which is a hexadecimal digest


def stored_medium(
    view: str,
    features: Tensor,
    layout: Tensor,
    *,
    read_pixels: Callable[[], Media],
    content: ContentDigest | None = None,
) -> Media:
    """Return a medium whose data are features.

    Args:
        view: The view of the medium.
        features: Features of the model's frozen parts.
        layout: The model's description of the medium, a vector.
        read_pixels: Reads the pixels, for the rare case that they must be resized.
        content: Digest of the medium's pixels.
    """
    meta: dict[str, Any] = {_LAYOUT: tuple(layout.tolist()), _PIXELS: read_pixels}
    return Media(features, "embedding", view, meta=meta, content=content)


def stored_layout(media: Media) -> tuple[float, ...] | None:
    """Return the layout of a medium made by `stored_medium`, or None for one with pixels."""
    layout = media.meta.get(_LAYOUT)
    return layout if isinstance(layout, tuple) else None


def with_pixels(media: Media) -> Media:
    """Return the medium with its pixels, reading them if it stands for features."""
    read: Any = media.meta.get(_PIXELS)
    if read is None:
        return media
    pixels: Media = read()
    return pixels


def to_be_stored(media: Media, name: str) -> Media:
    """Return the medium with the name under which its features are to be stored.

    Args:
        media: A medium with pixels.
        name: 32 hexadecimal digits.
    """
    return replace(media, meta={**media.meta, _NAME: name})


def not_to_be_stored(media: Media) -> Media:
    """Return the medium without the name, since its pixels have been changed."""
    return replace(media, meta={k: v for k, v in media.meta.items() if k != _NAME})


def name_bytes(media: Media) -> list[int]:
    """Return the bytes of the name in the store, or zeros for a medium that is not cached."""
    name = media.meta.get(_NAME)
    return list(bytes.fromhex(name)) if isinstance(name, str) else [0] * NAME_BYTES


def name_of(values: list[int]) -> str:
    """Return the name with these bytes, or "" if they are all zero."""
    return bytes(values).hex() if any(values) else ""
