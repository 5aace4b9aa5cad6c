"""Renames our weights for other projects: XrayGPT's `.pth`, and BLIP-2 in transformers.

A model that cannot be represented completely is refused. Notation: Q queries; D is the encoder's
width.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AddedToken,
    Blip2Config,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
)

from xraygpt.common.errors import WeightsError
from xraygpt.models.qformer_llm.parts import Composition
from xraygpt.models.qformer_llm.qformer import QFormer, network_sizes
from xraygpt.models.vision.published import is_eva
from xraygpt.models.weights.lavis import OWN_PREFIX
from xraygpt.models.weights.rules import Rule, apply_rules
from xraygpt.processors.image import XrayImage
from xraygpt.prompting.content import Turn
from xraygpt.prompting.renderer import IMAGE_TOKEN_ID, Run

IMAGE_TOKEN = "<image>"
VISION_EPS = 1e-6  # in EVA's blocks; LAVIS's ln_vision has 1e-5, transformers one value for both
_RESERVED = re.compile(r"reserved|unused|extra_id", re.IGNORECASE)

_LAYER = r"qformer\.qformer\.(encoder\.layer\.\d+\.(?:cross)?attention)\.attention\.(.+)"
TO_PTH = (
    Rule(r"proj\.(.+)", r"llama_proj.\1"),
    Rule(r"vision\.net\.(.+)", r"visual_encoder.\1"),
    Rule(r"qformer\.(query_tokens|ln_vision\..+)", r"\1"),
    Rule(
        r"qformer\.qformer\.(?:embeddings\.)?layernorm\.(.+)",
        r"Qformer.bert.embeddings.LayerNorm.\1",
    ),
    Rule(_LAYER, r"Qformer.bert.\1.self.\2"),
    Rule(r"qformer\.qformer\.(.+)", r"Qformer.bert.\1"),
    Rule(r"(average_.+)", rf"{OWN_PREFIX}\1"),  # the original code ignores unknown keys
)
_BLOCK = r"vision\.net\.blocks\.(\d+)\."
TO_BLIP2 = (
    Rule(r"proj\.(.+)", r"language_projection.\1"),
    Rule(r"qformer\.query_tokens", "query_tokens"),
    Rule(r"qformer\.ln_vision\.(.+)", r"vision_model.post_layernorm.\1"),
    Rule(r"qformer\.qformer\.(.+)", r"qformer.\1"),
    Rule(r"vision\.net\.cls_token", "vision_model.embeddings.class_embedding"),
    Rule(r"vision\.net\.pos_embed", "vision_model.embeddings.position_embedding"),
    Rule(r"vision\.net\.patch_embed\.proj\.(.+)", r"vision_model.embeddings.patch_embedding.\1"),
    Rule(_BLOCK + r"norm([12])\.(.+)", r"vision_model.encoder.layers.\1.layer_norm\2.\3"),
    Rule(
        _BLOCK + r"attn\.(qkv\.weight|q_bias|v_bias)",
        r"vision_model.encoder.layers.\1.self_attn.\2",
    ),
    Rule(_BLOCK + r"attn\.proj\.(.+)", r"vision_model.encoder.layers.\1.self_attn.projection.\2"),
    Rule(_BLOCK + r"mlp\.(.+)", r"vision_model.encoder.layers.\1.mlp.\2"),
    Rule(r"llm\.(.+)", r"language_model.\1"),
    Rule(r"average_.+", None, "the average image, used only by our guidance"),
)


def check_exportable(model: Composition, kind: str) -> None:
    """Check that a model has no part that `kind` cannot represent.

    Raises:
        WeightsError: Some parts cannot be represented; the message lists them.
    """
    reasons = []
    if not isinstance(model.qformer, QFormer):
        reasons.append(f"its Q-Former is a {type(model.qformer).__name__}")
    elif model.qformer.adapter is not None:
        reasons.append("it has an adapter between the encoder and the Q-Former")
    elif model.qformer.patch_position is not None:
        reasons.append(
            f"its encoder is {model.config.vision.encoder}, to whose tokens the Q-Former adds "
            "positions, unlike for EVA-CLIP-g"
        )
    if model.config.llm.bits or model.config.llm.low_resource:
        reasons.append(
            "its LLM is quantized: --options model.llm_bits=null model.low_resource=false"
        )
    elif any("lora_" in name for name, _ in model.llm.named_parameters()):
        reasons.append("its LLM has LoRA adapters; --merge-lora adds them to the weights")
    if reasons:
        raise WeightsError(f"{kind} cannot represent this model: {'; '.join(reasons)}")


def pth_state(model: Composition, *, with_vision: bool) -> dict[str, Tensor]:
    """Rename the weights for XrayGPT, MiniGPT-4 and LAVIS.

    Args:
        model: The model, with or without a text-conditioned Q-Former.
        with_vision: Include the encoder, which the originals store in a separate file.

    Raises:
        WeightsError: A part cannot be represented.
    """
    check_exportable(model, "the original layout")
    _check_vision(model, with_vision)
    prefixes = ("proj.", "qformer.", "average_") + (("vision.",) if with_vision else ())
    own = {n: t.detach().cpu() for n, t in model.state_dict().items() if n.startswith(prefixes)}
    account = apply_rules(TO_PTH, own)
    assert not account.unknown, account.unknown
    if getattr(model.qformer, "reads_text", False):  # LAVIS's name in InstructBLIP
        return {n.replace("llama_proj.", "llm_proj."): t for n, t in account.state.items()}
    return account.state


def _check_vision(model: Composition, with_vision: bool) -> None:
    """Check that the encoder is included if it has to be, and only if the layout supports it.

    Raises:
        WeightsError: The encoder was trained but is omitted, or it is included but not EVA-CLIP-g.
    """
    loaded = any(name.startswith("vision.") for name in model.loaded_keys)
    if (loaded or not model.config.vision.freeze) and not with_vision:
        raise WeightsError("its encoder was trained, so it must be included: --with-vision")
    if with_vision and not is_eva(model.config.vision.encoder):
        raise WeightsError(
            f"the original layout is for EVA-CLIP-g, not {model.config.vision.encoder}; omit "
            "--with-vision"
        )


def blip2_state(model: Composition) -> dict[str, Tensor]:
    """Rename the weights, including the LLM's, for `Blip2ForConditionalGeneration`.

    Raises:
        WeightsError: A part cannot be represented.
    """
    check_exportable(model, "transformers' BLIP-2")
    if getattr(model.qformer, "reads_text", False):
        raise WeightsError("transformers' BLIP-2 cannot represent a Q-Former that reads questions")
    if not is_eva(model.config.vision.encoder):
        raise WeightsError(
            f"transformers' BLIP-2 is for EVA-CLIP-g, not {model.config.vision.encoder}, so this "
            "model can only be loaded by xraygpt"
        )
    account = apply_rules(TO_BLIP2, {n: t.detach() for n, t in model.state_dict().items()})
    assert not account.unknown, account.unknown
    state = account.state
    for name in [n for n in state if n.endswith(".q_bias")]:
        stem = name.removesuffix("q_bias")
        query, value = state.pop(name), state.pop(f"{stem}v_bias")
        state[f"{stem}qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    if model.llm.config.tie_word_embeddings:
        state.pop("language_model.lm_head.weight", None)
    return state


def image_token_id(model: Composition, state: dict[str, Tensor]) -> tuple[int, str]:
    """Find an image token id that no text uses, and extend the embedding in `state` if needed.

    Returns:
        The id, and a description of its origin.
    """
    tokenizer = model.tokenizer
    for token, number in sorted(tokenizer.get_added_vocab().items(), key=lambda t: t[1]):
        if _RESERVED.search(token):
            return number, f"id {number}, the tokenizer's {token}"
    name = embedding_name(model)
    rows, taken = len(state[name]), len(tokenizer)
    if taken < rows:
        return taken, f"id {taken}, one of {rows - taken} unused embedding rows"
    head = model.llm.get_output_embeddings()
    heads = [f"language_model.{n}.weight" for n, m in model.llm.named_modules() if m is head]
    for key in (name, *heads):
        if key in state:  # zeros make its logit 0, below those of likely tokens
            state[key] = torch.cat([state[key], torch.zeros_like(state[key][:1])])
    return taken, f"id {taken}, for which the embedding grew from {rows} to {rows + 1} rows"


def embedding_name(model: Composition) -> str:
    """Return the key of the LLM's token embedding in an exported state."""
    embedding = model.llm.get_input_embeddings()
    name = next(n for n, m in model.llm.named_modules() if m is embedding)
    return f"language_model.{name}.weight"


