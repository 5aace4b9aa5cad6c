"""Reads weight files of any kind as named tensors, without running code that they contain."""

from __future__ import annotations

import functools
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xraygpt.common.checkpoint import find_checkpoint, read_manifest, verify_manifest
from xraygpt.common.errors import WeightsError

WEIGHTS = "model.safetensors"  # in this project's checkpoints
# Possible weight files in a folder, in transformers' order; an index lists shards.
_CANDIDATES = (
    WEIGHTS,
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# Exceptions raised for damaged or manipulated files, in addition to pickle's own.
_DAMAGED = (
    SafetensorError, RuntimeError, EOFError, OSError, ValueError, IndexError, KeyError,
    AttributeError, TypeError, AssertionError, struct.error,
)  # fmt: skip


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a file or folder, memory-mapped where possible.

    Args:
        path: A safetensors file, a PyTorch file of any version, or a folder with such files, as
            written by transformers, open_clip and MedCLIP.

    Raises:
        WeightsError: The file is missing or damaged, or a pickle with more than tensors and layers.
    """
    state: dict[str, Tensor] = {}
    for file in weight_files(path):
        state |= _read_file(file)
    return state


def weight_files(path: Path, *, check: bool = True) -> list[Path]:
    """Return the file itself, or the weight files in a folder.

    Args:
        path: The file or folder.
        check: Verify checksums if the folder was written by `xraygpt.convert`.

    Raises:
        WeightsError: There are no weights, a shard is missing, or a checksum differs.
    """
    if path.is_file():
        if check and is_converted(path):
            verify_manifest(path.parent, only=path.name)
        return [path]
    if check and is_converted(path):
        verify_manifest(path)
    name = next((n for n in _CANDIDATES if (path / n).is_file()), None)
    if name is None:
        candidates = ", ".join(_CANDIDATES)
        missing = (
            f"{path} contains none of {candidates}"
            if path.is_dir()
            else f"there are no weights at {path}"
        )
        raise WeightsError(missing)
    return _shards(path / name) if name.endswith(".json") else [path / name]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise WeightsError(f"{index} cannot be read: {error!r}") from None
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise WeightsError(
            f"{index.parent} lacks {len(missing)} of {len(names)} files that {index.name} names: "
            f"{', '.join(missing[:5])}; download them again"
        )
    return [index.parent / name for name in names]


def _read_file(path: Path) -> dict[str, Tensor]:
    check_weight_file(path)
    try:
        if path.suffix == ".safetensors" or _looks_like_safetensors(path):
            return load_file(path)
        content = _load_pickle(path)
    except _DAMAGED as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is truncated, damaged or not a weight file "
            f"({type(error).__name__}: {error})"
        ) from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} is a pickle that would run code, which is refused; save only its tensors, "
            "preferably as .safetensors"
        ) from None
    tensors = _collect_tensors(content) if isinstance(content, _Inert) else _named_tensors(content)
    if not tensors:
        content_type = type(_unwrap(content)).__name__
        raise WeightsError(f"{path} contains a {content_type} instead of named tensors")
    return tensors


def _unwrap(content: Any) -> Any:
    """Return the state in a checkpoint ``{"model": …}`` or ``{"state_dict": …}``."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return content


def _named_tensors(content: Any) -> dict[str, Tensor]:
    state = _unwrap(content)
    named = state.items() if isinstance(state, dict) else ()
    return {str(name): t for name, t in named if isinstance(t, Tensor)}


def _looks_like_safetensors(path: Path) -> bool:
    """Return whether a file starts with the length of a JSON header and the header itself."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length < path.stat().st_size


def _load_pickle(path: Path) -> Any:
    """Load a PyTorch file without running code; it may name no classes but torch's layers.

    Raises:
        pickle.UnpicklingError: The file names other objects.
    """
    with torch.serialization.safe_globals(_inert_layers()):
        try:
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            if mapped:
                raise
    # torch's safe reader does not support whole modules saved by torch versions before 1.6.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about changed source code of layers
        restricted: Any = _Restricted
        return torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)


class _Inert:
    """Replaces a layer in a pickled module: it has the layer's attributes, but not its code."""

    def __init__(self, *_: Any) -> None: ...


def _collect_tensors(module: _Inert, prefix: str = "", seen: frozenset[int] = frozenset()) -> Any:
    """Collect parameters and persistent buffers, named as in `state_dict`."""
    tensors: dict[str, Tensor] = {}
    content = vars(module)
    unsaved = content.get("_non_persistent_buffers_set")
    unsaved = unsaved if isinstance(unsaved, set) else set()
    for kind in ("_parameters", "_buffers", "_modules"):
        named = content.get(kind)
        for name, value in named.items() if isinstance(named, dict) else ():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in unsaved):
                tensors[f"{prefix}{name}"] = value.detach()
            elif isinstance(value, _Inert) and id(value) not in seen:
                tensors |= _collect_tensors(value, f"{prefix}{name}.", seen | {id(module)})
    return tensors


