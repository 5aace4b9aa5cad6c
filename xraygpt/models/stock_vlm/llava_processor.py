"""Tokenizer, processors and chat template for a converted LLaVA checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from xraygpt.common.errors import WeightsError
from xraygpt.models.llm import llm_files
from xraygpt.models.stock_vlm.llava_config import Tower

IMAGE, VIDEO = "<image>", "<video>"
# The format in which LLaVA-NeXT trains Qwen2 (its conversation "qwen_1_5"): ChatML, with a default
# system line. A medium stands where it occurs among the parts, followed by a line break.
QWEN_CHAT = """\
{%- if not messages or messages[0]['role'] != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}
{%- macro body(content) -%}
  {%- if content is string -%}
    {{ content }}
  {%- else -%}
    {%- for part in content -%}
      {%- if part['type'] in ('image', 'image_url') -%}{{ '<image>\\n' }}
      {%- elif part['type'] == 'video' -%}{{ '<video>\\n' }}
      {%- elif part['type'] == 'text' -%}{{ part['text'] }}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {{ '<|im_start|>' + message['role'] + '\\n' }}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}{{ body(message['content']) + '<|im_end|>' }}{%- endgeneration -%}
  {%- else -%}
    {{ body(message['content']) + '<|im_end|>' }}
  {%- endif -%}
  {{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{ '<|im_start|>assistant\\n' }}
{%- endif -%}
"""
_SIGLIP_NORM = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])


def load_tokenizer(folders: list[Path], rows: int, backbone: str) -> Any:
    """Load a tokenizer and give it the tokens that stand for an image and a video.

    Args:
        folders: Folders that may contain it; the first that does is used.
        rows: Number of rows in the checkpoint's embedding.
        backbone: Model type of the language model, since transformers does not know LLaVA-NeXT's.

    Raises:
        WeightsError: There is none, or it belongs to another model.
    """
    from transformers import AutoConfig, AutoTokenizer

    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    folder = next((f for f in folders if any((f / name).is_file() for name in names)), None)
    if folder is None:
        raise WeightsError(
            f"{folders[0]} has no tokenizer; pass a folder that has one with --processor"
        )
    try:
        config = AutoConfig.for_model(backbone)
        tokenizer: Any = AutoTokenizer.from_pretrained(
            folder, config=config, **llm_files.LOCAL_ONLY
        )
    except llm_files.LOAD_ERRORS as error:
        raise WeightsError(f"the tokenizer in {folder} cannot be loaded: {error}") from None
    if len(tokenizer) > rows:
        raise WeightsError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, but the embedding has {rows} "
            "rows: it belongs to another model"
        )
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([t for t in (IMAGE, VIDEO) if t not in known], special_tokens=True)
    return tokenizer


def rows_needed(tokenizer: Any, rows: int) -> int:
    """Return the rows of the embedding: as before if all tokens fit, or else a multiple of 64."""
    needed = 1 + max(tokenizer.get_vocab().values())
    return rows if needed <= rows else -(-needed // 64) * 64


def build_processor(
    tokenizer: Any, tower: Tower, pinpoints: list[list[int]], vision_aspect_ratio: str
) -> Any:
    """Build the processor for texts, images and videos.

    The chat template is that of Qwen2 if the tokenizer has its tokens; otherwise, the tokenizer's
    own, if any.
    """
    from transformers import (
        LlavaOnevisionImageProcessor,
        LlavaOnevisionProcessor,
        LlavaOnevisionVideoProcessor,
    )
    from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

    side = tower.config["image_size"]
    clip = (list(OPENAI_CLIP_MEAN), list(OPENAI_CLIP_STD))
    mean, std = clip if tower.is_clip else _SIGLIP_NORM
    pixels: dict[str, Any] = {
        "size": {"height": side, "width": side}, "image_mean": mean, "image_std": std
    }  # fmt: skip
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(image_grid_pinpoints=pinpoints, **pixels),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(**pixels),
        num_image_tokens=tower.tokens,
        vision_feature_select_strategy="default" if tower.is_clip else "full",
        vision_aspect_ratio=vision_aspect_ratio,
        chat_template=chat_template(tokenizer),
    )


def chat_template(tokenizer: Any) -> str | None:
    """Return the chat template; None if the tokenizer neither has one nor ChatML's tokens."""
    if {"<|im_start|>", "<|im_end|>"} <= tokenizer.get_vocab().keys():
        return QWEN_CHAT
    own: str | None = tokenizer.chat_template
    return own
