"""Weight files of any kind -> named tensors, without running any code in them."""

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

from xraygpt.common.checkpoint import find_checkpoint, manifest_of, verify
from xraygpt.common.errors import WeightsError

WEIGHTS = "model.safetensors"  # of a checkpoint of ours
# What may hold the weights of a folder, in the order transformers looks; an index names shards.
_CANDIDATES = (
    WEIGHTS,
    "model.safetensors.index.json",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_pytorch_model.bin",
)
# What reading a damaged or made-up file may raise, besides pickle's own error.
_DAMAGED = (
    SafetensorError, RuntimeError, EOFError, OSError, ValueError, IndexError, KeyError,
    AttributeError, TypeError, AssertionError, struct.error,
)  # fmt: skip


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


def weight_files(path: Path, *, check: bool = True) -> list[Path]:
    """The file itself, or the weight files of a folder; a converted one is checked if asked.

    Raises:
        WeightsError: Nothing there, or a shard is.
    """
    if path.is_file():
        if check and is_converted(path):
            verify(path.parent, only=path.name)
        return [path]
    if check and is_converted(path):
        verify(path)
    found = next((n for n in _CANDIDATES if (path / n).is_file()), None)
    if found is None:
        looked = ", ".join(_CANDIDATES)
        kind = f"none of {looked} in {path}" if path.is_dir() else f"no weights at {path}"
        raise WeightsError(kind)
    return _shards(path / found) if found.endswith(".json") else [path / found]


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
    refuse_other_files(path)
    try:
        if path.suffix == ".safetensors" or _looks_like_safetensors(path):
            return load_file(path)
        content = _unpickled(path)
    except _DAMAGED as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size} bytes) is cut off, damaged or no weight file "
            f"({type(error).__name__}: {error})"
        ) from None
    except pickle.UnpicklingError:
        raise WeightsError(
            f"{path} is a pickle that wants to run code, which is refused; "
            "save its tensors alone, best as .safetensors"
        ) from None
    if isinstance(content, _Inert):
        tensors = _tensors(content)
    else:
        for key in ("model", "state_dict"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        state = content if isinstance(content, dict) else {}
        tensors = {str(name): t for name, t in state.items() if isinstance(t, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no named tensors but a {type(content).__name__}")
    return tensors


def _looks_like_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a JSON header and the header, whatever its name."""
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length < path.stat().st_size


def _unpickled(path: Path) -> Any:
    """What a PyTorch file holds; of code it may name torch's layers alone, and none of it is run.

    Raises:
        pickle.UnpicklingError: It names anything else.
    """
    with torch.serialization.safe_globals(_inert_layers()):
        try:
            mapped = zipfile.is_zipfile(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            if mapped:
                raise
    # Before 1.6 torch wrote whole modules in a way its safe reader does not know.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks whether the layers' source has changed
        restricted: Any = _Restricted
        return torch.load(path, map_location="cpu", pickle_module=restricted, weights_only=False)


class _Inert:
    """Stands for a layer in a file that holds a whole module: its attributes, none of its code."""

    def __init__(self, *_: Any) -> None: ...


def _tensors(module: _Inert, prefix: str = "", seen: frozenset[int] = frozenset()) -> Any:
    """Parameters and saved buffers under the names `state_dict` would give them."""
    found: dict[str, Tensor] = {}
    content = vars(module)
    unsaved = content.get("_non_persistent_buffers_set")
    unsaved = unsaved if isinstance(unsaved, set) else set()
    for kind in ("_parameters", "_buffers", "_modules"):
        named = content.get(kind)
        for name, value in named.items() if isinstance(named, dict) else ():
            if isinstance(value, Tensor) and not (kind == "_buffers" and name in unsaved):
                found[f"{prefix}{name}"] = value.detach()
            elif isinstance(value, _Inert) and id(value) not in seen:
                found |= _tensors(value, f"{prefix}{name}.", seen | {id(module)})
    return found


class _Restricted:
    """The part of the module `pickle` that `torch.load` uses, with a list of what may be named."""

    class Unpickler(pickle.Unpickler):
        """Finds what tensors are rebuilt with, and the inert layers."""

        def find_class(self, module: str, name: str) -> Any:
            """The object called ``module.name``.

            Raises:
                pickle.UnpicklingError: It is not on the list.
            """
            inert = {known: layer for layer, known in _inert_layers()}
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
                raise pickle.UnpicklingError(f"{full} is not on the list")
            return allowed[full]

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        """As `pickle.load`."""
        return _Restricted.Unpickler(file, **options).load()


@functools.cache
def _inert_layers() -> list[Any]:
    """Torch's layers, and torchxrayvision's, whose published files are whole pickled modules."""
    layers = [v for v in vars(nn).values() if isinstance(v, type) and issubclass(v, nn.Module)]
    names = {f"{layer.__module__}.{layer.__qualname__}" for layer in layers}
    names |= {f"torchxrayvision.models.{n}" for n in ("DenseNet", "_DenseLayer", "_DenseBlock")}
    names.add("torchxrayvision.models._Transition")
    return [(type(name, (_Inert,), {}), name) for name in sorted(names)]


def refuse_other_files(path: Path) -> None:
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
    if path.stat().st_size < 4096 and start.isascii() and start.decode().isprintable():
        raise WeightsError(
            f"{path} is text, not weights ('{start[:60].decode()}'); download it again"
        )


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
    theirs = any((folder / name).is_file() for name in _CANDIDATES)
    return theirs and not (folder / "config.yaml").is_file()


def save_half(state: dict[str, Tensor], path: Path) -> None:
    """Matrices in half precision; vectors, among them running variances, as they are.

    Raises:
        WeightsError: A value is too large for it.
    """
    packed = {n: t.half() if t.is_floating_point() and t.dim() > 1 else t for n, t in state.items()}
    large = [n for n, t in packed.items() if t.is_floating_point() and not t.isfinite().all()]
    if large:
        raise WeightsError(f"{large[0]} holds values beyond half precision (65504)")
    save_file({n: t.contiguous() for n, t in packed.items()}, path)
