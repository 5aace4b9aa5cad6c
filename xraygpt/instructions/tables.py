"""The tables of a collection in an SQLite database: joined by key, without loading them all.

Every column is text, as in the file; empty cells are NULL. Readers convert what they need.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import sqlite3
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from xraygpt.common.errors import DataError
from xraygpt.common.registry import did_you_mean

_BATCH = 5000  # rows per insertion
csv.field_size_limit(1 << 24)  # a report, or the run lengths of an outline


class Tables:
    """The database of one collection.

    Args:
        path: The database file; ":memory:" keeps it in memory.
        read_only: Whether the file must exist and is not changed.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False) -> None:
        self.path = path
        if read_only:
            self.db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        else:
            self.db = sqlite3.connect(path)
            # The file is renamed once it is complete, so it needs no journal.
            self.db.execute("PRAGMA journal_mode = OFF")
            self.db.execute("PRAGMA synchronous = OFF")
        self.db.execute("PRAGMA cache_size = -32768")  # KiB

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    # ---- Loading ---------------------------------------------------------------------------------

    def load_csv(
        self,
        name: str,
        path: Path,
        required: Sequence[str] = (),
        optional: Sequence[str] = (),
        key: str = "",
    ) -> int:
        """Load columns of a CSV file, which may be compressed (``.gz``, or one file in a ``.zip``).

        Args:
            name: Name of the table.
            path: The file.
            required: Columns that must exist. ``a|b`` is the column a, or else b; the table calls
                it a. Upper and lower case are the same.
            optional: Columns that are NULL if they do not exist.
            key: Column or columns (``"a, b"``) to index.

        Returns:
            The number of rows.

        Raises:
            DataError: The file cannot be read, lacks a column, or has a row of another length.
        """
        columns = [column.partition("|")[0] for column in (*required, *optional)]
        return self.load_rows(name, columns, read_csv(path, required, optional), key)

    def load_rows(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], key: str = ""
    ) -> int:
        """Create a table from rows; see `load_csv`."""
        quoted = ", ".join(f'"{column}"' for column in columns)
        self.db.execute(f'CREATE TABLE "{name}" ({quoted})')
        marks = ", ".join("?" * len(columns))
        iterator, count = iter(rows), 0
        while batch := list(itertools.islice(iterator, _BATCH)):
            self.db.executemany(f'INSERT INTO "{name}" VALUES ({marks})', batch)
            count += len(batch)
        if key:
            self.index(name, key)
        self.db.commit()
        return count

    def index(self, name: str, key: str) -> None:
        """Index a table by one column or several (``"a, b"``)."""
        title = f"{name} by {key}".replace('"', "")
        self.db.execute(f'CREATE INDEX "{title}" ON "{name}" ({key})')

    def run(self, sql: str, *values: Any) -> int:
        """Execute a statement and return the number of changed rows."""
        cursor = self.db.execute(sql, values)
        self.db.commit()
        return cursor.rowcount

    # ---- Reading ---------------------------------------------------------------------------------

    def rows(self, sql: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query."""
        yield from self.db.execute(sql, values)

    def row(self, sql: str, *values: Any) -> tuple[Any, ...] | None:
        """Return the first row of a query, or None."""
        found: tuple[Any, ...] | None = self.db.execute(sql, values).fetchone()
        return found

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row of a query, or None."""
        found = self.row(sql, *values)
        return None if found is None else found[0]

    def has(self, name: str) -> bool:
        """Check whether a table exists."""
        sql = "SELECT 1 FROM sqlite_master WHERE type IN ('table', 'view') AND name = ?"
        return self.row(sql, name) is not None


def read_csv(
    path: Path, required: Sequence[str] = (), optional: Sequence[str] = ()
) -> Iterator[list[str | None]]:
    """Yield the cells of some columns of a CSV file; see `Tables.load_csv`."""
    with open_text(path) as file:
        rows = csv.reader(file)
        header = [column.strip() for column in next(rows, [])]
        places = [_place(column, header) for column in (*required, *optional)]
        if None in places[: len(required)]:
            absent = required[places.index(None)].replace("|", " or ")
            raise DataError(f"{path}: there is no column '{absent}'{did_you_mean(absent, header)}")
        try:
            yield from _select(path, rows, len(header), places)
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}") from None


def _place(column: str, header: Sequence[str]) -> int | None:
    """Return the place of the first of several names, ``a|b``, in the header of a file."""
    lower = [name.lower() for name in header]
    for name in column.lower().split("|"):
        if name in lower:
            return lower.index(name)
    return None


def _select(
    path: Path, rows: Iterator[list[str]], width: int, places: Sequence[int | None]
) -> Iterator[list[str | None]]:
    """Yield the chosen cells of each row, without spaces around them; empty ones are None."""
    for number, row in enumerate(rows, 2):
        if len(row) != width:
            if not row:
                continue
            raise DataError(
                f"{path}, row {number}: {len(row)} cells, but the header has {width} columns"
            )
        # Most cells of tables of labels are empty.
        yield [
            (cell.strip() or None) if p is not None and (cell := row[p]) else None for p in places
        ]


@contextmanager
def open_text(path: Path) -> Iterator[io.TextIOBase]:
    """Open a text file, which may be compressed.

    Raises:
        DataError: It cannot be read, is not UTF-8, or is damaged.
    """
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                names = [n for n in archive.namelist() if not n.endswith("/")]
                if len(names) != 1:
                    raise DataError(f"{path}: expected one file in the archive, got {len(names)}")
                with archive.open(names[0]) as raw:
                    yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            return
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {path}: {reason}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from None


def signature(paths: Iterable[Path]) -> list[list[Any]]:
    """Return name, size and modification time of files and folders, to notice changes."""
    rows = []
    for path in paths:
        status = path.stat()
        rows.append([str(path), status.st_size, status.st_mtime_ns])
    return rows
