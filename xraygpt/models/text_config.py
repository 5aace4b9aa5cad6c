"""The `text` section of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.checks import Checks


@dataclass(kw_only=True)
class TextConfig:
    """How conversations are written as text."""

    prompt_template: str = "none"
    """`xraygpt`, `vicuna_v1`, `legacy_train`, `legacy_chat`, `chat_template` (the tokenizer's),
    a text with one `{}`, or `none`: no text around the image and the answer, as in XrayGPT's first
    stage."""
    prompt_path: Path | None = None
    """Prompts, one per line; one is chosen at random for each sample that has none of its own."""
    end_sym: str | None = None
    """Ends every answer; null: the template's."""
    max_txt_len: int | None = 160
    """Most tokens of an answer including its end; longer answers are truncated. null: no limit."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(2, "max_txt_len")
