"""Dropout for decoders that have none of their own."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import functional as F


def add_dropout(llm: Any, rate: float) -> None:
    """Drop values of the embeddings and of the output of each attention and MLP, in training.

    Without it, a few thousand reports are memorised.

    Args:
        llm: A transformers causal LM.
        rate: Dropout rate, in [0, 1); 0 adds nothing.
    """
    if not rate:
        return
    decoder = llm.get_decoder()
    parts = [decoder.embed_tokens, *(p for x in decoder.layers for p in (x.self_attn, x.mlp))]

    def drop(module: nn.Module, _: Any, output: Any) -> Any:
        outputs = output if isinstance(output, tuple) else (output,)
        first = F.dropout(outputs[0], rate, module.training)
        return (first, *outputs[1:]) if isinstance(output, tuple) else first

    for part in parts:
        part.register_forward_hook(drop)
