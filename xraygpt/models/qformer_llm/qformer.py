"""The Q-Former: learned queries read an image's patch tokens and become a fixed number of tokens.

The transformer is `Blip2QFormerModel` of transformers, with queries only. As in
BLIP-2, this module adds the learned queries and a layer norm for the patch tokens; it also adds a
position embedding for encoders whose patch tokens have none. Notation: N images, L patch tokens, Q
queries; D is the encoder's width and K the Q-Former's width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError


@dataclass(kw_only=True)
class QFormerConfig:
    """Size of the Q-Former; the defaults are BLIP-2's."""

    num_queries: int = 32
    """Number of tokens that represent one image."""
    layers: int = 12
    hidden: int = 768
    """Width K, a multiple of the attention heads' 64."""
    cross_attention_every: int = 2
    """Every n-th layer reads the image."""
    dropout: float = 0.1
    """Dropout rate for attention and hidden states, in [0, 1)."""

    patch_dropout: float = 0.0
    """Share of patch tokens hidden from the queries in each training pass, in [0, 1). This
    augmentation also works with cached features."""

    adapter: int | None = None
    """Output width of a trained linear layer between the encoder and the Q-Former; null adds none.
    With 1408, BLIP-2's Q-Former can read another encoder. The layer is trained even if the Q-Former
    is frozen."""
    new_cross_attention: bool = False
    """Reinitialize the cross-attention if the loaded Q-Former read an encoder of another width: the
    alternative way to use BLIP-2's Q-Former with another encoder."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "num_queries", "adapter")
            check.fraction_below_one("dropout", "patch_dropout")
            multiple = f"must be a multiple of 64, the width of a head, got {self.hidden}"
            check.refuse(self.hidden % 64, "hidden", multiple)
            both = self.adapter is not None and self.new_cross_attention
            why = "and new_cross_attention are alternatives; choose one"
            check.refuse(both, "adapter", why, "new_cross_attention")


class QFormer(nn.Module):
    """Turns patch tokens into query tokens.

    Args:
        config: Size of the Q-Former.
        vision_width: D, the encoder's width.
        num_patches: L if the patch tokens need a position embedding; None if they have one.
    """

    def __init__(
        self, config: QFormerConfig, *, vision_width: int, num_patches: int | None
    ) -> None:
        super().__init__()
        self.adapter: nn.Linear | None = None
        if config.adapter is not None:
            self.adapter = nn.Linear(vision_width, config.adapter)
            vision_width = config.adapter
        self.ln_vision = nn.LayerNorm(vision_width, eps=1e-5)  # LAVIS's eps; 1e-6 elsewhere
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_queries, config.hidden))
        nn.init.normal_(self.query_tokens, std=0.02)
        self.patch_dropout = config.patch_dropout
        self.patch_position = None
        if num_patches is not None:
            self.patch_position = nn.Parameter(sin_cos_2d(num_patches, vision_width))
        self.qformer = self.make_network(config, vision_width)

    def make_network(self, config: QFormerConfig, vision_width: int) -> nn.Module:
        """Build the transformer that processes the queries."""
        return Blip2QFormerModel(Blip2QFormerConfig(**network_sizes(config, vision_width)))

    def forward(self, patches: Tensor, mask: Tensor | None = None, **text: Tensor) -> Tensor:
        """Compute (N, Q, K) query tokens from (N, L, D) patch tokens and their (N, L) mask.

        The mask is 1 for valid patches; `text` is passed to `read`.

        Raises:
            InputError: The number of patch tokens differs from that in training.
        """
        patches = patches.to(self.ln_vision.weight.dtype)
        if self.adapter is not None:
            patches = self.adapter(patches)
        patches = self.ln_vision(patches)
        if self.patch_position is not None:
            if patches.shape[1] != self.patch_position.shape[1]:
                raise InputError(
                    f"{patches.shape[1]} patch tokens, but the Q-Former was made for "
                    f"{self.patch_position.shape[1]}; set model.image_size as in training"
                )
            patches = patches + self.patch_position
        if self.training and self.patch_dropout:
            visible = torch.rand(patches.shape[:2], device=patches.device) >= self.patch_dropout
            visible[:, 0] |= ~visible.any(dim=1)  # at least one patch stays visible
            mask = visible.long() if mask is None else mask * visible
        queries = self.query_tokens.expand(len(patches), -1, -1)
        return self.read(queries, patches, mask, **text)

    def read(self, queries: Tensor, patches: Tensor, mask: Tensor | None) -> Tensor:
        """Update (N, Q, K) queries from (N, L, D) normalized patch tokens."""
        out: Tensor = self.qformer(
            query_embeds=queries, encoder_hidden_states=patches, encoder_attention_mask=mask
        ).last_hidden_state
        return out


def network_sizes(config: QFormerConfig, vision_width: int) -> dict[str, Any]:
    """Return the arguments for transformers' Q-Former configurations."""
    return {
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.hidden // 64,
        "intermediate_size": 4 * config.hidden,
        "encoder_hidden_size": vision_width,
        "cross_attention_frequency": config.cross_attention_every,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def sin_cos_2d(num_patches: int, width: int) -> Tensor:
    """Build the (1, L, D) sine–cosine position embedding of a square grid, in [-1, 1].

    This is the 2-D form of Vaswani et al. 2017. Its magnitude matches the normalized tokens it is
    added to: with the usual small random embedding, the Q-Former would need thousands of steps to
    notice it.

    Raises:
        InputError: L is not a square number.
    """
    side = round(num_patches**0.5)
    if side * side != num_patches:
        raise InputError(f"model.vit_model: its {num_patches} patch tokens form no square grid")
    quarter = max(width // 4, 1)
    frequency = 1.0 / 100 ** (torch.arange(quarter) / quarter)
    angle = torch.arange(side)[:, None] * frequency  # (side, D/4)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None, :].expand(side, side, -1)
    grid = torch.cat([rows, columns], dim=2).reshape(1, num_patches, -1)
    return nn.functional.pad(grid, (0, max(width - grid.shape[2], 0)))[..., :width].contiguous()
