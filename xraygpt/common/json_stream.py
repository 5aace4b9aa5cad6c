"""Reads large files of records one by one: JSON arrays, JSONL, Parquet and CSV."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from xraygpt.common.annotation_files import read_table
from xraygpt.common.errors import DataError
from xraygpt.common.requirements import INSTALL_PARQUET

CHUNK = 2**20  # characters read at once
PARQUET_ROWS = 256  # rows read at once
_SPACE = " \t\r\n"
_LITERAL = 16  # characters; longer than any word or escape of JSON


def iter_records(path: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield the records of a file with their indices, from 0; memory does not grow with the file.

    Args:
        path: A ``.json`` file with an array or with objects one after the other, or a ``.jsonl``,
            ``.parquet`` or ``.csv`` file.
        columns: Names of the columns of a Parquet file to read, if they exist; None reads all.

    Raises:
        DataError: The file cannot be read; the message names the line or the record.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _iter_parquet(path, columns)
        return
    if suffix == ".csv":
        yield from enumerate(row for _, row in read_table(path, "csv"))
        return
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from _iter_lines(path, file) if suffix == ".jsonl" else _iter_array(path, file)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None


def _iter_lines(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    index = 0
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield index, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number} is not JSON: {error.msg}") from None
        index += 1


class _Array:
    """The text of a JSON array, of which only a window is in memory."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.line = "", 0, 1
        self.skipped = 0  # line breaks since the last character that was taken

    def peek(self) -> str:
        """Return the next character that is not white space, or "" at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _SPACE:
                self.skipped += self.text[self.at] == "\n"
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._read_more():
                return ""

    def take(self) -> str:
        """Return the next character that is not white space, and go past it."""
        character = self.peek()
        self.at += len(character)
        self.skipped = 0
        return character

    def _read_more(self) -> bool:
        more = self.file.read(CHUNK)
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :] + more, 0
        return bool(more)

    def decode(self) -> Any:
        """Return the next value.

        Raises:
            DataError: It is not JSON.
        """
        decoder = json.JSONDecoder()
        while True:
            try:
                start = self.at
                value, end = decoder.raw_decode(self.text, start)
                if end < len(self.text) - _LITERAL:
                    self.at = end
                    return value
                if not self._read_more():  # the value was not cut; the window now starts with it
                    self.at = end - start
                    return value
            except json.JSONDecodeError as error:
                failure = self.error(*_explain(error))  # before the window moves
                if not self._may_continue(error) or not self._read_more():
                    raise failure from None

    def _may_continue(self, error: json.JSONDecodeError) -> bool:
        """Return whether an error may come from the end of the window."""
        is_string = error.msg.startswith("Unterminated string")
        return is_string or error.pos > len(self.text) - _LITERAL

    def error(
        self, problem: str, position: int | None = None, *, lines_before: int = 0
    ) -> DataError:
        """Return the error for a problem at a position in the window, or some lines before it."""
        at = self.at if position is None else position
        line = self.line + self.text.count("\n", 0, at) - lines_before
        return DataError(f"{self.path}, line {line} is not JSON: {problem}")


def _explain(error: json.JSONDecodeError) -> tuple[str, int]:
    """Return the problem and its position; a comma after a last entry is named."""
    named = error.msg.startswith("Illegal trailing comma")  # since Python 3.13, at the comma
    before = error.doc[: error.pos + named].rstrip(_SPACE)
    if before.endswith(",") and (named or error.doc[error.pos : error.pos + 1] in ("}", "]")):
        return "a comma follows the last entry; remove it", len(before) - 1
    return error.msg, error.pos


def _iter_array(path: Path, file: TextIO) -> Iterator[tuple[int, Any]]:
    array = _Array(path, file)
    if array.peek() != "[":  # a single object, or several as in JSONL
        if not array.peek():
            raise DataError(f"{path} is empty")
        index = 0
        while array.peek():
            yield index, array.decode()
            index += 1
        return
    array.take()
    index = 0
    while array.peek() != "]":
        if not array.peek():
            raise array.error("the end is missing" + (f" after record {index - 1}" * bool(index)))
        yield index, array.decode()
        index += 1
        separator = array.peek()
        if separator == ",":
            array.take()
            if array.peek() == "]":
                what = f"a comma follows the last record (record {index - 1}); remove it"
                raise array.error(what, lines_before=array.skipped)
        elif separator != "]":
            missing = "the end is missing" if not separator else "a comma is missing"
            raise array.error(f"{missing} after record {index - 1}")
    array.take()
    if array.peek():
        raise array.error("there is text after the end of the array")


def _iter_parquet(path: Path, columns: Collection[str] | None) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise DataError(f"{path}: Parquet needs pyarrow; {INSTALL_PARQUET}") from None
    from pyarrow import ArrowException

    index = 0
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        chosen = names if columns is None else [name for name in names if name in columns]
        for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=chosen):
            for row in batch.to_pylist():
                yield index, row
                index += 1
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that contains one object.

    Raises:
        DataError: The file is missing, is not JSON, or contains something else; the message names
            the line, and a comma after the last entry.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        problem, at = _explain(error)
        line = 1 + error.doc.count("\n", 0, at)
        raise DataError(f"{path}, line {line} is not JSON: {problem}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, got {type(content).__name__}")
    return content
