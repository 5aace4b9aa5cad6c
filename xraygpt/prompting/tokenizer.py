"""The tokenizer interface used by prompts, decoding and chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Converts text to ids and back; the subset of transformers' tokenizers used here.

    Attributes:
        chat_template: The Jinja template of the tokenizer's chat format, or None.
        all_special_tokens: Tokens outside normal text, with their ids in `all_special_ids`.
    """

    chat_template: str | None
    bos_token_id: int | None
    eos_token_id: int
    pad_token_id: int | None
    eos_token: str
    all_special_tokens: list[str]
    all_special_ids: list[int]

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Mapping[str, list[int]]:
        """Encode a text; the result contains the ids as ``input_ids``."""

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Decode ids to text."""

    def apply_chat_template(
        self,
        conversation: Sequence[Mapping[str, object]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
    ) -> str:
        """Format messages with `chat_template`; `tokenize` must be False."""
