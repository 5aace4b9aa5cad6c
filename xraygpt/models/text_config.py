"""The `text` section of a model's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from xraygpt.common.checks import Checks
from xraygpt.common.project_paths import ProjectPath


@dataclass(kw_only=True)
class TextConfig:
    """How conversations are written as text."""

    prompt_template: str = "none"
    """`xraygpt`, `vicuna_v1`, `legacy_train`, `legacy_chat`, `chat_template` (the tokenizer's),
    a text with one `{}`, or `none`: no text around the image and the answer, as in XrayGPT's first
    stage."""
    prompt_path: ProjectPath | None = None
    """File with one prompt per line; samples without a prompt get a randomly chosen one."""
    end_sym: str | None = None
    """End of every answer; null uses the template's."""
    max_txt_len: int | None = 160
    """Maximum length of an answer in tokens, including its end; longer answers are truncated. null
    sets no limit."""
    last_answer_only: bool = False
    """Train only the last answer of a conversation; false trains all of them."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(2, "max_txt_len")
