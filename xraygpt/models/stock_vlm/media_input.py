"""A medium as a stock model's vision tower reads it.

Notation: a medium has P rows of pixels (patches, or tiles of an image), which become L tokens in
the text, some of which may be ordinary text; W is the width of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xraygpt.media.base import Kind, Media
from xraygpt.media.stored import stored_layout


@dataclass(frozen=True)
class Layout:
    """How many tokens a medium occupies, and where they belong in space and time.

    Attributes:
        kind: "image" or "clip".
        grid: Qwen-VL: numbers of patches in time, height and width. LLaVA-OneVision: number of
            frames, or for an image 1 if it is tiled and 0 if not; height and width in pixels.
        ids: The L token ids in the text, in which the tower's output replaces `image_id` or
            `video_id`.
        seconds: Seconds between two steps of the temporal grid; 1 for an image.
    """

    kind: Kind
    grid: tuple[int, int, int]
    ids: tuple[int, ...]
    seconds: float = 1.0

    def pack(self) -> Tensor:
        """Return the layout as a float64 vector, to batch it and to store it with features."""
        head = [float(self.kind == "clip"), self.seconds, *self.grid]
        return torch.tensor([*head, *self.ids], dtype=torch.float64)

    @classmethod
    def unpack(cls, packed: Sequence[float]) -> Layout:
        """Return the layout from the values of `pack`."""
        is_clip, seconds, t, h, w, *ids = packed
        kind: Kind = "clip" if is_clip else "image"
        return cls(kind, (int(t), int(h), int(w)), tuple(int(i) for i in ids), float(seconds))

    @classmethod
    def of_stored(cls, media: Media) -> Layout | None:
        """Return the layout of features from the cache, or None for a medium with pixels."""
        packed = stored_layout(media)
        return None if packed is None else cls.unpack(packed)


def to_uint8(data: Tensor) -> Tensor:
    """Convert display values in [0, 1] to uint8; exact for values that came from 8-bit files."""
    return data if data.dtype == torch.uint8 else (data * 255).round().to(torch.uint8)
