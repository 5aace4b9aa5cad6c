"""The one prompt renderer: turns -> text and image pieces -> ids.

Training, evaluation, prediction and chat all call it, so that what a model is asked later is what
it was trained on.

A turn's text holds one ``<image>`` per image. A template puts its own words around the turns. Every
piece of text is tokenised on its own, the question up to where the answer begins and then the
answer, so the ids of a prompt to generate from are exactly the prefix of the ids trained on.

``<image>words</image>`` is an image told in words, for language models that see none: the words
stand where the template puts an image. ``<image> <findings>words</findings>`` is an image with what
was found in it, by whomever: the words follow the image tokens in that place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from xraygpt.common.draws import keyed_random
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.registry import did_you_mean

IMAGE = "<image>"  # stands for one image in a turn's text
TOLD = re.compile(r"<image>([^<]*)</image>")  # an image told in words
FOUND = re.compile(r"\s*<findings>([^<]*)</findings>")
_SEEN = re.compile(r"<image>(?![^<]*</image>)")
_WITH_FINDINGS = re.compile(rf"{IMAGE}(?:{FOUND.pattern})?")
IMAGE_TOKEN_ID = -200  # placeholder in input_ids; negative, so no text can spell it
IGNORE_INDEX = -100  # label of a token that carries no loss


class Turn(TypedDict):
    """One message of a conversation."""

    role: str  # "system" | "user" | "assistant"
    text: str  # one `<image>` per image


def findings_mark(words: Sequence[str]) -> str:
    """What stands after an image's mark to tell its findings; nothing where there are none."""
    plain = "; ".join(w.replace("<", "") for w in words)
    return f"<findings>{plain}</findings>" if plain else ""


def told_in(text: str) -> list[str]:
    """Findings that a question tells, as `findings_mark` wrote them."""
    return [word for mark in FOUND.findall(text) for word in mark.split("; ") if word]


def without_marks(text: str) -> str:
    """`text` for a model that takes none, and for people; images told in words stay."""
    return FOUND.sub(r" (found: \1)", _SEEN.sub("", text)).strip()


def _beside(match: re.Match[str]) -> str:
    """An image with its findings, if it has any."""
    return f"{IMAGE}; {match[1]}" if match[1] else IMAGE


@dataclass(frozen=True)
class Piece:
    """A stretch of text that is all prompt or all answer."""

    text: str
    is_target: bool = False


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
        system = next((t["text"] for t in turns if t["role"] == "system"), self.system)
        pieces = [Piece(system)] if system else []
        open_with = before
        for turn in turns:
            if turn["role"] == "user":
                question = TOLD.sub(lambda m: self.image.format(m[1]), turn["text"])
                question = _WITH_FINDINGS.sub(lambda m: self.image.format(_beside(m)), question)
                question = FOUND.sub(r" \1", question)  # of no image
                pieces.append(Piece(f"{open_with}{question}{between}"))
            elif turn["role"] == "assistant":
                pieces.append(Piece(f"{turn['text']}{end}", is_target=True))
                # "###Patient: a ###Doctor: b###" goes on with "Patient:", not with "######Patient:"
                open_with = before.removeprefix(end) if end else before
        return _joined(pieces) if self.joined else pieces


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """All but a last answer as one piece; an answer stands after a space."""
    asked = pieces[:-1] if pieces and pieces[-1].is_target else pieces
    text = "".join(f" {p.text}" if p.is_target else p.text for p in asked)
    return [Piece(text), *pieces[len(asked) :]]


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
    """One conversation as ids; lists of equal length."""

    input_ids: list[int]  # IMAGE_TOKEN_ID at every image token
    labels: list[int]  # IGNORE_INDEX everywhere but the answers


