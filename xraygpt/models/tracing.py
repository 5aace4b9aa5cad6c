"""What attention says of where tokens come from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def eager_attention(network: Any) -> Iterator[None]:
    """A transformers network whose attention says what it did, meanwhile."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


@contextmanager
def cross_attentions(network: Any) -> Iterator[list[Tensor]]:
    """The (N, Q, P) cross-attention of each layer of a Q-Former, mean over heads, as it runs."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(eager_attention(network))
        for name, module in network.named_modules():
            if name.endswith("crossattention.attention"):
                hook = module.register_forward_hook(
                    lambda _, __, out: seen.append(out[1].float().mean(dim=1))
                )
                stack.callback(hook.remove)
        yield seen


def mean_of_layers(layers: list[Tensor]) -> Tensor:
    """(N, Q, P) of each layer -> their mean."""
    return torch.stack(layers).mean(dim=0)
