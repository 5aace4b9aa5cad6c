"""Renames the keys in weight files from LAVIS, MiniGPT-4 and XrayGPT.

A model consists of several files: `eva_vit_g.pth` (the vision encoder, without prefixes), BLIP-2's
Q-Former (`blip2_pretrained_*.pth`), and the projection trained by XrayGPT or MiniGPT-4, in a
dictionary ``{"model": …}``. The original projects load each file with
`strict=False` and ignore the result.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.models.weights.files import is_converted
from xraygpt.models.weights.rules import ConvertedState, Rule, apply_rules

OWN_PREFIX = "xraygpt."  # of keys that only this project has and the original projects ignore
_VISION_STEMS = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
# Names in transformers' BLIP-2 and InstructBLIP (Salesforce/blip2-*, instructblip-*).
_HF_STEMS = ("vision_model.embeddings.", "qformer.encoder.", "language_projection.")
_LLAMA_2_WIDTH = 5632  # four patches of width 1408: MiniGPT-4 for Llama 2 has no Q-Former

_TEXT, _STAGE_1 = "the Q-Former's text side", "heads of BLIP-2's first stage"
_CONSTANT, _OTHER, _LLM = "constants", "projection to another LLM", "the LLM"

_LAYER = r"Qformer\.bert\.encoder\.(layer\.\d+)\."
_WORDS = r"Qformer\.bert\.embeddings\.((?:word|position)_embeddings)\.(.+)"
_LAVIS = (
    Rule(r"query_tokens", "qformer.query_tokens"),
    Rule(r"ln_vision\.(.+)", r"qformer.ln_vision.\1"),
    Rule(r"visual_encoder\.(.+)", r"vision.net.\1"),
    Rule(r"(?:llama|llm)_proj\.(.+)", r"proj.\1"),
    Rule(
        _LAYER + r"((?:cross)?attention)\.self\.(.+)",
        r"qformer.qformer.encoder.\1.\2.attention.\3",
    ),
    Rule(
        _LAYER + r"((?:(?:cross)?attention\.output|(?:intermediate|output)_query)\..+)",
        r"qformer.qformer.encoder.\1.\2",
    ),
    Rule(r"Qformer\.cls\..+|(?:vision_proj|text_proj|itm_head)\..+|temp", None, _STAGE_1),
    Rule(r"(?:t5|opt)_proj\..+", None, _OTHER),
    Rule(r"Qformer\.bert\.embeddings\.position_ids", None, _CONSTANT),
    Rule(re.escape(OWN_PREFIX) + r"(average_.+)", r"\1"),
    Rule(r"(?:llama|llm)_model\..*rotary_emb\.inv_freq", None, _CONSTANT),
)
_HF_LAYER = r"qformer\.(encoder\.layer\.\d+\."
_HF = (
    Rule(r"query_tokens", "qformer.query_tokens"),
    Rule(r"vision_model\.post_layernorm\.(.+)", r"qformer.ln_vision.\1"),
    Rule(r"vision_model\.embeddings\.class_embedding", "vision.net.cls_token"),
    Rule(r"vision_model\.embeddings\.position_embedding", "vision.net.pos_embed"),
    Rule(r"vision_model\.embeddings\.patch_embedding\.(.+)", r"vision.net.patch_embed.proj.\1"),
    Rule(
        r"vision_model\.encoder\.layers\.(\d+)\.layer_norm([12])\.(.+)",
        r"vision.net.blocks.\1.norm\2.\3",
    ),
    Rule(
        r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.(.+)",
        r"vision.net.blocks.\1.attn.qkv.\2",
    ),
    Rule(
        r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.projection\.(.+)",
        r"vision.net.blocks.\1.attn.proj.\2",
    ),
    Rule(r"vision_model\.encoder\.layers\.(\d+)\.mlp\.(.+)", r"vision.net.blocks.\1.mlp.\2"),
    Rule(
        _HF_LAYER + r"(?:(?:cross)?attention|intermediate_query|output_query)\..+)",
        r"qformer.qformer.\1",
    ),
    Rule(r"language_projection\.(.+)", r"proj.\1"),
    Rule(r"language_model\..+", None, _LLM),
    Rule(r"qformer\.embeddings\.position_ids", None, _CONSTANT),
    Rule(r"(?:embeddings|itm_head|vision_projection|text_projection)\..+", None, _STAGE_1),
)
# For a Q-Former without text input, and for one that also reads the question.
_QUERIES_ONLY = (
    Rule(r"Qformer\.bert\.embeddings\.LayerNorm\.(.+)", r"qformer.qformer.layernorm.\1"),
    Rule(_LAYER + r"(?:intermediate|output)\..+", None, _TEXT),
    Rule(_WORDS, None, _TEXT),
    Rule(r"qformer\.(?:embeddings\.)?layernorm\.(.+)", r"qformer.qformer.layernorm.\1"),
    Rule(_HF_LAYER + r"(?:intermediate|output)\..+)", None, _TEXT),
    Rule(r"qformer\.embeddings\.(?:word|position)_embeddings\..+", None, _TEXT),
)
_WITH_TEXT = (
    Rule(r"Qformer\.bert\.embeddings\.LayerNorm\.(.+)", r"qformer.qformer.embeddings.layernorm.\1"),
    Rule(_LAYER + r"((?:intermediate|output)\..+)", r"qformer.qformer.encoder.\1.\2"),
    Rule(_WORDS, r"qformer.qformer.embeddings.\1.\2"),
    Rule(
        r"qformer\.(embeddings\.(?:layernorm|(?:word|position)_embeddings)\..+)",
        r"qformer.qformer.\1",
    ),
    Rule(_HF_LAYER + r"(?:intermediate|output)\..+)", r"qformer.qformer.\1"),
    Rule(r"qformer\.layernorm\.(.+)", r"qformer.qformer.embeddings.layernorm.\1"),
)
# For folders written by `python -m xraygpt.convert`, with our names and maybe the text side.
_CONVERTED = (Rule(r"((?:qformer|vision|proj|average_).+)", r"\1"),)
_CONVERTED_QUERIES_ONLY = (
    Rule(r"qformer\.qformer\.embeddings\.layernorm\.(.+)", r"qformer.qformer.layernorm.\1"),
    Rule(r"qformer\.qformer\.embeddings\..+", None, _TEXT),
    Rule(r"qformer\.qformer\.encoder\.layer\.\d+\.(?:intermediate|output)\..+", None, _TEXT),
    *_CONVERTED,
)
# For files with the encoder only. It has 40 blocks, and BLIP-2 uses the output of the 39th.
_VISION = (
    Rule(
        r"blocks\.39\..+|(?:fc_)?norm\..+|head\..+", None, "the encoder's last block, norm and head"
    ),
    Rule(r"((?:cls_token|pos_embed|patch_embed|blocks)\b.*)", r"vision.net.\1"),
)


def is_foreign(state: Mapping[str, Tensor], source: Path) -> bool:
    """Return whether weights are from another project, or were converted from such weights."""
    return is_lavis(state) or is_converted(source)


def is_lavis(state: Mapping[str, Tensor]) -> bool:
    """Return whether keys are those of a LAVIS-family model or of transformers' BLIP-2."""
    prefixes = ("Qformer.", "llama_proj.", "visual_encoder.", *_VISION_STEMS[2:], *_HF_STEMS)
    return any(name.removeprefix("module.").startswith(prefixes) for name in state)


