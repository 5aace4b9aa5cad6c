"""Intermediate files: reports as JSON lines, and the table of excluded reports and pictures."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.sources import ImageName, Problem, SourceReport


@dataclass(frozen=True)
class LeftOut:
    """A report, row or picture that is not in the training folder; never contains report text.

    Attributes:
        source_id: The id of the report; empty if it could not be read.
        where: The file, and the line if the file has lines.
        stage: ``unreadable`` (a row), ``filter`` (a report), ``picture`` (one picture of a report,
            absent or unreadable), ``no_picture`` (a report without pictures), ``check``,
            ``refused``, ``invalid``, ``failed`` or ``todo`` (a report, or a picture if each picture
            has its own text).
        reason: Why it is excluded.
    """

    source_id: str
    where: str
    stage: str
    reason: str


def write_left_out(rows: Sequence[LeftOut], path: Path) -> None:
    """Write the table of excluded reports and pictures atomically."""
    partial = path.with_name(f"{path.name}.part")
    with partial.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["source_id", "where", "stage", "reason"])
        for row in rows:
            table.writerow(map(escape_formula, (row.source_id, row.where, row.stage, row.reason)))
    partial.replace(path)


def escape_formula(text: str) -> str:
    """Quote a text that a spreadsheet would read as a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


def write_private(path: Path, content: str) -> None:
    """Write a file atomically, readable only by its owner."""
    partial = path.with_name(f"{path.name}.part")
    partial.unlink(missing_ok=True)
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(content)
    partial.replace(path)


def write_reports(reports: Sequence[SourceReport], corpus: str, path: Path) -> None:
    """Write reports as JSON lines, readable only by their owner."""
    rows = ({"corpus": corpus, **asdict(report)} for report in reports)
    write_private(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def read_reports(path: Path, corpus: str) -> Iterator[SourceReport | Problem]:
    """Read a file written by `write_reports`.

    Raises:
        DataError: The file cannot be read.
        InputError: The reports come from another corpus, which may have a different licence.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", "not UTF-8")
        raise DataError(f"cannot read {path}: {reason}") from None
    for number, line in enumerate(lines, 1):
        where = f"{path.name}, line {number}"
        if not line:
            continue
        try:
            row = json.loads(line)
            row_corpus = row.pop("corpus")
            images = tuple(ImageName(**image) for image in row.pop("images"))
            codes = {name: tuple(row.pop(name, ())) for name in ("codes", "automatic_codes")}
            report = SourceReport(**{**row, "images": images, **codes})
        except (ValueError, TypeError, KeyError, AttributeError):
            yield Problem(where, "not a report as written by the filter step")
            continue
        if row_corpus != corpus:
            raise InputError(f"{path} contains reports of {row_corpus}, not of {corpus}")
        yield report