def blip2_config(model: Composition, state: dict[str, Tensor], image_id: int) -> Blip2Config:
    """Build the configuration for an exported `state`."""
    net: Any = model.vision.net  # type: ignore[union-attr]
    input_spec = model.vision.input_spec  # type: ignore[union-attr]
    block = net.blocks[0]
    vision = Blip2VisionConfig(
        hidden_size=net.embed_dim,
        intermediate_size=block.mlp.fc1.out_features,
        num_hidden_layers=len(net.blocks),
        num_attention_heads=block.attn.num_heads,
        image_size=input_spec.image_size,
        patch_size=net.patch_embed.patch_size[0],
        hidden_act="gelu",
        layer_norm_eps=VISION_EPS,
        qkv_bias=True,
    )
    text = model.llm.config.to_dict()
    text["vocab_size"] = len(state[embedding_name(model)])
    text.pop("_name_or_path", None)  # a path on this machine
    config = Blip2Config(
        vision_config=vision,
        qformer_config=Blip2QFormerConfig(**network_sizes(model.config.qformer, net.embed_dim)),
        text_config=text,
        num_query_tokens=model.config.qformer.num_queries,
        image_token_index=image_id,
        architectures=["Blip2ForConditionalGeneration"],
    )
    config.tie_word_embeddings = bool(model.llm.config.tie_word_embeddings)
    config.dtype = state["language_projection.weight"].dtype
    return config


