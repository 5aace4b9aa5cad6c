"""Turns of a conversation, which consist of text and media.

In text, ``<image>`` marks the position of any medium and ``<video>`` that of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NotRequired, TypedDict

IMAGE, VIDEO = "<image>", "<video>"
MARK_PATTERN = re.compile(f"({IMAGE}|{VIDEO})")


@dataclass(frozen=True, slots=True)
class MediaPart:
    """Position of one medium in a turn.

    Attributes:
        mark: ``<image>`` for any medium, or ``<video>`` only for a clip.
        caption: Text next to the medium, inside the text that the template puts around it.
        shown: False replaces the medium's tokens with the caption, for a language model that sees
            no images.
    """

    mark: Literal["<image>", "<video>"] = "<image>"
    caption: str = ""
    shown: bool = True


Part = str | MediaPart


class Turn(TypedDict):
    """One message of a conversation."""

    role: str  # "system" | "user" | "assistant"
    text: str  # one `<image>` or `<video>` per medium
    content: NotRequired[list[Part]]  # replaces `text` if media have captions or are not shown


def parse_parts(text: str) -> list[Part]:
    """Split text at its marks into content parts."""
    pieces = MARK_PATTERN.split(text)
    parts: list[Part] = []
    for i, piece in enumerate(pieces):
        if i % 2:
            parts.append(MediaPart("<video>" if piece == VIDEO else "<image>"))
        elif piece:
            parts.append(piece)
    return parts


def turn_parts(turn: Turn) -> list[Part]:
    """Return the content parts of a turn."""
    return list(turn["content"]) if "content" in turn else parse_parts(turn["text"])


def build_turn(role: str, content: Iterable[Part]) -> Turn:
    """Build a turn from content parts; its text contains marks but not shown media's captions."""
    parts = list(content)
    text = "".join(p if isinstance(p, str) else p.mark if p.shown else p.caption for p in parts)
    return Turn(role=role, text=text, content=parts)


def strip_marks(text: str) -> str:
    """Return `text` without media marks."""
    return MARK_PATTERN.sub("", text).strip()


def plain_text(turn: Turn) -> str:
    """Return the text of a turn without marks, with captions written out."""
    texts = [_caption_text(p) if isinstance(p, MediaPart) else p for p in turn_parts(turn)]
    return "".join(texts).strip()


def without_media(turn: Turn) -> Turn:
    """Replace the media in a turn with their captions, for a model that does not accept media."""
    if "content" not in turn:
        return Turn(role=turn["role"], text=strip_marks(turn["text"]))
    parts = [
        _caption_text(p) if isinstance(p, MediaPart) and p.shown else p for p in turn_parts(turn)
    ]
    if parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
    if parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
    return build_turn(turn["role"], parts)


def _caption_text(part: MediaPart) -> str:
    if not part.shown:
        return part.caption
    return f" (found: {part.caption})" if part.caption else ""


def has_text(turn: Turn) -> bool:
    """Return whether a turn has text in addition to its media and their captions."""
    return any(isinstance(part, str) and part.strip() for part in turn_parts(turn))