class PromptRenderer:
    """Turns -> ids, for one tokenizer and one template.

    Args:
        tokenizer: A transformers tokenizer.
        template: A name in `TEMPLATES`, ``chat_template``, or a text with one ``{}``.
        prompts: Drawn from, one per sample, where a sample's first question has no words.
        end_sym: Closes every answer; None takes the template's, then the end-of-sequence token.
        max_txt_len: Most tokens an answer may take, its end included; None is no limit.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str = "none",
        *,
        prompts: Sequence[str] = (),
        end_sym: str | None = None,
        max_txt_len: int | None = None,
    ) -> None:
        self.tokenizer, self.prompts, self.max_txt_len = tokenizer, list(prompts), max_txt_len
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

    def with_prompt(self, turns: list[Turn], draw: str) -> list[Turn]:
        """`turns` with a prompt drawn by `draw` where the first question has no words."""
        if not self.prompts:
            return turns
        first = next((i for i, t in enumerate(turns) if t["role"] == "user"), None)
        if first is None or without_marks(FOUND.sub("", TOLD.sub("", turns[first]["text"]))):
            return turns
        prompt = keyed_random(draw, "prompt").choice(self.prompts)
        asked = Turn(role="user", text=f"{turns[first]['text'].strip()} {prompt}".strip())
        return [*turns[:first], asked, *turns[first + 1 :]]

    def render(
        self,
        turns: list[Turn],
        image_tokens: Sequence[int],
        name: str = "",
        answers: Sequence[Sequence[int]] = (),
    ) -> Rendered:
        """Ids and labels of a conversation.

        Args:
            turns: Ends with the assistant to train on, with the user to generate from.
            image_tokens: Placeholders of each image, in order.
            name: The sample, for messages.
            answers: Ids of the first answers with their ends, where they are known; their text is
                not tokenised again. No effect with a template that is `joined`.

        Raises:
            DataError: The number of ``<image>`` in the text is not that of the images. Images told
                in words (`tell_images`) are for the task language_modeling alone.
        """
        wanted = sum(TOLD.sub("", t["text"]).count(IMAGE) for t in turns)
        if wanted != len(image_tokens):
            told = any(TOLD.search(t["text"]) for t in turns)
            raise DataError(
                f"sample {name}: {wanted} {IMAGE} in its text but {len(image_tokens)} images"
                + ("; its images are told in words: leave tell_images out" if told else "")
            )
        turns = [Turn(role=t["role"], text=self._defuse(t["text"])) for t in turns]
        ids: list[int] = list(self._opening)
        labels = [IGNORE_INDEX] * len(ids)
        runs, known = iter(image_tokens), iter(answers)
        for piece in self._pieces(turns):
            if piece.is_target:
                said = next(known, None)
                new = self._cut(self._ids(piece.text)) if said is None else list(said)
                ids, labels = ids + new, labels + new
                continue
            for i, text in enumerate(piece.text.split(IMAGE)):
                new = [IMAGE_TOKEN_ID] * next(runs) if i else []
                new = new + self._ids(text)
                ids, labels = ids + new, labels + [IGNORE_INDEX] * len(new)
        return Rendered(input_ids=ids, labels=labels)

    def answer_ids(self, text: str) -> list[int]:
        """Ids of an answer with its end, as the model is trained to say them."""
        turns = [Turn(role="user", text="?"), Turn(role="assistant", text=text)]
        return [i for i in self.render(turns, [])["labels"] if i != IGNORE_INDEX]

    @property
    def opens_with_bos(self) -> bool:
        """Whether every row begins with the beginning-of-sequence token."""
        return bool(self._opening)

    def written(self, turns: list[Turn]) -> str:
        """The conversation as text, with ``<image>`` where images lie."""
        turns = [Turn(role=t["role"], text=self._defuse(t["text"])) for t in turns]
        return "".join(piece.text for piece in self._pieces(turns))

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
            pieces += [Piece(asked[len(done) :]), Piece(answered[len(asked) :].rstrip(), True)]
            done = answered.rstrip()
        if turns and turns[-1]["role"] == "user":
            pieces.append(Piece(self._chat(turns, True)[len(done) :]))
        return pieces

    def _chat(self, turns: list[Turn], ask: bool) -> str:
        messages = [
            {"role": t["role"], "content": FOUND.sub(r"; \1", TOLD.sub(r"\1", t["text"]))}
            for t in turns
        ]
        text: str = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=ask
        )
        return text

    def _defuse(self, text: str) -> str:
        """`text` with a space inside whatever would be taken for a mark."""
        for mark in {*self.tokenizer.all_special_tokens, self.end_sym} - {IMAGE}:
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


def _opening_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text: the beginning-of-sequence id, or nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer("a")["input_ids"] else []
