"""Tiny vision-language models of transformers with random weights."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

TEXT: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
    "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}
QWEN_IDS = {"image_token_id": 290, "video_token_id": 291}
SIGLIP: dict[str, Any] = {
    "model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
    "vision_use_head": False,
}  # fmt: skip


def tiny_vlm(family: str) -> Any:
    """Build a model with random weights, in evaluation mode.

    Args:
        family: ``qwen2_vl``, ``qwen2_5_vl``, ``qwen3_vl`` or ``llava_onevision``.
    """
    torch.manual_seed(0)
    qwen_text = {**TEXT, "rope_parameters": dict(ROPE)}
    vision = {"depth": 1, "num_heads": 2}
    wide = {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, **vision}
    if family == "qwen2_vl":
        tower = {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2, **vision}
        config = Qwen2VLConfig(text_config=qwen_text, vision_config=tower, **QWEN_IDS)
        model: Any = Qwen2VLForConditionalGeneration(config)
    elif family == "qwen2_5_vl":
        tower = {"fullatt_block_indexes": [0], **wide}
        config = Qwen2_5_VLConfig(text_config=qwen_text, vision_config=tower, **QWEN_IDS)
        model = Qwen2_5_VLForConditionalGeneration(config)
    elif family == "qwen3_vl":
        tower = {"num_position_embeddings": 16, "deepstack_visual_indexes": [0], **wide}
        text = {**qwen_text, "head_dim": 16}
        config = Qwen3VLConfig(text_config=text, vision_config=tower, **QWEN_IDS)
        model = Qwen3VLForConditionalGeneration(config)
    else:
        text = {**TEXT, "model_type": "qwen2"}
        ids = {"image_token_index": 290, "video_token_index": 291}
        config = LlavaOnevisionConfig(text_config=text, vision_config=dict(SIGLIP), **ids)
        model = LlavaOnevisionForConditionalGeneration(config)
    return model.eval()