def convert_state(
    state: Mapping[str, Tensor], source: Path, *, text: bool = False
) -> ConvertedState:
    """Rename the tensors in a LAVIS-family file and log the numbers of keys.

    Args:
        state: Tensors from an `eva_vit_g.pth` or `blip2_pretrained_*.pth`, from the `model` in a
            checkpoint of XrayGPT, MiniGPT-4 or LAVIS, or from transformers' BLIP-2 or InstructBLIP.
        source: The file, named in messages.
        text: Whether the target Q-Former also reads the question.

    Raises:
        WeightsError: A key is unknown, or the file belongs to a model without a Q-Former.
    """
    names = [name.removeprefix("module.") for name in state]
    converted = is_converted(source)
    from_transformers = not converted and any(name.startswith(_HF_STEMS) for name in names)
    qformer_rules = _WITH_TEXT if text else _QUERIES_ONLY
    rules: tuple[Rule, ...] = (*qformer_rules, *_LAVIS)
    if converted:
        rules = _CONVERTED if text else _CONVERTED_QUERIES_ONLY
    elif from_transformers:
        rules = (*qformer_rules, *_HF)
    elif any(name.startswith(_VISION_STEMS) for name in names):
        rules = _VISION
    renamed = apply_rules(rules, state)
    if from_transformers:
        _split_bias(renamed, source)
    _check_projection(renamed, source)
    renamed.check_and_log(source, "LAVIS-family models")
    return renamed


def _check_projection(renamed: ConvertedState, source: Path) -> None:
    """Reject MiniGPT-4 for Llama 2."""
    projection = renamed.state.get("proj.weight")
    if projection is not None and projection.dim() == 2 and projection.shape[1] == _LLAMA_2_WIDTH:
        raise WeightsError(
            f"{source}: the projection's input is {_LLAMA_2_WIDTH} wide (four image tokens): this "
            "is MiniGPT-4 for Llama 2, a different model without a Q-Former"
        )


def _split_bias(renamed: ConvertedState, source: Path) -> None:
    """Split the bias of query, key and value; EVA-CLIP-g has no bias for the key.

    Raises:
        WeightsError: The bias for the key is not 0.
    """
    for name in [n for n in renamed.state if n.endswith(".attn.qkv.bias")]:
        query, key, value = renamed.state.pop(name).chunk(3)
        if key.any():
            raise WeightsError(
                f"{source}: {name} has a bias for the key, so this is not EVA-CLIP-g"
            )
        stem = name.removesuffix("qkv.bias")
        renamed.state |= {f"{stem}q_bias": query.clone(), f"{stem}v_bias": value.clone()}
