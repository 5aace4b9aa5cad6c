"""Conversations with media in the formats of LLaVA, ShareGPT, OpenAI and Alpaca.

In all of them, ``<image>`` and ``<video>`` in the text mark the places of the media, which are
listed apart. A record that does not follow its format is named with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xraygpt.datasets.media_paths import RecordError
from xraygpt.media.base import MediaRef
from xraygpt.prompting.content import IMAGE, MARK_PATTERN, VIDEO
from xraygpt.prompting.renderer import Turn

AUDIO = "<audio>"
_SINGULAR = {"images": "image", "videos": "video", "image": "images", "video": "videos"}


@dataclass(kw_only=True)
class Columns:
    """Names of the fields of a record; None if the format has no such field."""

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None


@dataclass(kw_only=True)
class Tags:
    """Names in the messages of a ShareGPT or OpenAI record."""

    role: str | None = "from"
    content: str | None = "value"
    user: str | None = "human"
    assistant: str | None = "gpt"
    observation: str | None = "observation"
    function: str | None = "function_call"
    system: str | None = "system"


@dataclass(frozen=True)
class Conversation:
    """A record as turns, with the files of its media in the order of their marks.

    Attributes:
        turns: The turns; their text contains one mark for each medium.
        media: For each mark, its kind ("image" or "video") and the entry of the record.
    """

    turns: tuple[Turn, ...]
    media: tuple[tuple[str, Any], ...] = field(default=())


def parse_conversation(row: Any, layout: str, columns: Columns, tags: Tags) -> Conversation:
    """Parse a record.

    Args:
        row: The record.
        layout: ``alpaca``, ``sharegpt`` or ``openai``.
        columns: The names of its fields.
        tags: The names in its messages.

    Raises:
        RecordError: The record does not follow the format.
    """
    if not isinstance(row, dict):
        raise RecordError(f"expected an object, got {type(row).__name__}")
    build = _alpaca_turns if layout == "alpaca" else _message_turns
    turns = tuple(build(row, columns, tags))
    media = {
        IMAGE: _media_list(row, columns.images, "images"),
        VIDEO: _media_list(row, columns.videos, "videos"),
    }
    if _media_list(row, columns.audios, "audios") or any(AUDIO in t["text"] for t in turns):
        raise RecordError("it has audio, which no model here reads")
    return Conversation(turns, tuple(_placed_media(turns, media)))


def _placed_media(
    turns: Sequence[Turn], media: Mapping[str, list[Any]]
) -> Iterator[tuple[str, Any]]:
    marks = [mark for turn in turns for mark in MARK_PATTERN.findall(turn["text"])]
    for mark, entries in media.items():
        count = marks.count(mark)
        if count != len(entries):
            name = "images" if mark == IMAGE else "videos"
            raise RecordError(f"{count} {mark} in the text, but {len(entries)} {name}")
    for turn in turns:
        if turn["role"] == "assistant" and MARK_PATTERN.search(turn["text"]):
            raise RecordError("an answer contains <image> or <video>; only questions show media")
    remaining = {mark: iter(entries) for mark, entries in media.items()}
    for mark in marks:
        yield ("image" if mark == IMAGE else "video"), next(remaining[mark])


def _media_list(row: Mapping[str, Any], column: str | None, name: str) -> list[Any]:
    """Return the entries of a column of media."""
    other = _SINGULAR.get(column or name)
    if row.get(column or name) is None and other and row.get(other) is not None:
        raise RecordError(
            f"it has the field '{other}', but the media are expected in '{column or name}'"
        )
    if column is None:
        if row.get(name) not in (None, []):
            raise RecordError(f"it has the field '{name}', which the columns do not list")
        return []
    value = row.get(column)
    if value is None:
        return []
    if column in ("image", "video"):  # LLaVA's files
        return value if isinstance(value, list) else [value]
    if isinstance(value, str):
        raise RecordError(f"'{column}' is the text {value!r}, not a list; write [{value!r}]")
    if not isinstance(value, list):
        raise RecordError(f"'{column}' is {type(value).__name__}, not a list of files")
    return value


# ---- ShareGPT and OpenAI -------------------------------------------------------------------------


def _message_turns(row: Mapping[str, Any], columns: Columns, tags: Tags) -> Iterator[Turn]:
    name = columns.messages
    messages = row.get(name or "")
    if not isinstance(messages, list) or not messages:
        raise RecordError(f"'{name}' is not a list of messages")
    system = row.get(columns.system) if columns.system else None
    roles = [_role(m, i, tags) for i, m in enumerate(messages)]
    texts = [_text(m, i, tags) for i, m in enumerate(messages)]
    first = int(bool(tags.system) and roles[0] == tags.system)
    if first:
        system, roles, texts = texts[0], roles[1:], texts[1:]
    if system:
        yield Turn(role="system", text=str(system))
    questions, answers = (tags.user, tags.observation), (tags.assistant, tags.function)
    for i, role in enumerate(roles):
        expected = answers if i % 2 else questions
        if role not in [tag for tag in expected if tag]:
            known = " or ".join(f"'{tag}'" for tag in expected if tag)
            raise RecordError(
                f"message {i + first} has the role {role!r}, where {known} is expected"
            )
    if len(roles) % 2:
        raise RecordError(f"{len(roles)} messages: the last question has no answer")
    for i, text in enumerate(texts):
        yield Turn(role="assistant" if i % 2 else "user", text=text)


def _role(message: Any, index: int, tags: Tags) -> str:
    if not isinstance(message, dict):
        raise RecordError(f"message {index} is {type(message).__name__}, not an object")
    role = message.get(tags.role or "")
    if not isinstance(role, str):
        raise RecordError(f"message {index} has no role ('{tags.role}')")
    return role


def _text(message: Mapping[str, Any], index: int, tags: Tags) -> str:
    text = message.get(tags.content or "")
    if isinstance(text, list):  # OpenAI's content parts
        return "".join(_part_text(part, index) for part in text)
    if not isinstance(text, str):
        raise RecordError(f"message {index} has no text ('{tags.content}')")
    return text


def _part_text(part: Any, index: int) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "video"):
        return f"<{kind}>"
    raise RecordError(
        f"message {index} has a content part of type {kind!r}; use text, image, video"
    )


# ---- Alpaca --------------------------------------------------------------------------------------


def _alpaca_turns(row: Mapping[str, Any], columns: Columns, _: Tags) -> Iterator[Turn]:
    system = row.get(columns.system) if columns.system else None
    if system:
        yield Turn(role="system", text=str(system))
    history = row.get(columns.history) if columns.history else None
    if history is not None and not isinstance(history, list):
        raise RecordError(f"'{columns.history}' is {type(history).__name__}, not a list of pairs")
    for i, pair in enumerate(history or ()):
        if not (
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(t, str) for t in pair)
        ):
            raise RecordError(f"entry {i} of '{columns.history}' is not a pair of texts")
        yield Turn(role="user", text=pair[0])
        yield Turn(role="assistant", text=pair[1])
    parts = [row.get(name) for name in (columns.prompt, columns.query) if name]
    question = "\n".join(part for part in parts if isinstance(part, str) and part)
    if not question:
        raise RecordError(f"it has no question ('{columns.prompt}')")
    answer = row.get(columns.response or "")
    if not isinstance(answer, str):
        raise RecordError(f"it has no answer ('{columns.response}')")
    yield Turn(role="user", text=question)
    yield Turn(role="assistant", text=answer)


# ---- Media ---------------------------------------------------------------------------------------


def build_refs(
    media: Sequence[tuple[str, Any]], resolve: Callable[[object], str], sampling: Any
) -> tuple[MediaRef, ...]:
    """Return references to a record's media.

    Args:
        media: The kinds and entries of `Conversation.media`.
        resolve: Returns the path of an existing file, or raises a `RecordError`.
        sampling: Which frames of a clip are read.

    Raises:
        RecordError: An entry is no file, or does not exist.
    """
    return tuple(_build_ref(kind, entry, resolve, sampling) for kind, entry in media)


def _build_ref(kind: str, entry: Any, resolve: Callable[[object], str], sampling: Any) -> MediaRef:
    if kind == "image":
        return MediaRef(resolve(_file_of(entry)), kind="image")
    if isinstance(entry, list):  # the frames of a clip as images
        if not entry:
            raise RecordError("a clip is an empty list of frames")
        files = tuple(resolve(_file_of(item)) for item in entry)
        return MediaRef(files[0], kind="clip", frame_files=files, sampling=sampling)
    return MediaRef(resolve(_file_of(entry)), kind="clip", sampling=sampling)


def _file_of(entry: Any) -> Any:
    """Return the path in an entry, which may be an object ``{"path": …}`` as in Parquet."""
    return entry.get("path") if isinstance(entry, dict) else entry
