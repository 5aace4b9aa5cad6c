"""Render conversation turns as token ids, for training, evaluation, prediction and chat.

A template splits a conversation into prompt pieces and answer pieces. Each piece of text is
tokenised separately, so that the ids of a generation prompt are an exact prefix of the training
ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, cast

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.prompting.chat_template import ChatTemplate
from xraygpt.prompting.content import (
    IMAGE,
    VIDEO,
    MediaPart,
    Part,
    Turn,
    build_turn,
    has_text,
    turn_parts,
)
from xraygpt.prompting.templates import TEMPLATES, Template, find_template

if TYPE_CHECKING:
    from xraygpt.media.base import Kind
    from xraygpt.prompting.tokenizer import Tokenizer

IMAGE_TOKEN_ID = -200  # placeholder in input_ids; negative, so that no text can produce it
IGNORE_INDEX = -100  # label of tokens that the loss ignores


class Run(NamedTuple):
    """The placeholder tokens of one medium."""

    length: int
    kind: Kind = "image"


class PlacedRun(NamedTuple):
    """Position of a medium's placeholder tokens among the ids of a conversation."""

    kind: Kind
    start: int
    length: int


class Rendered(TypedDict):
    """One conversation as ids; `input_ids` and `labels` have the same length."""

    input_ids: list[int]  # IMAGE_TOKEN_ID for every token of a medium
    labels: list[int]  # IGNORE_INDEX everywhere except on answers
    runs: list[PlacedRun]  # one for each medium, in order


def load_prompts(path: Path | None) -> list[str]:
    """Read one question per line, skipping ``#`` comments and removing ``<Img>…</Img>``.

    Raises:
        InputError: The file cannot be read or contains no questions.
    """
    if path is None:
        return []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"model.prompt_path: cannot read {path}: {error.strerror}") from None
    lines = [re.sub(r"<Img>.*?</Img>", "", line).strip() for line in text.splitlines()]
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise InputError(f"model.prompt_path: {path} contains no questions; write one per line")
    return prompts


