"""Weight files of any kind -> named tensors, without running any code in them."""

from __future__ import annotations

import functools
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xraygpt.common.checkpoint import find_checkpoint, manifest_of, verify
from xraygpt.common.errors import WeightsError

WEIGHTS = "model.safetensors"  # of a checkpoint of ours
# Files of a folder that hold all its weights, and their indexes where they are in shards.
_WHOLE = (
    WEIGHTS,
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors of a file or of a folder's files; they stay on disk (mapped) until they are touched.

    Args:
        path: A safetensors file, a PyTorch file of any age, or a folder with such files, in shards
            or whole, as transformers, open_clip and MedCLIP leave them.

    Raises:
        WeightsError: Absent, damaged, or a pickle that holds more than tensors and plain layers.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= _read_file(file)
    return state


def weight_files(path: Path) -> list[Path]:
    """The file itself, or the weight files of a folder.

    Raises:
        WeightsError: Nothing there, or a shard is.
    """
    if path.is_file():
        return [path]
    if is_converted(path):
        verify(path)
    for name in _INDEXES:
        if (path / name).is_file():
            return _shards(path / name)
    found = [path / name for name in _WHOLE if (path / name).is_file()]
    if not found:
        looked = ", ".join((*_WHOLE, *_INDEXES))
        kind = f"none of {looked} in {path}" if path.is_dir() else f"no weights at {path}"
        raise WeightsError(kind)
    return found[:1]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{index} cannot be read: {error!r}") from None
    gone = [name for name in names if not (index.parent / name).is_file()]
    if gone:
        raise WeightsError(
            f"{index.parent} lacks {len(gone)} of {len(names)} files that {index.name} names: "
            f"{', '.join(gone[:5])}; download them again"
        )
    return [index.parent / name for name in names]


def _read_file(path: Path) -> dict[str, Tensor]:
    _refuse_other_files(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_inert_layers()):
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is cut off, damaged or no weight file: {error}"
        ) from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} is a pickle that wants to run code, which is refused; "
            "save its tensors alone, best as .safetensors"
        ) from None
    if isinstance(content, _Inert):
        return content.tensors()
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    state = content if isinstance(content, dict) else {}
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no named tensors but a {type(content).__name__}")
    return tensors


class _Inert:
    """Stands for a layer in a file that holds a whole module: its attributes, none of its code."""

    def __init__(self, *_: Any) -> None: ...

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers under the names `state_dict` would give them."""
        found: dict[str, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            named = vars(self).get(kind) or {}
            found |= {prefix + n: t.detach() for n, t in named.items() if isinstance(t, Tensor)}
        for name, child in (vars(self).get("_modules") or {}).items():
            if isinstance(child, _Inert):
                found |= child.tensors(f"{prefix}{name}.")
        return found


@functools.cache
def _inert_layers() -> list[Any]:
    """Torch's layers, and torchxrayvision's, whose published files are whole pickled modules."""
    layers = [v for v in vars(nn).values() if isinstance(v, type) and issubclass(v, nn.Module)]
    names = {f"{layer.__module__}.{layer.__qualname__}" for layer in layers}
    names |= {f"torchxrayvision.models.{n}" for n in ("DenseNet", "_DenseLayer", "_DenseBlock")}
    names.add("torchxrayvision.models._Transition")
    return [(type(name, (_Inert,), {}), name) for name in sorted(names)]


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
    """The weight file of a run, a checkpoint, or the file or folder itself, and its tensors.

    Raises:
        WeightsError: Nothing usable there.
    """
    source = weight_source(path)
    return source, read_state_dict(source)


def weight_source(path: Path) -> Path:
    """Where the weights lie that `path` means: a file, a foreign folder, or a checkpoint's file.

    Raises:
        WeightsError: Nothing usable there.
    """
    if path.is_file() or is_downloaded(path):
        return path
    return find_checkpoint(path) / WEIGHTS


def is_converted(source: Path) -> bool:
    """Whether a folder, or the folder of a file, was made by `python -m xraygpt.convert`."""
    return "converted" in manifest_of(source if source.is_dir() else source.parent)


def is_downloaded(folder: Path) -> bool:
    """Whether a folder is another project's, not a run or a checkpoint of ours."""
    theirs = any((folder / name).is_file() for name in (*_WHOLE, *_INDEXES))
    return theirs and not (folder / "config.yaml").is_file()
