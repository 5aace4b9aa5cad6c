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
    """Return the (B,) positions after the last token of (B, T) or (A, B, T) position ids.

    These are the positions that the tokens of an answer have in training. A clip may reach further
    in time than the text after it; transformers' `generate` continues from the largest position of
    the prompt, at which Qwen2.5-VL was not trained by transformers 5.
    """
    last = positions[..., -1]
    return (last if last.dim() == 1 else last.amax(dim=0)) + 1


def expand_axes(new: Tensor, positions: Tensor | None) -> Tensor:
    """Repeat the (B, T) position ids of new tokens to (A, B, T) if `positions` has A axes."""
    if positions is None or positions.dim() == 2:
        return new
    return torch.stack([new] * len(positions))
