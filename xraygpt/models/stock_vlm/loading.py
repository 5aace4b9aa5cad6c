"""Loads transformers' image-text-to-text models and their processors from a folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm.llm_files import (
    LOAD_ERRORS,
    LOCAL_ONLY,
    quantization,
    resolve_dtype,
    set_4bit_cpu_kernel,
)
from xraygpt.models.stock_vlm.config import StockSettings
from xraygpt.models.stock_vlm.family import Family
from xraygpt.models.stock_vlm.llava_onevision import LlavaOneVision
from xraygpt.models.stock_vlm.qwen import Qwen3VL, QwenVL
from xraygpt.models.weights.files import check_weight_file, weight_files

FAMILIES: tuple[type[Family], ...] = (QwenVL, Qwen3VL, LlavaOneVision)
_NOT_QUANTIZED = ("visual", "vision_tower", "multi_modal_projector", "lm_head")
_ORIGINAL_LLAVA = ("llava_qwen", "llava_llama", "llava_mistral")


def find_family(folder: Path) -> type[Family]:
    """Return the family of the model in a folder.

    Raises:
        WeightsError: The folder contains no model of a known family.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_type = config.get("model_type")
    except (OSError, ValueError, AttributeError):
        raise WeightsError(
            f"model.path: {folder} is not a transformers folder (its config.json is missing or "
            "damaged). `python -m xraygpt.download` downloads models from the hub"
        ) from None
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = ", ".join(t for family in FAMILIES for t in family.model_types)
    if model_type in _ORIGINAL_LLAVA:
        raise WeightsError(
            f"model.path: {folder} is an original LLaVA checkpoint; convert it: "
            f"python -m xraygpt.convert {folder} OUT --from llava"
        )
    raise WeightsError(
        f"model.path: {folder} contains a model of type '{model_type}', but stock_vlm supports "
        f"{known}"
    )


def load_processor(folder: Path) -> Any:
    """Load the processor of a model, without running code from the folder.

    Raises:
        WeightsError: A file is missing or damaged.
    """
    try:
        processor = AutoProcessor.from_pretrained(folder, **LOCAL_ONLY)
        template = processor.chat_template or processor.tokenizer.chat_template
    except LOAD_ERRORS as error:
        raise WeightsError(
            f"model.path: the processor in {folder} cannot be loaded: {error}. It consists of "
            "tokenizer.json, tokenizer_config.json and preprocessor_config.json or "
            "processor_config.json"
        ) from None
    processor.tokenizer.chat_template = template
    return processor


def load_family(settings: StockSettings, *, weights: bool = True) -> Family:
    """Load a model and its processor, and set the limits on the size of media.

    Args:
        settings: The settings of the model.
        weights: Whether to load the weights; without them, the model has no values, and only
            counts tokens.

    Raises:
        WeightsError: A file is missing or damaged.
        InputError: The family does not support the limits.
    """
    family = find_family(settings.path)
    load = load_network if weights else _load_skeleton
    built = family(load(settings.path, settings), load_processor(settings.path))
    limits = settings.media
    pairs = {
        "image": (limits.image_min_pixels, limits.image_max_pixels),
        "video": (limits.video_min_pixels, limits.video_max_pixels),
    }
    for kind, (low, high) in pairs.items():
        if low or high:
            built.set_pixels(kind, low, high)  # type: ignore[arg-type]
    return built


def _load_skeleton(folder: Path, _: StockSettings) -> Any:
    """Build the modules of a model without memory for their weights."""
    try:
        config = AutoConfig.from_pretrained(folder, **LOCAL_ONLY)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except LOAD_ERRORS as error:
        why = str(error).strip() or type(error).__name__
        raise WeightsError(f"model.path: {folder} cannot be loaded: {why}") from None


def load_network(folder: Path, settings: StockSettings) -> Any:
    """Load the model with its weights.

    Raises:
        WeightsError: A weight is missing, damaged or of another shape, or there is no kernel for
            the quantized weights.
    """
    try:
        for file in weight_files(folder):
            check_weight_file(file)
    except WeightsError as error:
        raise WeightsError(f"model.path: {error}") from None
    options: dict[str, Any] = {}
    if settings.attention is not None:
        options["attn_implementation"] = settings.attention
    dtype = resolve_dtype(settings.dtype)
    if settings.bits:
        options["quantization_config"] = quantization(
            settings.bits, dtype, "model.bits", _NOT_QUANTIZED
        )
        options["device_map"] = settings.device_map or (
            "auto" if torch.cuda.is_available() else "cpu"
        )
    elif settings.device_map:
        options["device_map"] = settings.device_map
    try:
        with _quiet():
            loaded: Any = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=dtype, **LOCAL_ONLY, output_loading_info=True, **options
            )
    except LOAD_ERRORS as error:
        why = str(error).strip() or type(error).__name__
        raise WeightsError(f"model.path: {folder} cannot be loaded: {why}") from None
    network, info = loaded
    _check_loading(folder, info)
    if settings.bits:
        set_4bit_cpu_kernel(network, False)
    return network


def _check_loading(folder: Path, info: Any) -> None:
    problems = [f"missing {name}" for name in sorted(info["missing_keys"])]
    problems += [f"unknown {name}" for name in sorted(info["unexpected_keys"])]
    problems += [f"{name} has another shape" for name, *_ in sorted(info["mismatched_keys"])]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise WeightsError(
            f"model.path: the weights in {folder} are not those of its config.json: "
            f"{'; '.join(problems[:5])}{more}"
        )


@contextlib.contextmanager
def _quiet() -> Any:
    """Suppress transformers' progress bar, which loading a small model does not need."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()
