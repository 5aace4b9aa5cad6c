"""Encoders made here: what a run of `arch: image_text` has trained, frozen in another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.errors import WeightsError
from xraygpt.common.registry import registry
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder, build_vision, has_weights
from xraygpt.models.weights.files import read_weights
from xraygpt.models.weights.rules import load_exactly
from xraygpt.processors.image import InputSpec

PREFIX = "run/"
BESIDE = "+base"  # after the folder: the tokens of the encoder it began with stand beside its own


class Beside(nn.Module):
    """Two networks that look at the same picture; each token holds what both say of its place."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D1 + D2, h, w) of CNNs, (N, L, D1 + D2) of transformers."""
        one, two = (_last(net(pixels)) for net in (self.first, self.second))
        return torch.cat([one, two], dim=1 if one.dim() == 4 else -1)


@registry.register_encoder(f"{PREFIX}<folder>", f"{PREFIX}<folder>{BESIDE}")
class TrainedEncoder(BaseEncoder):
    """What a run of `arch: image_text` has trained."""

    has_weights = True
    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """See `trained_encoder`."""
        return trained_encoder(self.rest, image_size)


def trained_encoder(name: str, image_size: int | None) -> VisionEncoder:
    """The encoder of a run.

    Args:
        name: What follows ``run/``: a run folder, a folder of runs, a checkpoint or ``<run>/best``;
            ``+base`` after it puts the encoder it began with beside it.
        image_size: Pixels; None takes those it was trained with.

    Raises:
        WeightsError: There is no such run, or it trained no encoder.
    """
    folder = find_checkpoint(Path(name.removesuffix(BESIDE)))
    described = folder / "config.yaml"
    if not described.is_file():
        raise WeightsError(f"model.vit_model: {folder} has no config.yaml that says what it holds")
    model = (yaml.safe_load(described.read_text(encoding="utf-8")) or {}).get("model", {})
    if model.get("arch") != "image_text":
        raise WeightsError(
            f"model.vit_model: run/{name} is a run of arch {model.get('arch')}, which trains no "
            "encoder; name one of arch image_text"
        )
    began = Path(model["vit_ckpt"]) if model.get("vit_ckpt") else None
    size = image_size or model.get("image_size")
    own = build_vision(model["vit_model"], size, None)
    source, state = read_weights(folder)
    found = {k.removeprefix("vision."): v for k, v in state.items() if k.startswith("vision.")}
    load_exactly(own, found, source, required=set(own.state_dict()))
    if not name.endswith(BESIDE):
        return own
    if began is None and not has_weights(model["vit_model"]):
        raise WeightsError(
            f"model.vit_model: run/{name}: the encoder began with random weights, which are of no "
            f"use; leave out {BESIDE}"
        )
    base = build_vision(model["vit_model"], size, began)
    wants: InputSpec = own.wants
    return VisionEncoder(Beside(own.net, base.net), wants, has_position=own.has_position)


def _last(out: Any) -> Tensor:
    features: Tensor = out[-1] if isinstance(out, (list, tuple)) else out
    return features
