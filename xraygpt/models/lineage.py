"""Weight files of LAVIS, MiniGPT-4 and XrayGPT: their names -> ours, every key accounted for.

The files come in layers: `eva_vit_g.pth` (the vision encoder, bare names), BLIP-2's Q-Former
(`blip2_pretrained_*.pth`), and the projection that XrayGPT and MiniGPT-4 trained, in a dictionary
``{"model": …}``. The originals load each with `strict=False` and drop the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from xraygpt.common.errors import WeightsError
from xraygpt.models.weights import Account, Rule, apply_rules

_VISION_STEMS = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
_LLAMA_2_WIDTH = 5632  # four tokens of 1408 in a row: MiniGPT-4 for Llama 2 has no Q-Former


_LAYER = r"Qformer\.bert\.encoder\.(layer\.\d+)\."
_TEXT, _STAGE_1 = "the Q-Former's text side", "heads of BLIP-2's first stage"
_CONSTANT, _OTHER = "constants", "projection to another LLM"
RULES = (
    Rule(r"query_tokens", "qformer.query_tokens"),
    Rule(r"ln_vision\.(.+)", r"qformer.ln_vision.\1"),
    Rule(r"visual_encoder\.(.+)", r"vision.net.\1"),
    Rule(r"llama_proj\.(.+)", r"proj.\1"),
    Rule(r"Qformer\.bert\.embeddings\.LayerNorm\.(.+)", r"qformer.qformer.layernorm.\1"),
    Rule(
        _LAYER + r"((?:cross)?attention)\.self\.(.+)",
        r"qformer.qformer.encoder.\1.\2.attention.\3",
    ),
    Rule(
        _LAYER + r"((?:(?:cross)?attention\.output|(?:intermediate|output)_query)\..+)",
        r"qformer.qformer.encoder.\1.\2",
    ),
    Rule(_LAYER + r"(?:intermediate|output)\..+", None, _TEXT),
    Rule(r"Qformer\.bert\.embeddings\.(?:word|position)_embeddings\..+", None, _TEXT),
    Rule(r"Qformer\.cls\..+|(?:vision_proj|text_proj|itm_head)\..+|temp", None, _STAGE_1),
    Rule(r"(?:t5|opt)_proj\..+", None, _OTHER),
    Rule(r"Qformer\.bert\.embeddings\.position_ids", None, _CONSTANT),
    Rule(r"llama_model\..*rotary_emb\.inv_freq", None, _CONSTANT),
)
# Of a file that holds the encoder alone. It has 40 blocks; BLIP-2 takes what the 39th gives.
VISION_RULES = (
    Rule(
        r"blocks\.39\..+|(?:fc_)?norm\..+|head\..+", None, "the encoder's last block, norm and head"
    ),
    Rule(r"((?:cls_token|pos_embed|patch_embed|blocks)\b.*)", r"vision.net.\1"),
)


def is_lineage(state: Mapping[str, Tensor]) -> bool:
    """Whether a file's keys are those of LAVIS and its children."""
    marks = ("Qformer.", "llama_proj.", "visual_encoder.", *_VISION_STEMS[2:])
    return any(name.removeprefix("module.").startswith(marks) for name in state)


def translate(state: Mapping[str, Tensor], source: Path) -> Account:
    """Our names for the tensors of a file of the lineage; the log gets the account.

    Args:
        state: Tensors of an `eva_vit_g.pth`, `blip2_pretrained_*.pth`, or of the `model` in a
            checkpoint of XrayGPT, MiniGPT-4 or LAVIS.
        source: Named in messages.

    Raises:
        WeightsError: A key is unknown, or the file belongs to a model without a Q-Former.
    """
    bare = any(k.removeprefix("module.").startswith(_VISION_STEMS) for k in state)
    account = apply_rules(VISION_RULES if bare else RULES, state)
    projection = account.state.get("proj.weight")
    if projection is not None and projection.dim() == 2 and projection.shape[1] == _LLAMA_2_WIDTH:
        raise WeightsError(
            f"{source}: its projection takes {_LLAMA_2_WIDTH} numbers, four image tokens in a row: "
            "this is MiniGPT-4 for Llama 2, which has no Q-Former and is another model"
        )
    account.close(source, "this lineage")
    return account
