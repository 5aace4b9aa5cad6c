"""Builds a Q-Former model's vision encoder and LLM from its configuration."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xraygpt.common.errors import WeightsError
from xraygpt.common.requirements import FrozenParts
from xraygpt.models.llm import small_llm
from xraygpt.models.llm.config import LLMConfig
from xraygpt.models.qformer_llm.config import BridgeConfig
from xraygpt.models.vision import encoders
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.config import EncoderConfig, VisionConfig
from xraygpt.models.vision.finding_head import FindingHead

log = logging.getLogger(__name__)


def find_unsupported(qformer: nn.Module, head: FindingHead | None) -> dict[str, str]:
    """Return the reasons why a model cannot trace its attention or predict findings."""
    unsupported = {}
    if not hasattr(qformer, "qformer"):  # the Q-Former was replaced by a plug-in
        unsupported["maps"] = "the module that replaces its Q-Former has no cross-attention"
    if head is None:
        unsupported["findings"] = (
            "it has no finding head; set model.finding_head to the file written by "
            "`python -m xraygpt.probe … --save`"
        )
    return unsupported


def build_encoder(config: EncoderConfig) -> VisionEncoder:
    """Build an encoder and load its weights.

    Raises:
        WeightsError: The weight file is missing or does not fit; the message names the YAML key.
    """
    try:
        return encoders.build_vision(config.encoder, config.image_size, config.ckpt)
    except WeightsError as error:
        text = str(error)
        raise WeightsError(
            text if text.startswith("model.") else f"model.vit_ckpt: {text}"
        ) from None


def build_vision(config: VisionConfig, model_ckpt: Path | None) -> VisionEncoder | None:
    """Build the encoder and freeze it if configured so; None for pre-computed features.

    Args:
        config: The `vision` section.
        model_ckpt: The whole model's checkpoint, which may contain the encoder's weights.
    """
    if config.width is not None:
        return None
    encoder = build_encoder(config)
    if config.freeze:
        encoder.freeze()
        if not (config.ckpt or model_ckpt or encoders.has_weights(config.encoder)):
            log.warning(
                "the vision encoder %s is frozen with random weights, so the model cannot read "
                "images: set model.vit_ckpt",
                config.encoder,
            )
    return encoder


def frozen_parts(
    vision: EncoderConfig,
    ckpt: Path | None,
    qformer: BridgeConfig | None = None,
    llm: LLMConfig | None = None,
) -> FrozenParts | None:
    """Return a model's frozen parts; None if its encoder is trained or has weights of its own.

    Args:
        vision: The encoder, which is trained if it has a field `freeze` that is False.
        ckpt: The model's checkpoint.
        qformer: The Q-Former, if it may be frozen.
        llm: The LLM, if there is one.
    """
    precomputed = getattr(vision, "width", None) is not None
    if precomputed or not getattr(vision, "freeze", True) or encoders.has_weights(vision.encoder):
        return None
    sources: dict[str, tuple[str, Any]] = {"vision.": ("model.vit_ckpt", vision.ckpt)}
    if qformer is not None and qformer.freeze:
        sources["qformer."] = ("model.q_former_model", qformer.init_from)
    if llm is not None and llm.freeze:
        sources["llm."] = ("model.llama_model", llm.source)
    return FrozenParts(vision.encoder, ckpt, sources)


def build_llm(config: LLMConfig, seed: int) -> tuple[Any, Any]:
    """Load the LLM and its tokenizer, or create a small random LLM if there is no source.

    Args:
        config: The `llm` section.
        seed: Seed for the weights of a random LLM.
    """
    if config.source is None:
        tokenizer = small_llm.new_tokenizer([], 260)
        return small_llm.new_llm(config.size, tokenizer, seed), tokenizer
    return config.load()


@torch.no_grad()
def init_projection(proj: nn.Linear, llm: Any) -> None:
    """Initialize the projection so that image tokens are as large as the LLM's embeddings.

    Larger image tokens dominate the residual stream and shrink gradients through its norms, so that
    a Q-Former trained from scratch learns many times more slowly.
    """
    embedding = llm.get_input_embeddings().weight.float()
    size = float(embedding.pow(2).mean().sqrt())
    nn.init.normal_(proj.weight, std=size / proj.in_features**0.5)
    nn.init.zeros_(proj.bias)


def encode(vision: VisionEncoder, config: VisionConfig, pixel_values: Tensor) -> Tensor:
    """Encode (N, C, H, W) images as (N, L, D) float32, in the configured precision and device."""
    half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.precision)
    device = pixel_values.device
    if config.on_cpu:
        pixel_values = pixel_values.cpu()
    use_half = half is not None and pixel_values.is_cuda
    with (
        torch.no_grad() if config.freeze else contextlib.nullcontext(),
        torch.autocast("cuda", half) if use_half else contextlib.nullcontext(),
    ):
        return vision.encode(pixel_values).float().to(device)
