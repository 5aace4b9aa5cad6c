"""Writes a stock model as a folder that transformers opens, and checks what weights belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.models.capabilities import ExportSettings
from xraygpt.models.stock_vlm import adapters
from xraygpt.models.stock_vlm.key_layouts import Layout, to_layout
from xraygpt.models.stock_vlm.shards import SHARD_BYTES, ShardWriter

if TYPE_CHECKING:
    from xraygpt.models.stock_vlm.model import StockVlm

_LAYOUTS: dict[str, Layout] = {"transformers": "hub", "transformers5": "transformers"}
LAYOUTS = tuple(_LAYOUTS)
_IDENTITY = "stock_model.json"


def export_folder(model: StockVlm, layout: str, out: Path, settings: ExportSettings) -> str:
    """Write the model and its processor, with adapters merged into the weights.

    Args:
        model: The model; its adapters are merged.
        layout: ``transformers``, with the names of published checkpoints, which all versions of
            transformers, vLLM and LLaMA-Factory read; or ``transformers5``, with the module names
            of transformers 5.
        out: The folder to create.
        settings: The dtype of the weights.

    Raises:
        WeightsError: The weights are quantized.
    """
    network: Any = model.network
    if model.config.bits:
        raise WeightsError(
            "a quantized model cannot be exported: load it without model.bits, with the same ckpt"
        )
    if model.config.adapters is not None:
        adapters.merge_adapters(network)
    dtype = getattr(torch, settings.dtype) if settings.dtype is not None else network.dtype
    out.mkdir(parents=True, exist_ok=True)
    config = network.config
    config.architectures, config.dtype = [type(network).__name__], dtype
    config.save_pretrained(out)
    network.generation_config.save_pretrained(out)
    model.processor.save_pretrained(out)
    state = _without_tied_head(network)
    writer = ShardWriter(out, SHARD_BYTES)
    for name, tensor in to_layout(state, _LAYOUTS[layout], network).items():
        value = tensor.detach().cpu()
        writer.add(name, value.to(dtype) if value.is_floating_point() else value)
    writer.close()
    return f"{config.model_type} with its processor, which transformers opens"


def _without_tied_head(network: Any) -> dict[str, Tensor]:
    """Return the weights, without an output layer that shares those of the embedding."""
    state: dict[str, Tensor] = network.state_dict()
    head, embedding = network.get_output_embeddings(), network.get_input_embeddings()
    if head.weight is embedding.weight:
        state = {name: t for name, t in state.items() if name != "lm_head.weight"}
    return state


def write_identity(folder: Path, identity: dict[str, str]) -> None:
    """Write what identifies the model that a checkpoint's weights belong to."""
    (folder / _IDENTITY).write_text(json.dumps(identity, indent=1), encoding="utf-8")


def check_identity(folder: Path, identity: dict[str, str], path: Path) -> None:
    """Check that a checkpoint was trained from the model at `path`.

    Raises:
        WeightsError: It was trained from another model.
    """
    try:
        saved = json.loads((folder / _IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for name, value in identity.items():
        if saved.get(name, value) != value:
            raise WeightsError(
                f"{folder} was trained from another model than {path} ({name} differs); set "
                "model.path to the folder that it was trained from"
            )
