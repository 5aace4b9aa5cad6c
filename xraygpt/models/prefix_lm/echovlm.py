"""Imports checkpoints of echovlm (https://github.com/vukadinovic936/echovlm, MIT)."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.errors import WeightsError

_LAYER = re.compile(r"transformer\.h\.(\d+)\.(attn|mlp)\.(\w+)\.weight")
_NAMES = {
    ("attn", "c_q"): "self_attn.q_proj",
    ("attn", "c_k"): "self_attn.k_proj",
    ("attn", "c_v"): "self_attn.v_proj",
    ("attn", "c_proj"): "self_attn.o_proj",
    ("mlp", "c_fc"): "mlp.fc1",
    ("mlp", "c_proj"): "mlp.fc2",
}
_SPARE_POSITIONS = 128  # for the embeddings, in addition to the text


def find_checkpoint(path: Path) -> Path | None:
    """Return the newest ``checkpoint*.pt`` in a run folder, the file itself, or None."""
    if path.is_dir():
        files = sorted(path.glob("checkpoint*.pt"))
        return files[-1] if files else None
    return path if path.suffix == ".pt" else None


def read_checkpoint(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights under this project's names, and the settings of `PrefixLM` for them.

    Args:
        file: ``checkpoint*.pt``. Only tensors and plain values are read; code in it is never run.

    Raises:
        WeightsError: The file is damaged, or not a checkpoint of echovlm.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{file} cannot be read: {reason}") from None
    weights = content.get("model") if isinstance(content, dict) else None
    shape = content.get("model_config") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not isinstance(shape, dict):
        raise WeightsError(f"{file} is not a checkpoint of echovlm: it has no model, model_config")
    return rename(weights, file), settings(shape, weights, file)


def rename(weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
    """Rename echovlm's tensors to those of `PrefixLM`, in float32.

    Raises:
        WeightsError: A name is unknown.
    """
    fixed = {
        "transformer.wte.weight": "llm.model.embed_tokens.weight",
        "lm_head.weight": "llm.lm_head.weight",
    }
    renamed: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        plain = name.removeprefix("_orig_mod.")  # added by torch.compile
        match = _LAYER.fullmatch(plain)
        part = _NAMES.get((match[2], match[3])) if match else None
        if match and part:
            target = f"llm.model.layers.{match[1]}.{part}.weight"
        elif plain in fixed:
            target = fixed[plain]
        else:
            raise WeightsError(f"{file}: {name} is not a weight of echovlm")
        renamed[target] = tensor.float().contiguous()
    return renamed


def settings(shape: Mapping[str, Any], weights: Mapping[str, Tensor], file: Path) -> dict[str, Any]:
    """Return the `model` section of a YAML file for a checkpoint's ``model_config``.

    Raises:
        WeightsError: The shape is incomplete, or has fewer key than query heads.
    """
    names = ("sequence_len", "vocab_size", "n_layer", "n_head", "n_kv_head", "n_embd")
    missing = [name for name in names if not isinstance(shape.get(name), int)]
    if missing:
        raise WeightsError(f"{file}: model_config lacks {', '.join(missing)}")
    if shape["n_kv_head"] != shape["n_head"]:
        raise WeightsError(
            f"{file}: {shape['n_kv_head']} key heads for {shape['n_head']} query heads are not "
            "supported"
        )
    return {
        "arch": "prefix_lm",
        "prefix": {"width": shape["n_embd"], "projection": "none", "positions": "sequence"},
        "llm": {
            "size": {
                "depth": shape["n_layer"],
                "width": shape["n_embd"],
                "heads": shape["n_head"],
                "vocab_size": shape["vocab_size"],
                "context": shape["sequence_len"] + _SPARE_POSITIONS,
                "rope_dtype": "bfloat16",
            }
        },
    }
