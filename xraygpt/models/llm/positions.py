"""Position ids of tokens during decoding.

Notation: B rows, T tokens; A is the number of position axes in a decoder with M-RoPE.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_positions(mask: Tensor) -> Tensor:
    """Return (B, T) position ids that number the tokens in each row of a (B, T) mask from 0."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def next_positions(positions: Tensor) -> Tensor:
    """Return the (B,) first positions after (B, T) or (A, B, T) position ids."""
    last = positions.amax(dim=-1)
    return (last if last.dim() == 1 else last.amax(dim=0)) + 1


def expand_axes(new: Tensor, positions: Tensor | None) -> Tensor:
    """Repeat the (B, T) position ids of new tokens to (A, B, T) if `positions` has A axes."""
    if positions is None or positions.dim() == 2:
        return new
    return torch.stack([new] * len(positions))
