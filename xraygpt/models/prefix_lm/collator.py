"""Collates the embeddings of studies: each row becomes one token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media
from xraygpt.media.content import ContentDigest, digest_values
from xraygpt.media.row_labels import split_row_labels
from xraygpt.models.prefix_lm.config import PrefixConfig
from xraygpt.prompting.renderer import Run


class EmbeddingCollator:
    """Plans and stacks the embeddings of studies.

    Args:
        config: The width of embeddings, and the names of views and types.
    """

    def __init__(self, config: PrefixConfig) -> None:
        self.width, self.is_set = config.width, config.positions == "set"
        # 0 stands for all names that are not listed.
        self._views = {name: i for i, name in enumerate(config.views, start=1)}
        self._types = {name: i for i, name in enumerate(config.types, start=1)}

    def token_runs(self, media: Sequence[Media]) -> list[Run]:
        """Plan one placeholder for each row of (N, D) embeddings.

        Raises:
            DataError: A medium is not an embedding, or its width is not D.
        """
        for medium in media:
            if medium.kind != "embedding":
                raise DataError(
                    f"this model reads embeddings, not pixels; encode the {medium.kind} first "
                    "(docs/echo.md)"
                )
            if medium.data.shape[1] != self.width:
                raise DataError(
                    f"an embedding has {medium.data.shape[1]} values, but model.prefix.width is "
                    f"{self.width}"
                )
        return [Run(len(medium.data), medium.kind) for medium in media]

    def content_digests(self, media: Sequence[Media]) -> list[ContentDigest]:
        """Return one digest of all embeddings, whatever their order; for a sequence, of each."""
        if not self.is_set or not media:
            return [medium.content_digest for medium in media]
        return [partial(_digest_set, torch.cat([medium.data for medium in media]))]

    def stack(self, samples: Sequence[Sequence[Media]]) -> dict[str, Tensor]:
        """Stack all embeddings of a batch, in order.

        Returns:
            `embeddings` (N, D) float32, and the number of each one's view and type, `views` and
            `types` (N,) int64.
        """
        media = [medium for sample in samples for medium in sample]
        labels = [pair for m in media for pair in split_row_labels(m.view, len(m.data))]
        return {
            "embeddings": torch.cat([m.data for m in media]).float(),
            "views": torch.tensor([self._views.get(view, 0) for view, _ in labels]),
            "types": torch.tensor([self._types.get(kind, 0) for _, kind in labels]),
        }


def _digest_set(rows: Tensor) -> str:
    digests = sorted(digest_values(row) for row in rows)
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()