def blip2_processor(model: Composition, vis: XrayImage, image_id: int) -> Blip2Processor:
    """Build a processor with the run's image preprocessing, and `<image>` as token `image_id`.

    Raises:
        WeightsError: The preprocessing cannot be represented.
    """
    if vis.fit != "squash" or vis.grey or vis.channels != 3:
        raise WeightsError(
            f"the run's vis_processor has fit: {vis.fit}, but transformers' BLIP-2 processor "
            "only supports squash"
        )
    images = BlipImageProcessor(
        size={"height": vis.size, "width": vis.size},
        resample={"bilinear": 2, "bicubic": 3}[vis.interpolation],
        image_mean=vis.mean.flatten().tolist(),
        image_std=vis.std.flatten().tolist(),
    )
    tokenizer = model.tokenizer
    image_token = {number: token for token, number in tokenizer.get_added_vocab().items()}.get(
        image_id
    )
    if image_token is None:
        token = AddedToken(IMAGE_TOKEN, normalized=False, special=True)
        tokenizer.add_tokens([token], special_tokens=True)
        if tokenizer.convert_tokens_to_ids(IMAGE_TOKEN) != image_id:
            raise WeightsError(f"the tokenizer did not assign the id {image_id} to {IMAGE_TOKEN}")
    # With num_query_tokens, the processor would put the image first; ours is inside the text.
    tokenizer.image_token = AddedToken(image_token or IMAGE_TOKEN, normalized=False, special=True)
    return Blip2Processor(images, tokenizer, num_query_tokens=None)


@torch.no_grad()
def eps_effect(model: Composition) -> float:
    """Estimate the largest relative change in features due to transformers' single eps.

    LAVIS uses 1e-5 after the encoder and 1e-6 inside it. The change is half the difference divided
    by the variance of a token, which is measured on a noise image.
    """
    input_spec = model.vision.input_spec  # type: ignore[union-attr]
    shape = (1, input_spec.channels, input_spec.image_size, input_spec.image_size)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    variance = model.encode(pixels).var(dim=-1, unbiased=False).min()
    return float((1e-5 - VISION_EPS) / 2 / variance)


def prompt_text(model: Composition, question: str, image_token: str) -> tuple[str, list[int]]:
    """Write a question about one image as text for the exported processor, and its ids.

    The ids are those our renderer produces, with `IMAGE_TOKEN_ID` as the placeholder. The text
    includes its special tokens, so it must be tokenized with `add_special_tokens=False`.
    """
    turns = [Turn(role="user", text=f"<image> {question}")]
    count = model.config.qformer.num_queries
    ids = model.renderer.render(turns, [Run(count)])["input_ids"]
    pieces = model.renderer.render_text(turns).split("<image>")
    opening = model.tokenizer.bos_token if model.renderer.opens_with_bos else ""
    return opening + (image_token * count).join(pieces), ids


def with_image_id(ids: list[int], image_id: int) -> list[int]:
    """Replace the placeholders in `ids` with `image_id`."""
    return [image_id if i == IMAGE_TOKEN_ID else i for i in ids]
