"""What prompts, decoding and chat ask of a tokenizer: any of transformers' has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to ids and back, as transformers' tokenizers spell it.

    Attributes:
        chat_template: The Jinja template of its chat format; None if it has none.
        all_special_tokens: Tokens that stand for no text, each with its id in `all_special_ids`.
    """

    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    eos_token: str
    all_special_tokens: list[str]
    all_special_ids: list[int]

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        """The ids of a text, as ``input_ids``."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of ids."""

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, object]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """Messages in the format of `chat_template`; `tokenize` is False."""
