"""The one prompt renderer: turns -> content parts -> pieces of prompt and answer -> ids.

Training, evaluation, prediction and chat all call it, so that what a model is asked later is what
it was trained on.

A turn's content is a list of parts: text, and the places of media (`MediaPart`). Written as text,
``<image>`` marks the place of any medium and ``<video>`` that of a clip. A template puts its own
words around the parts; the tokenizer's own chat template receives them as transformers spells
them, ``[{"type": "image"}, {"type": "text", …}]``. Every piece of text is tokenised on its own, the
question up to where the answer begins and then the answer, so the ids of a prompt to generate from
are exactly the prefix of the ids trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypedDict, cast

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.common.registry import did_you_mean
from xraygpt.prompting.content import (
    IMAGE,
    VIDEO,
    MediaPart,
    Part,
    Turn,
    content_of,
    has_words,
    turn_of,
)

if TYPE_CHECKING:
    from xraygpt.media.base import Kind
    from xraygpt.prompting.tokenizer import Tokenizer

IMAGE_TOKEN_ID = -200  # placeholder in input_ids; negative, so no text can spell it
IGNORE_INDEX = -100  # label of a token that carries no loss


class Run(NamedTuple):
    """The placeholders of one medium."""

    length: int
    kind: Kind = "image"


class PlacedRun(NamedTuple):
    """Where a medium's placeholders stand among the ids of a conversation."""

    kind: Kind
    start: int
    length: int


@dataclass(frozen=True)
class Piece:
    """A stretch of a conversation that is all prompt or all answer."""

    parts: tuple[Part, ...]
    is_target: bool = False

    @property
    def text(self) -> str:
        """Its text, with the marks of media."""
        return "".join(p if isinstance(p, str) else p.mark for p in self.parts)