class _Restricted:
    """Replaces the module `pickle` in `torch.load`, but allows only certain objects."""

    class Unpickler(pickle.Unpickler):
        """Finds only functions that rebuild tensors, and inert layers."""

        def find_class(self, module: str, name: str) -> Any:
            """Return the object called ``module.name``.

            Raises:
                pickle.UnpicklingError: The object is not allowed.
            """
            inert = {qualified: layer for layer, qualified in _inert_layers()}
            allowed = {
                "collections.OrderedDict": OrderedDict,
                "torch._utils._rebuild_tensor": torch._utils._rebuild_tensor,
                "torch._utils._rebuild_tensor_v2": torch._utils._rebuild_tensor_v2,
                "torch._utils._rebuild_parameter": torch._utils._rebuild_parameter,
                "torch.nn.parameter.Parameter": nn.Parameter,
                "torch.Size": torch.Size,
                "builtins.set": set,
                "__builtin__.set": set,
                **inert,
            }
            full = f"{module}.{name}"
            if full not in allowed:
                raise pickle.UnpicklingError(f"{full} is not allowed")
            return allowed[full]

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """Load a file the way `pickle.load` does."""
        return _Restricted.Unpickler(file, **options).load()


@functools.cache
def _inert_layers() -> list[Any]:
    """List layers in torch, and in torchxrayvision, which publishes whole pickled modules."""
    layers = [v for v in vars(nn).values() if isinstance(v, type) and issubclass(v, nn.Module)]
    names = {f"{layer.__module__}.{layer.__qualname__}" for layer in layers}
    names |= {f"torchxrayvision.models.{n}" for n in ("DenseNet", "_DenseLayer", "_DenseBlock")}
    names.add("torchxrayvision.models._Transition")
    return [(type(name, (_Inert,), {}), name) for name in sorted(names)]


def check_weight_file(path: Path) -> None:
    """Detect files that a failed download leaves in place of weights.

    Raises:
        WeightsError: The file is empty, a web page, a Git LFS pointer or text.
    """
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    if not start:
        raise WeightsError(f"{path} is empty; download it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise WeightsError(f"{path} is a web page, not the weight file; download it again")
    if start.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a Git LFS pointer, not the weight file; run: git lfs pull")
    if path.stat().st_size < 4096 and start.isascii() and start.decode().isprintable():
        raise WeightsError(
            f"{path} is text, not weights ('{start[:60].decode()}'); download it again"
        )


def read_weights(path: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights in a run, a checkpoint, a file or a folder.

    Returns:
        The weight file or folder (see `weight_source`), and its tensors.

    Raises:
        WeightsError: There are no usable weights.
    """
    source = weight_source(path)
    return source, read_state_dict(source)


def weight_source(path: Path) -> Path:
    """Find the weights at `path`: the file or downloaded folder, or the checkpoint's file.

    Raises:
        WeightsError: There are no usable weights.
    """
    if path.is_file() or is_downloaded(path):
        return path
    return find_checkpoint(path) / WEIGHTS


def is_converted(source: Path) -> bool:
    """Return whether a folder, or a file's folder, was written by `python -m xraygpt.convert`."""
    return "converted" in read_manifest(source if source.is_dir() else source.parent)


def is_downloaded(folder: Path) -> bool:
    """Return whether a folder with weights is neither a run nor a checkpoint of this project."""
    has_weights = any((folder / name).is_file() for name in _CANDIDATES)
    return has_weights and not (folder / "config.yaml").is_file()


def save_half(state: dict[str, Tensor], path: Path) -> None:
    """Save matrices in half precision; leave vectors, such as running variances, unchanged.

    Raises:
        WeightsError: A value is too large for half precision.
    """
    halved = {n: t.half() if t.is_floating_point() and t.dim() > 1 else t for n, t in state.items()}
    large = [n for n, t in halved.items() if t.is_floating_point() and not t.isfinite().all()]
    if large:
        raise WeightsError(f"{large[0]} has values beyond half precision (65504)")
    save_file({n: t.contiguous() for n, t in halved.items()}, path)
