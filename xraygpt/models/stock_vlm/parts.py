"""Identifies a stock model and its frozen parts, and chooses the layers that are trained."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.errors import InputError
from xraygpt.models.stock_vlm.family import Family

_SAMPLED = 4096  # values of a weight that identify it


def identify(family: Family) -> dict[str, str]:
    """Return the type of a model and a digest of its weights, before any checkpoint is loaded."""
    network = family.network
    digest = _digest({n: p for n, p in network.named_parameters() if ".lora_" not in n})
    return {"model_type": network.config.model_type, "network": digest}


def weights_identity(family: Family, *, projected: bool) -> str:
    """Return an identifier of what determines the features of frozen parts.

    Args:
        family: The model.
        projected: Whether the projector is frozen too, so that its output is cached.
    """
    parts = ("vision", "projector") if projected or not family.splits else ("vision",)
    weights = {
        name: parameter
        for name, parameter in family.network.named_parameters()
        if family.part_of(name) in parts
    }
    processor = family.processor
    settings = [processor.image_processor.to_dict(), processor.video_processor.to_dict()]
    text = json.dumps([_digest(weights), projected, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def _digest(weights: dict[str, Any]) -> str:
    """Return a digest of a regular sample of the values of each weight.

    A hash of all values of a model with billions of weights would take minutes.
    """
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(f"{name}{tuple(weights[name].shape)}".encode())
        sha.update(_sample(weights[name]).numpy().tobytes())
    return sha.hexdigest()


def _sample(weight: Tensor) -> Tensor:
    flat = weight.detach().flatten()
    values = flat[:: max(1, len(flat) // _SAMPLED)]
    return values.float().cpu().to(torch.bfloat16).view(torch.uint8).cpu()


def trained_layers(network: Any, count: int | None) -> tuple[str, ...] | None:
    """Return the beginnings of the names of the layers to train, or None for all of them.

    Args:
        network: The model.
        count: Number of layers: the last ones, or if negative, the first.

    Raises:
        InputError: The language model has fewer layers.
    """
    if count is None:
        return None
    layers = len(network.model.language_model.layers)
    if not 0 < abs(count) <= layers:
        raise InputError(
            f"model.trained_layers: {count}, but the language model has {layers} layers"
        )
    chosen = range(layers)[-count:] if count > 0 else range(-count)
    return tuple(f"model.language_model.layers.{i}." for i in chosen)
