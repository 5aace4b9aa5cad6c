"""Encoders that were trained in a run of `arch: image_text`, for use in another model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.errors import WeightsError
from xraygpt.common.registry import registry
from xraygpt.common.requirements import BASE_SUFFIX, RUN_PREFIX
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder, build_vision, has_weights
from xraygpt.models.weights.files import read_weights
from xraygpt.models.weights.rules import load_exactly


class ConcatenatedNetworks(nn.Module):
    """Concatenates the features of two networks for the same image."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute (N, D1 + D2, h, w) features for CNNs or (N, L, D1 + D2) for transformers."""
        features = [_last_features(net(pixels)) for net in (self.first, self.second)]
        return torch.cat(features, dim=1 if features[0].dim() == 4 else -1)


@registry.register_encoder(f"{RUN_PREFIX}<folder>", f"{RUN_PREFIX}<folder>{BASE_SUFFIX}")
class TrainedEncoder(BaseEncoder):
    """The encoder that was trained in a run of `arch: image_text`."""

    has_weights = True
    takes_file = False

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Load the encoder; see `trained_encoder`."""
        return trained_encoder(self.rest, image_size)


def trained_encoder(name: str, image_size: int | None) -> VisionEncoder:
    """Load the encoder that was trained in a run.

    Args:
        name: The part after ``run/``: a run folder, a folder of runs, a checkpoint or
            ``<run>/best``; a final ``+base`` appends the features of the initial encoder.
        image_size: Size in pixels; None uses the size in training.

    Raises:
        WeightsError: There is no such run, or it trained no encoder.
    """
    folder = find_checkpoint(Path(name.removesuffix(BASE_SUFFIX)))
    config = _read_model_config(folder, name)
    size = image_size or config.get("image_size")
    encoder = build_vision(config["vit_model"], size, None)
    source, state = read_weights(folder)
    prefix = "vision."
    weights = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    load_exactly(encoder, weights, source, required=set(encoder.state_dict()))
    if not name.endswith(BASE_SUFFIX):
        return encoder
    initial_weights = Path(config["vit_ckpt"]) if config.get("vit_ckpt") else None
    if initial_weights is None and not has_weights(config["vit_model"]):
        raise WeightsError(
            f"model.vit_model: run/{name}: the encoder was initialised with random weights, which "
            f"are useless; remove {BASE_SUFFIX}"
        )
    base = build_vision(config["vit_model"], size, initial_weights)
    net = ConcatenatedNetworks(encoder.net, base.net)
    return VisionEncoder(net, encoder.input_spec, has_position=encoder.has_position)


def _read_model_config(folder: Path, name: str) -> dict[str, Any]:
    """Read the section `model` in a run's configuration."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise WeightsError(f"model.vit_model: {folder} has no config.yaml")
    config: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    model: dict[str, Any] = config.get("model", {})
    if model.get("arch") != "image_text":
        raise WeightsError(
            f"model.vit_model: run/{name} is a run of arch {model.get('arch')}, which trains no "
            "encoder; choose a run of arch image_text"
        )
    return model


def _last_features(output: Any) -> Tensor:
    features: Tensor = output[-1] if isinstance(output, (list, tuple)) else output
    return features
