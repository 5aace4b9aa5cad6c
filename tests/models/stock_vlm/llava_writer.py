"""Tiny LLaVA-OneVision checkpoints as LLaVA-NeXT's training code writes them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from torch import Tensor
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Tokenizer,
)

from tests.models.stock_vlm.tiny import SIGLIP, TEXT

SIDE = 28
PINPOINTS = [[28, 28], [28, 56], [56, 28], [56, 56]]  # height, width
TOWER = "model.vision_tower.vision_tower.vision_model."
ROWS = 320  # of the embedding; more than there are tokens, as in Qwen2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@cache
def vocabulary() -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    tokenizer = Tokenizer(tokenizer_models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, show_progress=False, initial_alphabet=sorted(alphabet)
    )
    tokenizer.train_from_iterator(["Any effusion? A small effusion."] * 20, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = tuple(
        tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]
    )
    return model["vocab"], merges


def tokenizer(*extra: str) -> Any:
    vocab, merges = vocabulary()
    return Qwen2Tokenizer(
        vocab=dict(vocab), merges=list(merges), unk_token=SPECIAL[0], pad_token=SPECIAL[0],
        eos_token=SPECIAL[2], additional_special_tokens=[*SPECIAL[1:], *extra],
    )  # fmt: skip


def reference(
    *,
    tied: bool = False,
    layers: int = 2,
    rows: int = ROWS,
    text: str = "qwen2",
    clip: bool = False,
) -> Any:
    """The model whose weights are written: transformers' own LLaVA-OneVision, random."""
    torch.manual_seed(1)
    ids = tokenizer("<image>", "<video>").convert_tokens_to_ids(["<image>", "<video>"])
    vision = {**SIGLIP, "num_hidden_layers": layers}
    if clip:
        text = "llama"
        vision = {k: v for k, v in vision.items() if k != "vision_use_head"}
        vision |= {"model_type": "clip_vision_model", "hidden_act": "quick_gelu"}
    config = LlavaOnevisionConfig(
        text_config={
            **TEXT, "model_type": text, "vocab_size": rows, "num_hidden_layers": 2,
            "rope_theta": 1e6, "tie_word_embeddings": tied,
        },
        vision_config=vision,
        image_token_index=ids[0], video_token_index=ids[1], image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2 if clip else -1,
        vision_feature_select_strategy="default" if clip else "full",
        vision_aspect_ratio="anyres_max_9", tie_word_embeddings=tied,
    )  # fmt: skip
    model: Any = LlavaOnevisionForConditionalGeneration(config).eval()
    for parameter in model.parameters():  # so that every weight matters
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def reference_processor() -> Any:
    pixels: dict[str, Any] = {
        "size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3
    }  # fmt: skip
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=PINPOINTS, **pixels),
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        tokenizer=tokenizer("<image>", "<video>"), num_image_tokens=16,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip


def original_state(model: Any) -> dict[str, Tensor]:
    """The weights by the names of LLaVA-NeXT's LlavaQwenForCausalLM."""
    core = model.model
    state = {f"model.{n}": t for n, t in core.language_model.state_dict().items()}
    state |= {f"{TOWER}{n}": t for n, t in core.vision_tower.state_dict().items()}
    for number, layer in ((0, core.multi_modal_projector.linear_1),
                          (2, core.multi_modal_projector.linear_2)):  # fmt: skip
        state |= {f"model.mm_projector.{number}.{n}": t for n, t in layer.state_dict().items()}
    state["model.image_newline"] = core.image_newline.data
    state["lm_head.weight"] = model.lm_head.weight.data
    return {name: t.detach().clone() for name, t in state.items()}


def original_config(model: Any, **changes: Any) -> dict[str, Any]:
    """A config.json as LLaVA-NeXT writes it: flat, without the vision tower."""
    text = model.config.text_config
    kept = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "hidden_act",
        "tie_word_embeddings", "vocab_size", "bos_token_id", "eos_token_id",
    )  # fmt: skip
    return {
        **{key: getattr(text, key) for key in kept},
        "model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"],
        "rope_theta": 1e6, "rope_scaling": None, "use_sliding_window": False,
        "torch_dtype": "float32", "transformers_version": "4.40.0.dev0",
        "mm_vision_tower": "lab/tiny-siglip", "mm_hidden_size": 32,
        "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch", "mm_patch_merge_type": "spatial_unpad",
        "mm_resampler_type": None, "mm_spatial_pool_mode": "bilinear",
        "mm_use_im_start_end": False, "mm_use_im_patch_token": False,
        "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),...,(2x2)",
        "tokenizer_model_max_length": 2048, "use_mm_proj": True, **changes,
    }  # fmt: skip


def write_checkpoint(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], *, kind: str = "safetensors",
    shards: int = 1,
) -> Path:  # fmt: skip
    """Write weights, configuration and tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer().save_pretrained(folder)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = sorted(state)
    parts = [names[number::shards] for number in range(shards)]
    weight_map = {}
    for number, part in enumerate(parts, start=1):
        name = f"{stem}-{number:05d}-of-{shards:05d}.{kind}" if shards > 1 else f"{stem}.{kind}"
        tensors = {n: state[n].contiguous() for n in part}
        if kind == "safetensors":
            save_file(tensors, folder / name)
        else:
            torch.save(tensors, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return folder


def write_tower(folder: Path, model: Any, *, layers: int = 3) -> Path:
    """Write a complete SigLIP: the image encoder with one more layer and a head, and its text part.

    Args:
        folder: Folder to create.
        model: Its image encoder has the layers before the last.
        layers: Number of layers in the folder.
    """
    folder.mkdir(parents=True)
    vision = {k: v for k, v in SIGLIP.items() if k != "vision_use_head"}
    config = {"model_type": "siglip", "vision_config": {**vision, "num_hidden_layers": layers}}
    (folder / "config.json").write_text(json.dumps(config))
    tower = {f"vision_model.{n}": t for n, t in model.model.vision_tower.state_dict().items()}
    last = "vision_model.encoder.layers.1."
    extra = {n.replace(".1.", f".{layers - 1}.", 1): t for n, t in tower.items() if last in n}
    tower |= {n: torch.randn_like(t) for n, t in extra.items()}
    tower |= {"vision_model.head.probe": torch.randn(1, 1, 32), "logit_scale": torch.ones(1)}
    save_file({n: t.contiguous() for n, t in tower.items()}, folder / "model.safetensors")
    return folder


def samples() -> dict[str, dict[str, Any]]:
    """Inputs of the processor: one image in tiles, two images, a video, and text alone."""
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 255, (60, 40 + 9 * n, 3), dtype=np.uint8)) for n in range(2)
    ]
    video = rng.integers(0, 255, (4, 30, 34, 3), dtype=np.uint8)
    return {
        "image": {"text": ["<image>\nAny effusion?"], "images": [images[:1]]},
        "images": {"text": ["<image>\n<image>\nAny effusion?"], "images": [images]},
        "video": {"text": ["<video>\nAny effusion?"], "videos": [video]},
        "text": {"text": ["Any effusion?"]},
    }
