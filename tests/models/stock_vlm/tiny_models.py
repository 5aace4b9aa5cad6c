"""Writes tiny random models of the four families with their processors, offline.

The chat templates are short ones of our own with the format of each family.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "llava_onevision")
QWEN_SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
LLAVA_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
CORPUS = [
    "Is there any pericardial effusion present? There is a small pericardial effusion.",
    "Is the wall motion coordinated? The apex shows reduced motion. No effusion. Yes. No.",
    "What is there? Left. On the right. Clear lungs. The image is dark. The image is bright.",
]
QWEN_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% elif c['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_TEMPLATE = (  # media come first in a turn
    "{% for m in messages %}<|im_start|>{{ m['role'] }} \n{% if m['content'] is string %}"
    "{{ m['content'] }}{% else %}"
    "{% for c in m['content'] if c['type'] == 'image' %}<image>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'video' %}<video>{% endfor %}"
    "{% for c in m['content'] if c['type'] == 'text' %}{{ c['text'] }}{% endfor %}{% endif %}"
    "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant \n{% endif %}"
)
PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56], [28, 84], [84, 28]]


def write_model(family: str, folder: Path, *, scale: float = 1.0, seed: int = 0) -> Path:
    """Write a model of a family to `folder`.

    Args:
        family: One of `FAMILIES`.
        folder: Where to write.
        scale: Factor on all matrices; large enough, answers depend on the image without training.
        seed: Seed of the weights.
    """
    tokenizer = _tokenizer(LLAVA_SPECIALS if family == "llava_onevision" else QWEN_SPECIALS)
    processor, config = _BUILDERS[family](tokenizer)
    torch.manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = transformers.AutoModelForImageTextToText.from_config(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(specials: Sequence[str]) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(
        CORPUS * 8,
        trainers.BpeTrainer(vocab_size=400, show_progress=False, initial_alphabet=alphabet),
    )
    spec = json.loads(core.to_str())["model"]
    return transformers.Qwen2Tokenizer(
        vocab=spec["vocab"],
        merges=[tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in spec["merges"]],
        unk_token="<|endoftext|>", eos_token="<|im_end|>", pad_token="<|endoftext|>",
        additional_special_tokens=list(specials[1:]), model_max_length=8192,
    )  # fmt: skip


def _text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2,
        "max_position_embeddings": 4096, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"), **more,
    }  # fmt: skip


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }  # fmt: skip


def _rope(section: Sequence[int]) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}


def _qwen2_vl(tokenizer: Any) -> tuple[Any, Any]:
    config = transformers.Qwen2VLConfig(
        text_config=_text_config(tokenizer, rope_parameters=_rope([2, 3, 3])),
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2,
                       "mlp_ratio": 2, "patch_size": 14, "spatial_merge_size": 2,
                       "temporal_patch_size": 2},
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _qwen_processor(transformers.Qwen2VLProcessor, tokenizer), config


def _qwen2_5_vl(tokenizer: Any) -> tuple[Any, Any]:
    config = transformers.Qwen2_5_VLConfig(
        text_config=_text_config(tokenizer, rope_parameters=_rope([2, 3, 3])),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
                       "out_hidden_size": 32, "patch_size": 14, "spatial_merge_size": 2,
                       "temporal_patch_size": 2, "window_size": 56,
                       "fullatt_block_indexes": [1], "tokens_per_second": 2},
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return _qwen_processor(transformers.Qwen2_5_VLProcessor, tokenizer), config


def _qwen_processor(cls: Any, tokenizer: Any) -> Any:
    return cls(
        image_processor=transformers.Qwen2VLImageProcessor(
            size={"shortest_edge": 28 * 28, "longest_edge": 147456}
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(
            size={"shortest_edge": 28 * 28, "longest_edge": 65536}, cap_pixels_per_frame=False
        ),
        chat_template=QWEN_TEMPLATE,
    )


def _qwen3_vl(tokenizer: Any) -> tuple[Any, Any]:
    config = transformers.Qwen3VLConfig(
        text_config=_text_config(tokenizer, head_dim=16, rope_parameters={
            **_rope([3, 3, 2]), "mrope_interleaved": True}),
        vision_config={"depth": 3, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2,
                       "out_hidden_size": 32, "patch_size": 16, "spatial_merge_size": 2,
                       "temporal_patch_size": 2, "num_position_embeddings": 64,
                       "deepstack_visual_indexes": [0, 1]},
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    processor = transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(
            size={"shortest_edge": 32 * 32, "longest_edge": 147456}, patch_size=16,
            image_mean=[0.5] * 3, image_std=[0.5] * 3,
        ),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen3VLVideoProcessor(
            size={"shortest_edge": 32 * 32 * 2, "longest_edge": 65536 * 128},
            cap_pixels_per_frame=False,
        ),
        chat_template=QWEN_TEMPLATE,
    )  # fmt: skip
    return processor, config


def _llava_onevision(tokenizer: Any) -> tuple[Any, Any]:
    side, half = 28, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    size = {"height": side, "width": side}
    ids = tokenizer.convert_tokens_to_ids
    config = transformers.LlavaOnevisionConfig(
        vision_config={"model_type": "siglip_vision_model", "hidden_size": 32,
                       "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": side, "patch_size": 7, "vision_use_head": False},
        text_config={"model_type": "qwen2", **_text_config(tokenizer)},
        image_token_index=ids("<image>"), video_token_index=ids("<video>"),
        image_grid_pinpoints=PINPOINTS, vision_feature_layer=-1,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    processor = transformers.LlavaOnevisionProcessor(
        image_processor=transformers.LlavaOnevisionImageProcessor(
            image_grid_pinpoints=PINPOINTS, size=size, **half
        ),
        tokenizer=tokenizer,
        video_processor=transformers.LlavaOnevisionVideoProcessor(size=size, **half),
        num_image_tokens=(side // 7) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_9",
        chat_template=LLAVA_TEMPLATE,
    )
    return processor, config


_BUILDERS = {
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "llava_onevision": _llava_onevision,
}
