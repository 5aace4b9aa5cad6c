"""Weight files of LAVIS, MiniGPT-4 and XrayGPT: their names -> ours, every key accounted for.

The files come in layers: `eva_vit_g.pth` (the vision encoder, bare names), BLIP-2's Q-Former
(`blip2_pretrained_*.pth`), and the projection that XrayGPT and MiniGPT-4 trained, in a dictionary
``{"model": …}``. The originals load each with `strict=False` and drop the answer.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from xraygpt.common.errors import WeightsError

log = logging.getLogger(__name__)

_VISION_STEMS = ("cls_token", "pos_embed", "patch_embed.", "blocks.")
_LLAMA_2_WIDTH = 5632  # four tokens of 1408 in a row: MiniGPT-4 for Llama 2 has no Q-Former


@dataclass(frozen=True)
class Rule:
    """What becomes of keys that a pattern matches as a whole.

    Attributes:
        pattern: Regular expression over the key.
        to: Its name here, with the pattern's groups; None leaves it out.
        why: Said of keys that are left out.
    """

    pattern: str
    to: str | None
    why: str = ""


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


@dataclass
class Account:
    """What became of each key of a file.

    Attributes:
        state: Tensors under our names.
        dropped: Reason -> keys left out for it.
    """

    state: dict[str, Tensor] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line: how many were taken, dropped and why."""
        parts = [f"{len(self.state)} taken"]
        parts += [f"{len(keys)} left out ({why})" for why, keys in self.dropped.items()]
        return ", ".join(parts)


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
    account, unknown = Account(), []
    bare = any(k.removeprefix("module.").startswith(_VISION_STEMS) for k in state)
    for name, tensor in state.items():
        key = name.removeprefix("module.")
        for rule in VISION_RULES if bare else RULES:
            match = re.fullmatch(rule.pattern, key)
            if match and rule.to is not None:
                account.state[match.expand(rule.to)] = tensor
            elif match:
                account.dropped.setdefault(rule.why, []).append(name)
            if match:
                break
        else:
            unknown.append(name)
    projection = account.state.get("proj.weight")
    if projection is not None and projection.dim() == 2 and projection.shape[1] == _LLAMA_2_WIDTH:
        raise WeightsError(
            f"{source}: its projection takes {_LLAMA_2_WIDTH} numbers, four image tokens in a row: "
            "this is MiniGPT-4 for Llama 2, which has no Q-Former and is another model"
        )
    if unknown:
        some = ", ".join(unknown[:5])
        raise WeightsError(
            f"{source}: {len(unknown)} keys are none of this lineage's: {some}"
            f"{', …' if len(unknown) > 5 else ''}"
        )
    log.info("%s: %s", source, account)
    return account
