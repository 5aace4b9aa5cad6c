"""How a model's weights are grouped for the optimizer: which decay, which are hidden matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NotRequired, TypedDict

from torch import nn


class ParamGroup(TypedDict):
    """Weights that are trained alike."""

    params: list[nn.Parameter]
    weight_decay: NotRequired[float]
    """At least 0; without it the run's `weight_decay`."""
    lr_scale: NotRequired[float]
    """Factor on the run's learning rate, above 0; without it 1."""
    name: NotRequired[str]
    """For messages and for readers of a checkpoint."""


def decay_groups(
    named: Iterable[tuple[str, nn.Parameter]], no_decay: tuple[str, ...]
) -> list[ParamGroup]:
    """Two groups at most: matrices, which decay, and the rest, which does not.

    Args:
        named: Names and weights that are trained.
        no_decay: Weights whose names end with one of these do not decay, whatever their shape.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, weight in named:
        decays = weight.dim() > 1 and not name.endswith(no_decay)
        (decayed if decays else plain).append(weight)
    groups: list[ParamGroup] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def hidden_matrices(model: nn.Module, heads: Iterable[nn.Linear] = ()) -> list[nn.Parameter]:
    """Trained weights of the linear layers inside `model`, each (out, in).

    Embeddings, a language model's output layer (tied or not) and `heads` are left out: their rows
    stand for one token or class each.
    """
    outer = [*heads, *(m for m in model.modules() if isinstance(m, nn.Embedding))]
    for module in model.modules():
        ask = getattr(module, "get_output_embeddings", None)  # of transformers' models
        head = ask() if callable(ask) else None
        outer += [head] if isinstance(head, nn.Linear) else []
    known = {id(layer.weight) for layer in outer}
    inside = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)} - known
    trained = (p for p in model.parameters() if p.requires_grad and p.dim() == 2)
    return [weight for weight in trained if id(weight) in inside]
