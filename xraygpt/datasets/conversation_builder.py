"""Base of builders whose corpora are files of conversations with media."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.json_stream import iter_records
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.conversation_rows import Columns, Tags, build_refs, parse_conversation
from xraygpt.datasets.media_paths import RecordError, require_file
from xraygpt.prompting.renderer import Turn
from xraygpt.vocabulary.openi import openi_study


@dataclass(frozen=True)
class SourceFile:
    """A file of conversations.

    Attributes:
        path: The file.
        layout: ``alpaca``, ``sharegpt`` or ``openai``.
        columns: Names of the fields.
        tags: Names in the messages.
        split: The split of its records, or "" if records name it or it is drawn by the split rule.
        name: Name of the data set.
        keep: Whether to use a record, by its index.
    """

    path: Path
    layout: str
    columns: Columns
    tags: Tags
    split: str
    name: str
    keep: Callable[[int], bool] | None = None


class ConversationBuilder(BaseBuilder):
    """Reads conversations one by one; media are read when a sample is used."""

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """Settings of a corpus of conversations."""

        input_check: bool = False
        """Warn about images that do not look like chest radiographs."""

    config: Config

    def sources(self) -> Iterator[SourceFile]:
        """Yield the files of the corpus."""
        raise NotImplementedError

    def read_source(
        self, source: SourceFile, clean: Callable[[str], str]
    ) -> Iterator[tuple[str | None, Record | str]]:
        """Yield the records of a file with their splits; see `BaseBuilder.records`."""
        root = self.media_folder()
        for index, row in iter_records(source.path):
            if source.keep is not None and not source.keep(index):
                continue
            try:
                record = self._build_record(row, index, source, root, clean)
            except RecordError as error:
                yield None, f"{source.path.name}, record {index}: {error}"
                continue
            listed = source.split or _text_or_none(row.get(self.config.split.field or ""))
            patient = row.get("patient")
            yield self.config.split.assign_grouped(record.study_id, patient, listed), record

    def media_folder(self) -> Path:
        """Return the folder that relative paths of media start at."""
        return Path(self.config.storage) / (self.config.images or ".")

    def _build_record(
        self, row: Any, index: int, source: SourceFile, root: Path, clean: Callable[[str], str]
    ) -> Record:
        parsed = parse_conversation(row, source.layout, source.columns, source.tags)
        media = build_refs(parsed.media, lambda name: _resolve(root, name), self.config.frames)
        sample_id = _text_or_none(row.get("id")) or f"{source.name}/{index}"
        stem = media[0].path.name if media else ""
        study = _text_or_none(row.get("study")) or (openi_study(stem) if stem else None)
        return Record(
            sample_id=sample_id,
            study_id=study or (str(media[0].path) if media else sample_id),
            media=media,
            turns=tuple(_clean_turn(turn, clean) for turn in parsed.turns),
            meta=_meta(row),
        )


def _resolve(root: Path, name: object) -> str:
    """Return the path of a medium: under `root` if it is there, else as it is written.

    Raises:
        RecordError: There is no such file.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RecordError(f"{name!r} is not the path of a file")
    below = root / name
    try:
        path = below if below.exists() else Path(name)
        is_there, is_folder = path.exists(), path.is_dir()
    except OSError as error:  # the name is too long, such as an encoded image
        raise RecordError(f"'{name[:40]}…' is not the path of a file: {error.strerror}") from None
    if not is_there:
        raise RecordError(f"there is no file {below}")
    if is_folder:
        raise RecordError(f"{path} is a folder, not a file")
    return os.fspath(require_file(path))


def _clean_turn(turn: Turn, clean: Callable[[str], str]) -> Turn:
    return (
        Turn(role=turn["role"], text=clean(turn["text"])) if turn["role"] == "assistant" else turn
    )


def _meta(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("labels", "boxes", "source", "licence") if name in row}


def _text_or_none(value: object) -> str | None:
    return str(value) if isinstance(value, (str, int)) and value != "" else None