class PromptRenderer:
    """Renders turns as ids, for one tokenizer and one template.

    Args:
        tokenizer: A transformers tokenizer.
        template: A name in `TEMPLATES`, ``chat_template``, or a text with one ``{}``.
        prompts: Questions; one is sampled for each sample whose first question has no text.
        end_sym: Text that ends every answer; None uses the template's own or, if it has none, the
            end-of-sequence token.
        max_txt_len: Largest number of tokens in an answer, including its end; None means no limit.
        media_marks: For "image" and "video", the text that the tokenizer's chat template writes in
            place of each medium, such as ``<|image_pad|>``. None means a text-only template, which
            receives ``<image>`` as text.
        last_answer_only: Put labels only on the last answer of a conversation.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: str = "none",
        *,
        prompts: Sequence[str] = (),
        end_sym: str | None = None,
        max_txt_len: int | None = None,
        media_marks: Mapping[str, str] | None = None,
        last_answer_only: bool = False,
    ) -> None:
        self.last_answer_only = last_answer_only
        self.tokenizer, self.prompts, self.max_txt_len = tokenizer, list(prompts), max_txt_len
        self.template_name, self.media_marks = template, dict(media_marks or {})
        named_template = find_template(template)
        if named_template is None and not tokenizer.chat_template:
            raise InputError(
                "model.prompt_template is chat_template, but the tokenizer has none; "
                f"choose one of {', '.join(TEMPLATES)}"
            )
        self.template = named_template or ChatTemplate(tokenizer, self.media_marks)
        template_end = named_template.end if named_template else ""
        self.end_sym = (end_sym if end_sym is not None else template_end) or tokenizer.eos_token
        if not self.end_sym:
            raise InputError(
                "the tokenizer has no end-of-sequence token; set model.end_sym to the text that "
                "ends an answer"
            )
        self._opening_ids = _bos_ids(tokenizer) if named_template else []
        self.stop_strings = [self._find_stop_string()]
        self._end_ids = self._encode(self.stop_strings[0])

    @property
    def opens_with_bos(self) -> bool:
        """Whether every row begins with the beginning-of-sequence token."""
        return bool(self._opening_ids)

    def with_prompt(self, turns: list[Turn], rng_key: str) -> list[Turn]:
        """Add a prompt, sampled with `rng_key`, if the first question has no text."""
        if not self.prompts:
            return turns
        first = next((i for i, t in enumerate(turns) if t["role"] == "user"), None)
        if first is None or has_text(turns[first]):
            return turns
        prompt = keyed_random(rng_key, "prompt").choice(self.prompts)
        return [*turns[:first], _add_prompt(turns[first], prompt), *turns[first + 1 :]]

    def render(
        self,
        turns: Sequence[Turn],
        runs: Sequence[Run],
        sample_id: str = "",
        answers: Sequence[Sequence[int]] = (),
    ) -> Rendered:
        """Convert a conversation to ids and labels.

        Args:
            turns: The conversation, which ends with an assistant turn for training and with a user
                turn for generation.
            runs: The placeholder tokens for each medium, in order.
            sample_id: Used in error messages.
            answers: Ids of the first answers, including their ends, to use instead of tokenising
                their text. They have no effect with a `joined` template.

        Raises:
            DataError: The number of media in the text differs from the length of `runs`, or a
                ``<video>`` marks something other than a clip. Only the task language_modeling
                supports media replaced with words (`codes_as_image`).
        """
        turns = self._prepare(turns, runs, sample_id)
        ids: list[int] = list(self._opening_ids)
        labels = [IGNORE_INDEX] * len(ids)
        placed: list[PlacedRun] = []
        remaining_runs, remaining_answers = iter(runs), iter(answers)
        for piece in self.template.build_pieces(turns, self.end_sym):
            if piece.is_target:
                answer_ids = next(remaining_answers, None)
                if answer_ids is None:
                    answer_ids = self._truncate(self._encode(piece.text))
                new = list(answer_ids)
                if self.last_answer_only:
                    labels = [IGNORE_INDEX] * len(ids)
                ids, labels = ids + new, labels + new
                continue
            for part in piece.parts:
                if isinstance(part, str):
                    new = self._encode(part)
                else:
                    run = _next_run(remaining_runs, part, sample_id)
                    placed.append(PlacedRun(run.kind, len(ids), run.length))
                    new = [IMAGE_TOKEN_ID] * run.length
                ids, labels = ids + new, labels + [IGNORE_INDEX] * len(new)
        return Rendered(input_ids=ids, labels=labels, runs=placed)

    def render_text(self, turns: Sequence[Turn]) -> str:
        """Render a conversation as text, with ``<image>`` in place of media."""
        media = [part for part in _media_parts(turns) if part.shown]
        runs = [Run(1, "clip" if part.mark == VIDEO else "image") for part in media]
        pieces = self.template.build_pieces(self._prepare(turns, runs, ""), self.end_sym)
        return "".join(piece.text for piece in pieces)

    def answer_ids(self, text: str) -> list[int]:
        """Return the ids of an answer and its end, as in training."""
        turns = [Turn(role="user", text="?"), Turn(role="assistant", text=text)]
        return [i for i in self.render(turns, [])["labels"] if i != IGNORE_INDEX]

    def _prepare(self, turns: Sequence[Turn], runs: Sequence[Run], sample_id: str) -> list[Turn]:
        """Check the media, mark clips with ``<video>`` and break up special tokens in the text.

        Raises:
            DataError: See `render`.
        """
        _check_media(turns, runs, sample_id)
        remaining_runs = iter(runs)
        return [
            self._prepare_answer(turn)
            if turn["role"] == "assistant"
            else self._prepare_question(turn, remaining_runs)
            for turn in turns
        ]

    def _prepare_answer(self, turn: Turn) -> Turn:
        """Convert an answer to plain text, in which marks are ordinary words."""
        text = self._break_special_tokens(turn["text"])
        return Turn(role="assistant", text=text, content=[text])

    def _prepare_question(self, turn: Turn, remaining_runs: Iterator[Run]) -> Turn:
        parts: list[Part] = []
        for part in turn_parts(turn):
            if isinstance(part, str):
                parts.append(self._break_special_tokens(part))
                continue
            is_clip = part.shown and next(remaining_runs).kind == "clip"
            mark: Literal["<image>", "<video>"] = "<video>" if is_clip else "<image>"
            caption = self._break_special_tokens(part.caption)
            parts.append(replace(part, mark=mark, caption=caption))
        return build_turn(turn["role"], parts)

    def _break_special_tokens(self, text: str) -> str:
        """Insert a space into every special token and every mark that occurs in `text`."""
        marks = {*self.tokenizer.all_special_tokens, *self.media_marks.values(), self.end_sym}
        for mark in marks - {IMAGE}:
            if len(mark) > 1 and mark in text:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _truncate(self, answer: list[int]) -> list[int]:
        """Shorten an answer to `max_txt_len` ids, keeping its end token."""
        if self.max_txt_len is None or len(answer) <= self.max_txt_len:
            return answer
        return answer[: max(self.max_txt_len - len(self._end_ids), 0)] + self._end_ids

    def _find_stop_string(self) -> str:
        if isinstance(self.template, Template):
            return self.end_sym
        example = [Turn(role="user", text="a"), Turn(role="assistant", text="b")]
        answer = self.template.build_pieces(example, self.end_sym)[-1].text
        return answer.removeprefix("b").strip() or self.end_sym


def _add_prompt(turn: Turn, prompt: str) -> Turn:
    """Add `prompt` after the media of a question without text."""
    question = Turn(role="user", text=f"{turn['text'].strip()} {prompt}".strip())
    if "content" in turn:
        media = list(turn["content"])  # and the white space between them
        while media and isinstance(media[-1], str):
            media.pop()
        while media and isinstance(media[0], str):
            media.pop(0)
        question["content"] = [*media, f" {prompt}" if media else prompt]
    return question


def _media_parts(turns: Sequence[Turn]) -> list[MediaPart]:
    """Return the media in all turns except answers, in which marks are plain text."""
    prompts = [turn for turn in turns if turn["role"] != "assistant"]
    return [part for turn in prompts for part in turn_parts(turn) if isinstance(part, MediaPart)]


def _check_media(turns: Sequence[Turn], runs: Sequence[Run], sample_id: str) -> None:
    media = _media_parts(turns)
    shown = [part for part in media if part.shown]
    if len(shown) != len(runs):
        hint = "; its images are replaced with words: remove codes_as_image"
        raise DataError(
            f"sample {sample_id} has {len(shown)} {IMAGE} in its text but {len(runs)} images"
            + (hint if len(media) > len(shown) else "")
        )
    for part, run in zip(shown, runs, strict=True):
        if part.mark == VIDEO and run.kind != "clip":
            article = "an" if run.kind in ("image", "embedding") else "a"
            raise DataError(
                f"sample {sample_id}: {VIDEO} in its text marks {article} {run.kind}, not a clip; "
                f"write {IMAGE}, or specify the clip's file or frames"
            )


def _next_run(runs: Iterator[Run], part: MediaPart, sample_id: str) -> Run:
    """Return the run of the next medium in the template's output.

    Raises:
        DataError: The template writes images and clips in another order than the text.
    """
    run = next(runs)
    if (part.mark == VIDEO) != (run.kind == "clip"):
        raise DataError(
            f"sample {sample_id}: the chat template moves the images of a turn before its clips; "
            f"write {IMAGE} before {VIDEO} in the text, and list the media in this order"
        )
    return run


def _bos_ids(tokenizer: Tokenizer) -> list[int]:
    """Return the beginning-of-sequence id if the tokenizer puts it before a text, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("a")["input_ids"] else []


class _NoTextRenderer(PromptRenderer):
    """Renders nothing, for models without text; each medium has a run of length 0."""

    class _Pad:
        pad_token_id = eos_token_id = 0

    def __init__(self) -> None:
        self.tokenizer = cast("Tokenizer", self._Pad())
        self.prompts, self.max_txt_len = [], None
        self.template, self.media_marks, self.stop_strings = TEMPLATES["none"], {}, []

    def render(
        self,
        turns: Sequence[Turn],
        runs: Sequence[Run],
        sample_id: str = "",
        answers: Sequence[Sequence[int]] = (),
    ) -> Rendered:
        """Return no ids, and a run of length 0 for each medium."""
        return Rendered(input_ids=[], labels=[], runs=[PlacedRun(r.kind, 0, 0) for r in runs])


NO_TEXT = _NoTextRenderer()
