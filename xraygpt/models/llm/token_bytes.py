"""Counts the bytes that tokens stand for, for losses that can be compared between tokenizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def count_token_bytes(tokenizer: Any) -> Tensor | None:
    """Count the bytes of text that each token stands for.

    Returns:
        (V,) int64, 0 for special tokens; None for a tokenizer that is not byte-level, whose tokens
        do not stand for a fixed number of bytes.
    """
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None or "ByteLevel" not in str(type(core.decoder)):
        return None
    special = set(tokenizer.all_special_tokens)
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    for token, index in tokenizer.get_vocab().items():
        # A byte-level token has one character for each byte; an added one has its own text.
        counts[index] = 0 if token in special else len(token)
    return counts
