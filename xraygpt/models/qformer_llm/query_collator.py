"""Collates media for a Q-Former: every image or frame becomes the same number of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.prompting.renderer import Run


class QueryCollator:
    """Plans and stacks media that become `num_queries` tokens per image or frame."""

    def __init__(self, num_queries: int) -> None:
        self.num_queries = num_queries

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Plan the placeholders for (C, H, W) images, (F, C, H, W) clips or (L, D) features."""
        frames = [len(m.data) if m.data.dim() == 4 else 1 for m in media]
        return [Run(self.num_queries * n, m.kind) for n, m in zip(frames, media, strict=True)]

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """Stack all media of a batch, in order.

        Returns:
            `pixel_values` of shape (N, C, H, W), with the frames of a clip one after the other; or
            padded `features` of shape (N, L, D) with a `feature_mask` of shape (N, L).

        Raises:
            DataError: The batch contains both pixels and features.
        """
        tensors = [m.data for media in samples for m in media]
        is_features = [data.dim() == 2 for data in tensors]
        if all(is_features):
            mask = [torch.ones(len(data), dtype=torch.long) for data in tensors]
            return {
                "features": pad_sequence(tensors, batch_first=True),
                "feature_mask": pad_sequence(mask, batch_first=True),
            }
        if any(is_features):
            raise DataError("a batch contains both images and pre-computed features; use only one")
        return {"pixel_values": torch.cat([d if d.dim() == 4 else d[None] for d in tensors])}
