"""Projects the embeddings of a study to the width of a language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xraygpt.common.errors import WeightsError
from xraygpt.models.prefix_lm.config import PrefixConfig


class Projector(nn.Module):
    """Scales embeddings to length 1, projects them, and adds vectors for their view and type.

    Args:
        config: The settings.
        hidden: H, the width of the language model.
        size: Root mean square of the language model's token embeddings, which projected embeddings
            have at first.
    """

    mean: Tensor | None

    def __init__(self, config: PrefixConfig, hidden: int, size: float) -> None:
        super().__init__()
        self.config = config
        if config.projection == "none" and config.width != hidden:
            raise WeightsError(
                f"model.prefix.projection: embeddings of width {config.width} can only be passed "
                f"on as they are to a decoder of width {config.width}, but this one has {hidden}; "
                "use linear"
            )
        mean = None if config.mean is None else read_mean(config.mean, config.width)
        self.register_buffer("mean", mean, persistent=False)
        if config.projection == "linear":
            self.linear = nn.Linear(config.width, hidden, bias=False)
            nn.init.normal_(self.linear.weight, std=size)
        if config.views:
            self.view_table = nn.Embedding(len(config.views) + 1, hidden)
            nn.init.zeros_(self.view_table.weight)
        if config.types:
            self.type_table = nn.Embedding(len(config.types) + 1, hidden)
            nn.init.zeros_(self.type_table.weight)

    def forward(self, embeddings: Tensor, views: Tensor, types: Tensor) -> Tensor:
        """Project (N, D) embeddings with (N,) numbers of views and types to (N, H) tokens."""
        config = self.config
        tokens = F.normalize(embeddings, dim=-1) if config.normalize else embeddings
        if self.mean is not None:
            tokens = tokens - self.mean
            tokens = F.normalize(tokens, dim=-1) if config.normalize else tokens
        if config.noise and self.training:
            tokens = tokens + config.noise / config.width**0.5 * torch.randn_like(tokens)
        if config.projection == "linear":
            tokens = self.linear(tokens)
        if config.views:
            tokens = tokens + self.view_table(views)
        if config.types:
            tokens = tokens + self.type_table(types)
        return tokens


def read_mean(path: Path, width: int) -> Tensor:
    """Read the mean embedding, (D,) float32.

    Raises:
        WeightsError: The file cannot be read, or has another shape.
    """
    try:
        mean = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise WeightsError(f"model.prefix.mean: {path} cannot be read: {error}") from None
    if mean.shape != (width,):
        raise WeightsError(
            f"model.prefix.mean: {path} has shape {mean.shape}, but model.prefix.width is {width}"
        )
    return torch.from_numpy(mean.astype(np.float32))
