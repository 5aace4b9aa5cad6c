"""Filtered reports and conversations that a language model wrote, from our files or RadVLM's."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xraygpt.common.errors import DataError

SPEAKERS = ("human", "gpt")


def read_filtered_reports(source: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each study and its report.

    Args:
        source: A folder with ``<study>.txt``, or a JSONL file with ``study_id`` and ``text``.

    Raises:
        DataError: A file cannot be read.
    """
    if source.is_file():
        for row, where in _read_lines(source):
            if not isinstance(row.get("study_id"), str) or not isinstance(row.get("text"), str):
                raise DataError(f"{where}: expected the texts study_id and text")
            yield row["study_id"], row["text"]
        return
    for name in _names(source, ".txt"):
        yield name, _read_text(source / f"{name}.txt")


def read_conversations(
    source: Path, kind: str, problems: list[str]
) -> Iterator[tuple[str, str, str]]:
    """Yield the name of each image, the kind, and the turns as JSON: [[question, answer], …].

    Args:
        source: A folder with ``<image>.json``, or a JSONL file with ``image_id``, ``kind`` and
            ``turns``, of which those of another kind are left out.
        kind: ``standard`` or ``grounding``.
        problems: Gets the name of each conversation that has another form.

    Raises:
        DataError: A file cannot be read.
    """
    if source.is_file():
        for row, where in _read_lines(source):
            if row.get("kind") != kind:
                continue
            pairs = pair_turns(row.get("turns"))
            if pairs is None or not isinstance(row.get("image_id"), str):
                problems.append(where)
            else:
                yield row["image_id"], kind, json.dumps(pairs, ensure_ascii=False)
        return
    for name in _names(source, ".json"):
        path = source / f"{name}.json"
        try:
            pairs = pair_turns(json.loads(_read_text(path)))
        except ValueError:
            pairs = None
        if pairs is None:
            problems.append(str(path))
        else:
            yield name, kind, json.dumps(pairs, ensure_ascii=False)


def pair_turns(messages: Any) -> list[tuple[str, str]] | None:
    """Return pairs of question and answer, or None if the messages do not alternate.

    Args:
        messages: ``[{"from": "human", "value": …}, {"from": "gpt", "value": …}, …]``.
    """
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        return None
    texts = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("from") != SPEAKERS[i % 2]:
            return None
        text = message.get("value")
        if not isinstance(text, str) or not text.strip():
            return None
        texts.append(text.removeprefix("<image>").strip())
    return list(zip(texts[::2], texts[1::2], strict=True))


def _names(folder: Path, suffix: str) -> list[str]:
    """Return the names of the files in a folder, sorted, without their suffix."""
    with os.scandir(folder) as files:
        return sorted(
            file.name.removesuffix(suffix) for file in files if file.name.endswith(suffix)
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text") from None


def _read_lines(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{where} is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(f"{where}: expected an object")
            yield row, where