def _merged(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Neighbouring texts as one; empty ones go."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a conversation is written out.

    Attributes:
        turn: Text of a question and the words before its answer, with one ``{}``.
        image: Text around an image, with one ``{}``.
        end: Closes every answer; the tokenizer's end-of-sequence token if empty.
        system: Opens the conversation when no turn does.
        joined: Tokenise what lies between two images as one text, earlier answers with it, as the
            lineage's chat does; otherwise each turn and each answer on its own.
    """

    turn: str
    image: str = "{}"
    end: str = ""
    system: str = ""
    joined: bool = False

    def pieces(self, turns: Sequence[Turn], end: str) -> list[Piece]:
        """Write `turns` out; an answer is followed by `end`, which the model learns to say."""
        before, between = self.turn.split("{}")
        said = next((t for t in turns if t["role"] == "system"), None)
        system = (self.system,) if said is None else _merged(content_of(said))
        pieces = [Piece(system)] if any(system) else []
        open_with = before
        for turn in turns:
            if turn["role"] == "user":
                question = [p for part in content_of(turn) for p in self._wrapped(part)]
                pieces.append(Piece(_merged([open_with, *question, between])))
            elif turn["role"] == "assistant":
                pieces.append(Piece((f"{turn['text']}{end}",), is_target=True))
                # "###Patient: a ###Doctor: b###" goes on with "Patient:", not with "######Patient:"
                open_with = before.removeprefix(end) if end else before
        return _joined(pieces) if self.joined else pieces

    def _wrapped(self, part: Part) -> tuple[Part, ...]:
        """A medium with what the template puts around it, and its caption."""
        if isinstance(part, str):
            return (part,)
        before, after = self.image.split("{}")
        if not part.shown:
            return before, part.caption, after
        caption = f"; {part.caption}" if part.caption else ""
        return before, replace(part, caption=""), caption, after


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """All but a last answer as one piece; an answer stands after a space."""
    asked = pieces[:-1] if pieces and pieces[-1].is_target else pieces
    parts = [part for p in asked for part in ((" ", *p.parts) if p.is_target else p.parts)]
    return [Piece(_merged(parts)), *pieces[len(asked) :]]


_XRAYGPT = Template(turn="###Patient: {} ###Doctor: ", image="<Img>{}</Img>", end="###")
TEMPLATES = {
    "none": Template(turn="{}"),
    "xraygpt": _XRAYGPT,
    # The lineage's two ways of asking, to the id: its second stage, and its demo, whose prompt no
    # training ever showed.
    "legacy_train": _XRAYGPT,
    "legacy_chat": Template(
        turn="Patient: {}###Doctor:",
        image="<Img>{}</Img>",
        end="###",
        system="You are an experienced Doctor, give the following medical scan: "
        "<Img>ImageContent</Img>. You will be able to see the medical scan once I provide it to "
        "you. Please answer my questions.###",
        joined=True,
    ),
    "vicuna_v1": Template(
        turn="USER: {} ASSISTANT:",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    ),
}
CHAT_TEMPLATE = "chat_template"  # the tokenizer's own


def find_template(name: str) -> Template | None:
    """A named template, one spelt out with a single ``{}``, or None for the tokenizer's own.

    Raises:
        InputError: Neither a known name nor a text with exactly one ``{}``.
    """
    if name == CHAT_TEMPLATE:
        return None
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.count("{}") == 1:
        return Template(turn=name, image=TEMPLATES["xraygpt"].image)
    hint = did_you_mean(name, [*TEMPLATES, CHAT_TEMPLATE])
    raise InputError(f"model.prompt_template: '{name}' has no single {{}} and is no template{hint}")


def load_prompts(path: Path | None) -> list[str]:
    """Questions, one a line; ``#`` starts a comment, ``<Img><ImageHere></Img>`` is dropped.

    Raises:
        InputError: The file is absent or holds no question.
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
        raise InputError(f"model.prompt_path: {path} holds no question")
    return prompts


class Rendered(TypedDict):
    """One conversation as ids; both lists are of equal length."""

    input_ids: list[int]  # IMAGE_TOKEN_ID at every token of a medium
    labels: list[int]  # IGNORE_INDEX everywhere but the answers
    runs: list[PlacedRun]  # of each medium, in order


class PromptRenderer:
    """Turns -> ids, for one tokenizer and one template.

    Args:
        tokenizer: A transformers tokenizer.
        template: A name in `TEMPLATES`, ``chat_template``, or a text with one ``{}``.
        prompts: Drawn from, one per sample, where a sample's first question has no words.
        end_sym: Closes every answer; None takes the template's, then the end-of-sequence token.
        max_txt_len: Most tokens an answer may take, its end included; None is no limit.
        media_marks: By "image" and "video", what the tokenizer's own chat template writes in the
            place of each, such as ``<|image_pad|>``; None for a template that takes text alone,
            which is then given ``<image>`` as text.
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
    ) -> None:
        self.tokenizer, self.prompts, self.max_txt_len = tokenizer, list(prompts), max_txt_len
        self.name, self.media_marks = template, dict(media_marks or {})
        self.template = find_template(template)
        if self.template is None and not tokenizer.chat_template:
            raise InputError(
                "model.prompt_template is chat_template, but the tokenizer has none; "
                f"choose one of {', '.join(TEMPLATES)}"
            )
        named_end = self.template.end if self.template else ""
        self.end_sym = (end_sym if end_sym is not None else named_end) or tokenizer.eos_token
        if not self.end_sym:
            raise InputError(
                "the tokenizer has no end-of-sequence token: set model.end_sym to what ends answers"
            )
        self._opening = [] if self.template is None else _opening_ids(tokenizer)
        self.stop_strings = self._stop_strings()
        self._end_ids = self._ids(self.stop_strings[0])

    def with_prompt(self, turns: list[Turn], rng_key: str) -> list[Turn]:
        """`turns` with a prompt drawn by `rng_key` where the first question has no words."""
        if not self.prompts:
            return turns
        first = next((i for i, t in enumerate(turns) if t["role"] == "user"), None)
        if first is None or has_words(turns[first]):
            return turns
        prompt = keyed_random(rng_key, "prompt").choice(self.prompts)
        before = turns[first]
        asked = Turn(role="user", text=f"{before['text'].strip()} {prompt}".strip())
        if "content" in before:
            media = list(before["content"])  # and white space between them
            while media and isinstance(media[-1], str):
                media.pop()
            while media and isinstance(media[0], str):
                media.pop(0)
            asked["content"] = [*media, f" {prompt}" if media else prompt]
        return [*turns[:first], asked, *turns[first + 1 :]]

    def render(
        self,
        turns: Sequence[Turn],
        runs: Sequence[Run],
        name: str = "",
        answers: Sequence[Sequence[int]] = (),
    ) -> Rendered:
        """Ids and labels of a conversation.

        Args:
            turns: Ends with the assistant to train on, with the user to generate from.
            runs: Placeholders of each medium, in order.
            name: The sample, for messages.
            answers: Ids of the first answers with their ends, where they are known; their text is
                not tokenised again. No effect with a template that is `joined`.

        Raises:
            DataError: The media in the text are not as many as the media there are, or a
                ``<video>`` stands for something else than a clip. Images told in words
                (`codes_as_image`) are for the task language_modeling alone.
        """
        turns = self._checked(turns, runs, name)
        ids: list[int] = list(self._opening)
        labels = [IGNORE_INDEX] * len(ids)
        placed: list[PlacedRun] = []
        left, known = iter(runs), iter(answers)
        for piece in self._pieces(turns):
            if piece.is_target:
                said = next(known, None)
                new = self._cut(self._ids(piece.text)) if said is None else list(said)
                ids, labels = ids + new, labels + new
                continue
            for part in piece.parts:
                if isinstance(part, str):
                    new = self._ids(part)
                else:
                    run = next(left)
                    placed.append(PlacedRun(run.kind, len(ids), run.length))
                    new = [IMAGE_TOKEN_ID] * run.length
                ids, labels = ids + new, labels + [IGNORE_INDEX] * len(new)
        return Rendered(input_ids=ids, labels=labels, runs=placed)

    def _checked(self, turns: Sequence[Turn], runs: Sequence[Run], name: str) -> list[Turn]:
        """Turns whose media fit `runs`, with every stray mark taken apart; a clip is a ``<video>``.

        Raises:
            DataError: As `render`.
        """
        asked = [t for t in turns if t["role"] != "assistant"]
        media = [p for t in asked for p in content_of(t) if isinstance(p, MediaPart)]
        shown = [p for p in media if p.shown]
        if len(shown) != len(runs):
            told = len(media) > len(shown)
            raise DataError(
                f"sample {name}: {len(shown)} {IMAGE} in its text but {len(runs)} images"
                + ("; its images are told in words: leave codes_as_image out" if told else "")
            )
        for place, run in zip(shown, runs, strict=True):
            if place.mark == VIDEO and run.kind != "clip":
                article = "an" if run.kind in ("image", "embedding") else "a"
                raise DataError(
                    f"sample {name}: {VIDEO} in its text stands for {article} {run.kind}, not for "
                    f"a clip; write {IMAGE}, or name the clip's file or frames"
                )
        left = iter(runs)
        checked = []
        for turn in turns:
            if turn["role"] == "assistant":  # a mark in an answer is a word like others
                text = self._defuse(turn["text"])
                checked.append(Turn(role="assistant", text=text, content=[text]))
                continue
            parts: list[Part] = []
            for part in content_of(turn):
                if isinstance(part, str):
                    parts.append(self._defuse(part))
                    continue
                clip = part.shown and next(left).kind == "clip"
                mark: Literal["<image>", "<video>"] = "<video>" if clip else "<image>"
                parts.append(replace(part, mark=mark, caption=self._defuse(part.caption)))
            checked.append(turn_of(turn["role"], parts))
        return checked

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer with its end, as the model is trained to say them."""
        turns = [Turn(role="user", text="?"), Turn(role="assistant", text=text)]
        return [i for i in self.render(turns, [])["labels"] if i != IGNORE_INDEX]

    @property
    def opens_with_bos(self) -> bool:
        """Whether every row begins with the beginning-of-sequence token."""
        return bool(self._opening)

    def written(self, turns: Sequence[Turn]) -> str:
        """The conversation as text, with ``<image>`` where media lie."""
        asked = [t for t in turns if t["role"] != "assistant"]
        media = [p for t in asked for p in content_of(t) if isinstance(p, MediaPart) and p.shown]
        runs = [Run(1, "clip" if p.mark == VIDEO else "image") for p in media]
        return "".join(piece.text for piece in self._pieces(self._checked(turns, runs, "")))

    def _pieces(self, turns: list[Turn]) -> list[Piece]:
        if self.template is not None:
            return self.template.pieces(turns, self.end_sym)
        pieces, done = [], ""
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            asked, answered = self._chat(turns[:i], True), self._chat(turns[: i + 1], False)
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise InputError(
                    "the tokenizer's chat template rewrites earlier turns; name another"
                )
            pieces += [
                Piece(self._marked(asked[len(done) :])),
                Piece((answered[len(asked) :].rstrip(),), True),
            ]
            done = answered.rstrip()
        if turns and turns[-1]["role"] == "user":
            pieces.append(Piece(self._marked(self._chat(turns, True)[len(done) :])))
        return pieces

    def _chat(self, turns: list[Turn], ask: bool) -> str:
        messages = [{"role": t["role"], "content": self._message(content_of(t))} for t in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask
        )

    def _message(self, content: list[Part]) -> str | list[dict[str, str]]:
        """Parts as transformers spells them; as one text for a template that takes text alone."""
        if not self.media_marks:
            words = [_beside(part) if isinstance(part, MediaPart) else part for part in content]
            return "".join(words)
        parts: list[dict[str, str]] = []
        for part in content:
            if isinstance(part, MediaPart) and part.shown:
                parts.append({"type": "video" if part.mark == VIDEO else "image"})
            text = part if isinstance(part, str) else part.caption
            if text.strip():  # templates put their own white space between parts
                parts.append({"type": "text", "text": text.strip()})
        return parts

    def _marked(self, text: str) -> tuple[Part, ...]:
        """What a chat template has written, with the places of media found again."""
        marks = {v: k for k, v in self.media_marks.items()} or {IMAGE: "image", VIDEO: "video"}
        pieces = re.split(f"({'|'.join(map(re.escape, marks))})", text)
        return _merged(
            MediaPart("<video>" if marks[p] == "video" else "<image>") if i % 2 else p
            for i, p in enumerate(pieces)
        )

    def _defuse(self, text: str) -> str:
        """`text` with a space inside whatever would be taken for a mark."""
        marks = {*self.tokenizer.all_special_tokens, *self.media_marks.values(), self.end_sym}
        for mark in marks - {IMAGE}:
            if len(mark) > 1 and mark in text:
                text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _cut(self, answer: list[int]) -> list[int]:
        """At most `max_txt_len` ids; the end of the answer stays, its last words go."""
        if self.max_txt_len is None or len(answer) <= self.max_txt_len:
            return answer
        return answer[: max(self.max_txt_len - len(self._end_ids), 0)] + self._end_ids

    def _stop_strings(self) -> list[str]:
        if self.template is not None:
            return [self.end_sym]
        probe = [Turn(role="user", text="a"), Turn(role="assistant", text="b")]
        end = self._pieces(probe)[-1].text.removeprefix("b").strip()
        return [end or self.end_sym]


def _beside(part: MediaPart) -> str:
    """A medium in the text of a chat template that takes text alone."""
    if not part.shown:
        return part.caption
    return f"{part.mark}; {part.caption}" if part.caption else part.mark


def _opening_ids(tokenizer: Tokenizer) -> list[int]:
    """What the tokenizer itself puts before a text: the beginning-of-sequence id, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("a")["input_ids"] else []


class _NoText(PromptRenderer):
    """For models without text: media have their places, and there are no ids."""

    class _Pad:
        pad_token_id = eos_token_id = 0

    def __init__(self) -> None:
        self.tokenizer = cast("Tokenizer", self._Pad())
        self.prompts, self.max_txt_len = [], None
        self.template, self.media_marks, self.stop_strings = None, {}, []

    def render(
        self,
        turns: Sequence[Turn],
        runs: Sequence[Run],
        name: str = "",
        answers: Sequence[Sequence[int]] = (),
    ) -> Rendered:
        """No ids, and a place of no length for each medium."""
        return Rendered(input_ids=[], labels=[], runs=[PlacedRun(r.kind, 0, 0) for r in runs])


NO_TEXT = _NoText()
