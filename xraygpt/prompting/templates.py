"""Named prompt templates: the text that a conversation format puts around turns and media."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from xraygpt.common.errors import InputError
from xraygpt.common.registry import did_you_mean
from xraygpt.prompting.content import IMAGE, Part, Turn, turn_parts


@dataclass(frozen=True)
class Piece:
    """A section of a conversation that is entirely prompt or entirely answer."""

    parts: tuple[Part, ...]
    is_target: bool = False

    @property
    def text(self) -> str:
        """The text, with marks in place of media."""
        return "".join(p if isinstance(p, str) else p.mark for p in self.parts)


def merge_text(parts: Iterable[Part]) -> tuple[Part, ...]:
    """Join adjacent texts and remove empty ones."""
    merged: list[Part] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        elif part != "":
            merged.append(part)
    return tuple(merged)


@dataclass(frozen=True, kw_only=True)
class Template:
    """Text format of a conversation.

    Attributes:
        turn: Text around a question and before its answer, with one ``{}``.
        image: Text around an image, with one ``{}``.
        end: Text that ends every answer; if empty, the tokenizer's end-of-sequence token.
        system: Text that begins a conversation without a system turn.
        joined: Whether to tokenise all text between two images as one string, including earlier
            answers, as XrayGPT's chat does. Otherwise each turn and each answer is tokenised
            separately.
        compact: Whether white space next to media is dropped.
    """

    turn: str
    image: str = "{}"
    end: str = ""
    system: str = ""
    joined: bool = False
    compact: bool = False

    @property
    def markers(self) -> tuple[str, ...]:
        """Words of the template that no answer contains, such as ``###Patient:`` and ``</Img>``."""
        words = f"{self.turn} {self.image} {IMAGE}".replace("{}", " ").split()
        return tuple(dict.fromkeys(word for word in words if re.search("[#<>]", word)))

    def build_pieces(self, turns: Sequence[Turn], end: str) -> list[Piece]:
        """Format `turns`; every answer is followed by `end`, which is part of the target."""
        before, between = self.turn.split("{}")
        pieces = self._system_pieces(turns)
        opening = before
        for turn in turns:
            if turn["role"] == "user":
                parts = turn_parts(turn)
                if self.compact:
                    parts = _strip_beside_media(parts)
                question = [p for part in parts for p in self._wrap(part)]
                pieces.append(Piece(merge_text([opening, *question, between])))
            elif turn["role"] == "assistant":
                pieces.append(Piece((f"{turn['text']}{end}",), is_target=True))
                # "###Patient: a ###Doctor: b###" is followed by "Patient:", not "###Patient:".
                opening = before.removeprefix(end) if end else before
        return _join_pieces(pieces) if self.joined else pieces

    def _system_pieces(self, turns: Sequence[Turn]) -> list[Piece]:
        system_turn = next((t for t in turns if t["role"] == "system"), None)
        parts = (self.system,) if system_turn is None else merge_text(turn_parts(system_turn))
        return [Piece(parts)] if any(parts) else []

    def _wrap(self, part: Part) -> tuple[Part, ...]:
        """Put the template's image text and the caption around a medium."""
        if isinstance(part, str):
            return (part,)
        before, after = self.image.split("{}")
        if not part.shown:
            return before, part.caption, after
        caption = f"; {part.caption}" if part.caption else ""
        return before, replace(part, caption=""), caption, after


def _strip_beside_media(parts: Sequence[Part]) -> list[Part]:
    """Strip white space from texts with a medium before or after them."""
    is_text = [isinstance(part, str) for part in parts]
    stripped: list[Part] = []
    for i, part in enumerate(parts):
        if isinstance(part, str):
            part = part.lstrip() if i > 0 and not is_text[i - 1] else part
            part = part.rstrip() if i + 1 < len(parts) and not is_text[i + 1] else part
        stripped.append(part)
    return stripped


def _join_pieces(pieces: Sequence[Piece]) -> list[Piece]:
    """Join everything before a final answer into one piece, with a space before each answer."""
    prompt = pieces[:-1] if pieces and pieces[-1].is_target else pieces
    parts = [part for p in prompt for part in ((" ", *p.parts) if p.is_target else p.parts)]
    return [Piece(merge_text(parts)), *pieces[len(prompt) :]]


_XRAYGPT = Template(turn="###Patient: {} ###Doctor: ", image="<Img>{}</Img>", end="###")
TEMPLATES = {
    "none": Template(turn="{}"),
    "xraygpt": _XRAYGPT,
    # XrayGPT's two prompt formats, reproduced with identical token ids: the format of its second
    # training stage, and the format of its demo, which was never used in training.
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
    # The formats of nanochat and echovlm, with the special tokens of `models/prefix_lm`: a report
    # follows the embeddings of its study; questions and answers are each enclosed in tokens.
    "study_report": Template(turn="{}<|bos|>", end="<|eos|>", compact=True),
    "study_chat": Template(
        turn="<|user_start|>{}<|user_end|><|assistant_start|>",
        end="<|assistant_end|>",
        system="<|bos|>",
        compact=True,
    ),
    # For a pretrained language model that reads embeddings.
    "study_text": Template(turn="{}\nReport:\n", compact=True),
    "vicuna_v1": Template(
        turn="USER: {} ASSISTANT:",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. ",
    ),
}
CHAT_TEMPLATE = "chat_template"  # the tokenizer's own template, see `chat_template.py`


def find_template(name: str) -> Template | None:
    """Look up a template by name, or build one from a text with a single ``{}``.

    Returns:
        The template, or None for the tokenizer's own.

    Raises:
        InputError: `name` is neither a template's name nor a text with exactly one ``{}``.
    """
    if name == CHAT_TEMPLATE:
        return None
    if name in TEMPLATES:
        return TEMPLATES[name]
    if name.count("{}") == 1:
        return Template(turn=name, image=TEMPLATES["xraygpt"].image)
    hint = did_you_mean(name, [*TEMPLATES, CHAT_TEMPLATE])
    raise InputError(
        f"model.prompt_template: '{name}' does not contain {{}} exactly once and is not the name "
        f"of a template{hint}"
    )
