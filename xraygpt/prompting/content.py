"""Turns of a conversation: text, and the places of media in it.

Written as text, ``<image>`` marks the place of any medium and ``<video>`` that of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

IMAGE, VIDEO = "<image>", "<video>"  # stand for a medium, and for a clip, in a turn's text
MARK = re.compile(f"({IMAGE}|{VIDEO})")


@dataclass(frozen=True, slots=True)
class MediaPart:
    """The place of one medium in a turn.

    Attributes:
        mark: ``<image>`` for any medium, ``<video>`` for a clip alone.
        caption: Words that stand beside it, inside whatever the template puts around a medium.
        shown: False leaves the medium's own tokens out: only the caption stands there, for a
            language model that sees no images.
    """

    mark: Literal["<image>", "<video>"] = "<image>"
    caption: str = ""
    shown: bool = True


Part = str | MediaPart


class Turn(TypedDict):
    """One message of a conversation."""

    role: str  # "system" | "user" | "assistant"
    text: str  # one `<image>` or `<video>` per medium
    content: NotRequired[list[Part]]  # in place of `text`, where parts say more than marks can


def parts_of(text: str) -> list[Part]:
    """Text with marks -> content parts."""
    pieces = MARK.split(text)
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append(MediaPart("<video>" if piece == VIDEO else "<image>"))
        elif piece:
            parts.append(piece)
    return parts


def content_of(turn: Turn) -> list[Part]:
    """The parts of a turn."""
    return list(turn["content"]) if "content" in turn else parts_of(turn["text"])


def turn_of(role: str, content: Iterable[Part]) -> Turn:
    """A turn of content parts; its text has their marks, without captions."""
    parts = list(content)
    text = "".join(p if isinstance(p, str) else p.mark if p.shown else p.caption for p in parts)
    return Turn(role=role, text=text, content=parts)


def without_marks(text: str) -> str:
    """`text` without the marks of media."""
    return MARK.sub("", text).strip()


def plain_text(turn: Turn) -> str:
    """What a turn says, for people and for models that read the question beside the image."""
    words = [_in_words(p) if isinstance(p, MediaPart) else p for p in content_of(turn)]
    return "".join(words).strip()


def without_media(turn: Turn) -> Turn:
    """A turn for a model that takes no media: captions stay, as words."""
    if "content" not in turn:
        return Turn(role=turn["role"], text=without_marks(turn["text"]))
    parts = [_in_words(p) if isinstance(p, MediaPart) and p.shown else p for p in content_of(turn)]
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return turn_of(turn["role"], parts)


def _in_words(part: MediaPart) -> str:
    if not part.shown:
        return part.caption
    return f" (found: {part.caption})" if part.caption else ""


def has_words(turn: Turn) -> bool:
    """Whether a turn says anything beside its media and their captions."""
    return any(isinstance(part, str) and part.strip() for part in content_of(turn))
