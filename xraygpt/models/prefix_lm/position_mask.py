"""Attention by position: tokens that share a position see each other, others those before them.

The media of a study are a set. Their tokens all have position 0 and see each other; every token of
the text sees them and the text before it. So neither their order nor their place in the row
matters, in a decoder trained from scratch and in a pretrained one alike.

Notation: B rows of Q new tokens, after P cached tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def attend_by_position(llm: nn.Module) -> None:
    """Make an LLM accept position ids of shape (1, B, Q) or (2, B, Q) and attend by them.

    The last axis holds the positions. With two axes, the first numbers the tokens of each text from
    0 (`PackedLayout.pack_positions`), and texts in one row do not see each other. Position ids of
    shape (B, Q) have their usual meaning.
    """
    llm.register_forward_pre_hook(_set_mask, with_kwargs=True)


def _set_mask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    axes = kwargs.get("position_ids")
    if axes is None or axes.dim() != 3:
        return None
    positions, mask = axes[-1], kwargs.get("attention_mask")
    if has_shared_positions(positions, mask):
        numbers = axes[0] if len(axes) == 2 else None
        cache = kwargs.get("past_key_values")
        cached = 0 if cache is None else int(cache.get_seq_length())
        mask = position_mask(positions, mask, numbers, cached)
    return args, {**kwargs, "position_ids": positions, "attention_mask": mask}


def has_shared_positions(positions: Tensor, mask: Tensor | None) -> bool:
    """Return whether two neighbours among the (B, Q) new tokens have the same position."""
    shared = positions[:, 1:] == positions[:, :-1]
    if mask is not None:
        new = mask[:, mask.shape[1] - positions.shape[1] :].bool()
        shared = shared & new[:, 1:] & new[:, :-1]
    return bool(shared.any())


def position_mask(
    positions: Tensor, mask: Tensor | None, numbers: Tensor | None = None, cached: int = 0
) -> Tensor:
    """Return which tokens each token sees, as (B, 1, Q, P + Q) bool.

    Args:
        positions: (B, Q) positions.
        mask: (B, P + Q), 1 for tokens; None without padding.
        numbers: (B, Q), 0 at the first token of each text in a packed row; None if every row is one
            text.
        cached: P. All cached tokens are visible.
    """
    allowed = positions[:, None, :] <= positions[:, :, None]
    if numbers is not None:
        text = (numbers == 0).cumsum(dim=1)
        allowed &= text[:, None, :] == text[:, :, None]
    if cached:
        before = allowed.new_ones(()).expand(*positions.shape, cached)
        allowed = torch.cat([before, allowed], dim=-1)
    if mask is not None:
        allowed = allowed & mask[:, None, :].bool()
    # Padding sees itself, so that no row of the softmax is empty.
    itself = torch.eye(positions.shape[1], dtype=torch.bool, device=positions.device)
    allowed[..., cached:] |= itself
    return allowed[:, None]
