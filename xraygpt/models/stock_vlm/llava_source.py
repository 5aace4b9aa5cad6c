"""The tensors of an original LLaVA checkpoint: shards, LoRA adapters, projectors, frozen towers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.models.stock_vlm.key_layouts import listing
from xraygpt.models.weights.files import read_state_dict, weight_files

TOWER = "model.vision_tower.vision_tower.vision_model."
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
PROJECTOR_FILE = "mm_projector.bin"
NON_LORA_FILE = "non_lora_trainables.bin"
ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_IN_MODEL = re.compile(r"(mm_projector|vision_tower|image_newline)\b")
# A CLIP or SigLIP folder also has a text tower, which LLaVA does not use.
_TOWER_PARTS = re.compile(r"(embeddings|encoder|post_layernorm|pre_layrnorm|head)\.")


@dataclass(frozen=True)
class Stored:
    """Where a tensor is stored, and what it looks like."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Adapter:
    """A LoRA update of one matrix, ``weight + scale * B @ A`` (Hu et al. 2022, arXiv:2106.09685).

    Attributes:
        scale: ``alpha / r``, or ``alpha / sqrt(r)`` with rank stabilization.
        a: Matrix of shape (r, in features); None until it is read.
        b: Matrix of shape (out features, r); None until it is read.
    """

    scale: float
    a: Tensor | None = None
    b: Tensor | None = None

    def merge(self, weight: Tensor) -> Tensor:
        """Return the updated matrix in its own dtype; the update is added in float32."""
        assert self.a is not None
        assert self.b is not None
        update = self.scale * (self.b.float() @ self.a.float())
        return (weight.float() + update).to(weight.dtype)


@dataclass
class LlavaTensors:
    """The tensors of a checkpoint by their names in LLaVA-NeXT, read file by file.

    Attributes:
        folder: The checkpoint's folder, named in messages.
        stored: Each tensor's location.
        adapters: LoRA updates by the name of the matrix they change.
        own_tower: Whether the checkpoint itself contains the vision tower.
        ignored: Number of tensors in a vision tower's folder that belong to no image encoder.
    """

    folder: Path
    stored: dict[str, Stored] = field(default_factory=dict)
    adapters: dict[str, Adapter] = field(default_factory=dict)
    own_tower: bool = True
    ignored: int = 0

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape.

        Raises:
            WeightsError: The checkpoint has no such tensor.
        """
        if name not in self.stored:
            raise WeightsError(f"{self.folder} lacks {name}; is a shard missing?")
        return self.stored[name].shape

    def read(self, name: str) -> Tensor:
        """Read one tensor, with its LoRA update."""
        place = self.stored[name]
        return self._merged(name, read_state_dict(place.file)[place.name])

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors, with their LoRA updates; one file is open at a time."""
        by_file: dict[Path, list[str]] = {}
        for name, place in self.stored.items():
            by_file.setdefault(place.file, []).append(name)
        for file, names in by_file.items():
            state = read_state_dict(file)
            for name in names:
                yield name, self._merged(name, state.pop(self.stored[name].name))

    def _merged(self, name: str, tensor: Tensor) -> Tensor:
        return self.adapters[name].merge(tensor) if name in self.adapters else tensor


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's object, or an empty one if there is none.

    Raises:
        WeightsError: The file is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path} contains no JSON object")
    return content


def is_partial(folder: Path) -> bool:
    """Check whether a folder has only what was trained: a LoRA adapter or a projector."""
    has_adapter = (folder / ADAPTER_CONFIG).is_file()
    full = any(folder.glob("model*.safetensors*")) or any(folder.glob("pytorch_model*.bin*"))
    return has_adapter or ((folder / PROJECTOR_FILE).is_file() and not full)


def open_tensors(source: Path, base: Path | None, tower: Path | None) -> LlavaTensors:
    """List the tensors of a checkpoint without converting any.

    Args:
        source: The checkpoint: all weights in one or several files, or only a LoRA adapter
            (``adapter_model.*`` and ``non_lora_trainables.bin``), or only ``mm_projector.bin``.
        base: For the last two, the checkpoint or language model that was trained.
        tower: Folder of the vision tower, used if the checkpoint does not contain it.

    Raises:
        WeightsError: Files are missing or damaged, or an adapter cannot be merged.
    """
    tensors = LlavaTensors(source)
    full = source
    if is_partial(source):
        full = base or _recorded_base(source)
    _add(tensors, weight_files(full))
    tensors.own_tower = any(name.startswith(TOWER) for name in tensors.stored)
    if not tensors.own_tower and tower is not None:
        _add_tower(tensors, tower)
    if full != source:
        extra = [source / name for name in (PROJECTOR_FILE, NON_LORA_FILE)]
        for file in extra:
            if file.is_file():
                _add(tensors, [file])
        if (source / ADAPTER_CONFIG).is_file():
            _add_adapter(tensors, source)
    return tensors


