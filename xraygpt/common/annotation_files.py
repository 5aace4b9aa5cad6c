"""Reading of annotation files: JSON, JSONL and CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from xraygpt.common.errors import DataError

DELIMITERS = ",;\t"


def load_json(path: Path) -> Any:
    """Load a JSON file.

    Raises:
        DataError: The file is missing or not JSON; the message names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"cannot read the annotations {path}: {error.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def read_table(path: Path, layout: str = "auto") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a table with their numbers: lines, or indices in a JSON array.

    Args:
        path: The file.
        layout: ``jsonl``, ``json`` or ``csv``; ``auto`` uses the suffix.

    Raises:
        DataError: The file is missing or invalid or has an unknown suffix, or a row is not an
            object; the message names the row.
    """
    layout = path.suffix.lstrip(".").lower() if layout == "auto" else layout
    if layout not in ("jsonl", "json", "csv"):
        raise DataError(
            f"the suffix of {path} is not jsonl, json or csv; set format to one of these"
        )
    if layout == "json":
        content = load_json(path)
        rows = content if isinstance(content, list) else [content]
        numbered: Iterator[tuple[int, Any]] = iter(enumerate(rows))
    else:
        numbered = _read_lines(path, layout)
    for number, row in numbered:
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, record {number}: expected an object, got {type(row).__name__}"
            )
        yield number, row


def _read_lines(path: Path, layout: str) -> Iterator[tuple[int, Any]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            if layout == "csv":
                yield from _read_csv(path, file)
                return
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, json.loads(line)
    except OSError as error:
        raise DataError(f"cannot read the annotations {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {number} is not JSON: {error.msg}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as {layout}: {error}") from None


def _read_csv(path: Path, file: TextIO) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the non-empty rows of a CSV file; its first line determines the delimiter."""
    header = file.readline()
    file.seek(0)
    delimiter = max(DELIMITERS, key=header.count)
    reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    for row in reader:
        if None in row:
            raise DataError(f"{path}, line {reader.line_num} has more cells than there are columns")
        if any((cell or "").strip() for cell in row.values()):
            yield reader.line_num, row
