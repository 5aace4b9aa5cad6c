"""Turns as rows of ids, and back as chat messages.

An endpoint tokenises text itself. A row of `Batch.input_ids` therefore contains one id per
character, its Unicode code point; ids above all code points begin the messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Batch
from xraygpt.prompting.content import MediaPart, Turn, turn_parts
from xraygpt.prompting.renderer import (
    IGNORE_INDEX,
    IMAGE_TOKEN_ID,
    PlacedRun,
    PromptRenderer,
    Rendered,
    Run,
)
from xraygpt.prompting.templates import TEMPLATES
from xraygpt.prompting.tokenizer import Tokenizer

_FIRST_ROLE_ID = 0x110000  # the first number that is no Unicode code point
_ROLES = ("system", "user", "assistant")
_ROLE_IDS = {role: _FIRST_ROLE_ID + i for i, role in enumerate(_ROLES)}


class Message(NamedTuple):
    """One chat message.

    Attributes:
        role: "system", "user" or "assistant".
        parts: Texts, and the indices of media in `Batch.runs`, in order.
    """

    role: str
    parts: list[str | int]


class _Characters:
    """Stands for the tokenizer, of which only the padding is used."""

    pad_token_id = eos_token_id = 0
    all_special_tokens: tuple[str, ...] = ()


class MessageRenderer(PromptRenderer):
    """Renders turns as code points; each medium is one placeholder.

    Args:
        prompts: Questions; one is sampled for each sample whose first question has no text.
        system: System message for samples that have none; empty for none.
    """

    def __init__(self, prompts: Sequence[str] = (), system: str = "") -> None:
        self.tokenizer = cast(Tokenizer, _Characters())
        self.prompts, self.system, self.max_txt_len = list(prompts), system, None
        self.template_name, self.template, self.media_marks = "none", TEMPLATES["none"], {}
        self.end_sym, self.stop_strings = "", []

    def render(
        self,
        turns: Sequence[Turn],
        runs: Sequence[Run],
        sample_id: str = "",
        answers: Sequence[Sequence[int]] = (),
    ) -> Rendered:
        """Convert a conversation to ids, without labels; `answers` has no effect.

        Raises:
            DataError: The media do not fit the text, or the last question has no text.
        """
        prepared = self._prepare(turns, runs, sample_id)
        if self.system and all(turn["role"] != "system" for turn in prepared):
            prepared = [Turn(role="system", text=self.system, content=[self.system]), *prepared]
        questions = [turn for turn in prepared if turn["role"] == "user"]
        if not questions or not any(isinstance(p, str) and p.strip() for p in _parts(questions)):
            raise DataError(
                f"sample {sample_id} has no question; set model.prompt_path to a file with one"
            )
        ids: list[int] = []
        placed: list[PlacedRun] = []
        remaining_runs = iter(runs)
        for turn in prepared:
            ids.append(_ROLE_IDS[turn["role"]])
            for part in _parts([turn]):
                if isinstance(part, str):
                    ids += map(ord, part)
                else:
                    placed.append(PlacedRun(next(remaining_runs).kind, len(ids), 1))
                    ids.append(IMAGE_TOKEN_ID)
        return Rendered(input_ids=ids, labels=[IGNORE_INDEX] * len(ids), runs=placed)


def _parts(turns: Sequence[Turn]) -> Iterator[str | MediaPart]:
    """Yield the texts and the shown media of turns, each medium followed by its caption."""
    for part in (part for turn in turns for part in turn_parts(turn)):
        if isinstance(part, str):
            yield part
            continue
        if part.shown:
            yield part
        if part.caption:
            yield f" ({part.caption})" if part.shown else part.caption


def read_messages(batch: Batch) -> list[list[Message]]:
    """Return the messages of each row of a batch that `MessageRenderer` wrote."""
    media = iter(range(len(batch["runs"])))
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return [_read_row(row[kept.bool()], media) for row, kept in zip(ids, mask, strict=True)]


def _read_row(ids: Tensor, media: Iterator[int]) -> list[Message]:
    messages: list[Message] = []
    characters: list[str] = []

    def end_text() -> None:
        text = "".join(characters).strip()
        characters.clear()
        if text:
            messages[-1].parts.append(text)

    for i in cast(Any, ids.tolist()):
        if i >= _FIRST_ROLE_ID:
            end_text()
            messages.append(Message(_ROLES[i - _FIRST_ROLE_ID], []))
        elif i == IMAGE_TOKEN_ID:
            end_text()
            messages[-1].parts.append(next(media))
        else:
            characters.append(chr(i))
    end_text()
    return messages