def _recorded_base(source: Path) -> Path:
    """Return the base model that a partial checkpoint names, if it is a local folder."""
    adapter, config = read_json(source / ADAPTER_CONFIG), read_json(source / "config.json")
    name = adapter.get("base_model_name_or_path") or config.get("_name_or_path") or ""
    if name and Path(name).is_dir() and Path(name).resolve() != source.resolve():
        return Path(name)
    of = f" (it was {name})" if name else ""
    raise WeightsError(
        f"{source} contains only trained parts; pass the model they belong to{of} with "
        "--base FOLDER"
    )


def _add(tensors: LlavaTensors, files: list[Path]) -> None:
    """Add files that belong together; they replace tensors that were added before."""
    added: dict[str, Stored] = {}
    for file in files:
        for name, tensor in read_state_dict(file).items():
            original = original_name(name)
            if original in added:
                raise WeightsError(
                    f"{original} is in both {added[original].file.name} and {file.name}"
                )
            added[original] = Stored(file, name, tuple(tensor.shape), tensor.dtype)
    tensors.stored |= added


def original_name(name: str) -> str:
    """Return the name in a full LLaVA-NeXT checkpoint, without PEFT's and DeepSpeed's prefixes."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
    return f"model.{name}" if _IN_MODEL.match(name) else name


def _add_tower(tensors: LlavaTensors, folder: Path) -> None:
    """Add the image encoder in the folder of a CLIP or SigLIP."""
    for file in weight_files(folder):
        for name, tensor in read_state_dict(file).items():
            part = name.removeprefix("vision_model.")
            if not _TOWER_PARTS.match(part):
                tensors.ignored += 1
                continue
            place = Stored(file, name, tuple(tensor.shape), tensor.dtype)
            tensors.stored[f"{TOWER}{part}"] = place


def _add_adapter(tensors: LlavaTensors, folder: Path) -> None:
    config = read_json(folder / ADAPTER_CONFIG)
    unsupported = [
        key
        for key in ("use_dora", "fan_in_fan_out", "alpha_pattern", "lora_bias", "layer_replication")
        if config.get(key)
    ]
    if config.get("peft_type", "LORA") != "LORA" or unsupported:
        kind = ", ".join(unsupported) or config.get("peft_type")
        raise WeightsError(
            f"{folder / ADAPTER_CONFIG}: {kind} cannot be merged here; merge the adapter with the "
            "program that trained it"
        )
    file = next((folder / n for n in _ADAPTER_FILES if (folder / n).is_file()), None)
    if file is None:
        raise WeightsError(f"{folder} contains none of {', '.join(_ADAPTER_FILES)}")
    for name, tensor in read_state_dict(file).items():
        match = _LORA.fullmatch(original_name(name))
        if match is None:  # a module that was trained as a whole
            place = Stored(file, name, tuple(tensor.shape), tensor.dtype)
            tensors.stored[original_name(name)] = place
            continue
        adapter = tensors.adapters.setdefault(f"{match[1]}.weight", Adapter(0.0))
        if match[2] == "A":
            adapter.a, adapter.scale = tensor, _scale(config, tensor.shape[0], file)
        else:
            adapter.b = tensor
    _check_adapter(tensors, file)


def _scale(config: dict[str, Any], rank: int, file: Path) -> float:
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or rank == 0:
        raise WeightsError(f"{file.parent / ADAPTER_CONFIG}: lora_alpha is missing")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _check_adapter(tensors: LlavaTensors, file: Path) -> None:
    problems = []
    for name, adapter in tensors.adapters.items():
        if adapter.a is None or adapter.b is None:
            problems.append(f"{name} has only one of lora_A and lora_B")
        elif name not in tensors.stored:
            problems.append(f"the base model has no {name}")
        elif (adapter.b.shape[0], adapter.a.shape[1]) != tensors.stored[name].shape:
            problems.append(
                f"{name}: {adapter.b.shape[0], adapter.a.shape[1]} in the adapter, "
                f"{tensors.stored[name].shape} in the base model"
            )
    if not tensors.adapters:
        problems.append("it has no LoRA weights")
    if problems:
        raise WeightsError(f"{file} does not fit its base model: {listing(problems)}")
