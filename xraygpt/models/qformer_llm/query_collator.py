"""Media for a Q-Former: every image, or frame of a clip, becomes as many tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.prompting.renderer import Run


class QueryCollator:
    """Images for a Q-Former: each takes `num_query_token` places, a clip as many per frame."""

    def __init__(self, num_query_token: int) -> None:
        self.num_query_token = num_query_token

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Placeholders of (C, H, W) images, (F, C, H, W) clips or (L, D) features."""
        frames = [len(m.data) if m.data.dim() == 4 else 1 for m in media]
        return [Run(self.num_query_token * n, m.kind) for n, m in zip(frames, media, strict=True)]

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """All media of a batch, in order.

        Returns:
            `pixel_values` (N, C, H, W), frames of clips in a row; or `features` (N, L, D), padded,
            with `feature_mask` (N, L).

        Raises:
            DataError: Pixels and features in one batch.
        """
        each = [m.data for media in samples for m in media]
        encoded = [data.dim() == 2 for data in each]
        if all(encoded):
            mask = [torch.ones(len(data), dtype=torch.long) for data in each]
            return {
                "features": pad_sequence(each, batch_first=True),
                "feature_mask": pad_sequence(mask, batch_first=True),
            }
        if any(encoded):
            raise DataError("a batch holds both images and pre-computed features; use one of them")
        return {"pixel_values": torch.cat([d if d.dim() == 4 else d[None] for d in each])}
