"""Render conversations with the tokenizer's own chat template."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from xraygpt.common.errors import InputError
from xraygpt.prompting.content import IMAGE, VIDEO, MediaPart, Part, Turn, turn_parts
from xraygpt.prompting.templates import Piece, merge_text

if TYPE_CHECKING:
    from xraygpt.prompting.tokenizer import Tokenizer


class ChatTemplate:
    """The tokenizer's chat template, with the interface of `Template`.

    Args:
        tokenizer: A tokenizer with a chat template.
        media_marks: See `PromptRenderer`.
    """

    def __init__(self, tokenizer: Tokenizer, media_marks: Mapping[str, str]) -> None:
        self.tokenizer, self.media_marks = tokenizer, media_marks

    markers: tuple[str, ...] = ()  # special tokens, which decoding skips

    def build_pieces(self, turns: Sequence[Turn], end: str) -> list[Piece]:
        """Format `turns`.

        The template itself ends answers. White space after that end, such as Qwen's line feed, is
        part of the answer only if `end` ends with white space, too.

        Raises:
            InputError: The template changes earlier turns when a turn is added.
        """
        pieces, rendered = [], ""
        trim = str if end[-1:].isspace() else str.rstrip
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            with_question = self._apply(turns[:i], add_generation_prompt=True)
            with_answer = self._apply(turns[: i + 1], add_generation_prompt=False)
            if not (with_question.startswith(rendered) and with_answer.startswith(with_question)):
                raise InputError(
                    "the tokenizer's chat template changes earlier turns when a turn is added; set "
                    "model.prompt_template to another template"
                )
            answer = trim(with_answer[len(with_question) :])
            pieces += [
                Piece(self._split_marks(with_question[len(rendered) :])),
                Piece((answer,), is_target=True),
            ]
            rendered = trim(with_answer)
        if turns and turns[-1]["role"] == "user":
            with_question = self._apply(turns, add_generation_prompt=True)
            pieces.append(Piece(self._split_marks(with_question[len(rendered) :])))
        return pieces

    def _apply(self, turns: Sequence[Turn], *, add_generation_prompt: bool) -> str:
        messages = [{"role": t["role"], "content": self._content(turn_parts(t))} for t in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def _content(self, parts: list[Part]) -> str | list[dict[str, str]]:
        """Convert parts to transformers' format, or to one string for a text-only template."""
        if not self.media_marks:
            return "".join(_mark_text(p) if isinstance(p, MediaPart) else p for p in parts)
        items: list[dict[str, str]] = []
        for i, part in enumerate(parts):
            if isinstance(part, MediaPart) and part.shown:
                items.append({"type": "video" if part.mark == VIDEO else "image"})
            text = part if isinstance(part, str) else part.caption
            # The space between a mark and the text is no part of the conversation.
            text = text.removeprefix(" ") if i and isinstance(parts[i - 1], MediaPart) else text
            is_before_medium = i + 1 < len(parts) and isinstance(parts[i + 1], MediaPart)
            text = text.removesuffix(" ") if is_before_medium else text
            if text:
                items.append({"type": "text", "text": text})
        return items

    def _split_marks(self, text: str) -> tuple[Part, ...]:
        """Split the template's output at its media marks."""
        kinds = {mark: kind for kind, mark in self.media_marks.items()}
        kinds = kinds or {IMAGE: "image", VIDEO: "video"}
        pieces = re.split(f"({'|'.join(map(re.escape, kinds))})", text)
        return merge_text(
            MediaPart("<video>" if kinds[piece] == "video" else "<image>") if i % 2 else piece
            for i, piece in enumerate(pieces)
        )


def _mark_text(part: MediaPart) -> str:
    """Represent a medium as text, for a text-only template."""
    if not part.shown:
        return part.caption
    return f"{part.mark}; {part.caption}" if part.caption else part.mark
