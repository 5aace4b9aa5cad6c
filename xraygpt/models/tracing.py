"""Records the attention weights of transformers networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def eager_attention(network: Any) -> Iterator[None]:
    """Context manager that uses the eager attention kernel, which returns attention weights."""
    before = network.config._attn_implementation
    network.set_attn_implementation("eager")
    try:
        yield
    finally:
        network.set_attn_implementation(before)


@contextmanager
def cross_attentions(network: Any) -> Iterator[list[Tensor]]:
    """Context manager that collects each layer's (N, Q, P) cross-attention, averaged over heads."""
    layers: list[Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(eager_attention(network))
        for name, module in network.named_modules():
            if name.endswith("crossattention.attention"):
                hook = module.register_forward_hook(
                    lambda _, __, out: layers.append(out[1].float().mean(dim=1))
                )
                stack.callback(hook.remove)
        yield layers


def mean_of_layers(layers: list[Tensor]) -> Tensor:
    """Average (N, Q, P) attention over layers."""
    return torch.stack(layers).mean(dim=0)
