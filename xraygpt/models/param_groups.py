"""Groups a model's weights for the optimizer, by weight decay and as hidden matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from torch import nn


class ParamGroup(TypedDict):
    """Weights with the same optimizer settings."""

    params: list[nn.Parameter]
    weight_decay: NotRequired[float]
    """Weight decay, at least 0; the run's `weight_decay` by default."""
    lr_scale: NotRequired[float]
    """Factor on the run's learning rate, above 0; 1 by default."""
    name: NotRequired[str]
    """Name used in messages and stored in checkpoints."""


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], no_decay: tuple[str, ...]
) -> list[ParamGroup]:
    """Split weights into matrices, which decay, and the rest, omitting empty groups.

    Args:
        named: The trained weights with their names.
        no_decay: Name suffixes of weights that do not decay, whatever their shape.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, weight in named:
        decays = weight.dim() > 1 and not name.endswith(no_decay)
        (decayed if decays else plain).append(weight)
    groups: list[ParamGroup] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module, heads: Iterable[nn.Linear] = ()) -> list[nn.Parameter]:
    """Return the trained (out, in) weights of the linear layers inside `model`.

    Embeddings, a language model's output layer (tied or not) and `heads` are excluded, because each
    of their rows belongs to one token or class.
    """
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    excluded = {id(layer.weight) for layer in (*heads, *embeddings, *_output_layers(model))}
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    trained = (p for p in model.parameters() if p.requires_grad and p.dim() == 2)
    return [weight for weight in trained if id(weight) in linear - excluded]


def _output_layers(model: nn.Module) -> list[nn.Linear]:
    """Return the output layers of the transformers models inside `model`."""
    getters = (getattr(m, "get_output_embeddings", None) for m in model.modules())
    layers = (getter() for getter in getters if callable(getter))
    return [layer for layer in layers if isinstance(layer, nn.Linear)]
