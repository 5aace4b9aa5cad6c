"""What has been asked and answered, in SQLite beside the output: nothing is paid for twice.

A row's key is the hash of all that its answer depends on, so a changed prompt, model, schema or
source text is a new row and an unchanged one is found again. Every answer is committed when it
arrives; a process killed at any time leaves rows `in_flight`, which the next one asks again.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from xraygpt.common.errors import InputError, XrayGPTError

NAME = "ledger.sqlite"
TODO, IN_FLIGHT, DONE, REFUSED, INVALID, FAILED = (
    "todo", "in_flight", "done", "refused", "invalid", "failed",
)  # fmt: skip
FINAL = (DONE, REFUSED, INVALID)  # asked again only if told to; failed rows always are
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    key TEXT PRIMARY KEY, source_id TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'todo',
    reason TEXT NOT NULL DEFAULT '', answer TEXT, repair TEXT NOT NULL DEFAULT '',
    draft TEXT, tokens_in INTEGER NOT NULL DEFAULT 0, tokens_out INTEGER NOT NULL DEFAULT 0,
    held TEXT, model TEXT NOT NULL DEFAULT '', updated REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    id INTEGER PRIMARY KEY, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL,
    money REAL NOT NULL, calls INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY, address TEXT NOT NULL, lines TEXT NOT NULL, file TEXT, batch TEXT,
    state TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS pictures (
    stamp TEXT PRIMARY KEY, sha256 TEXT NOT NULL, why TEXT NOT NULL
);
"""
_VERSION = 2


class LedgerError(XrayGPTError):
    """The ledger cannot be written; what was committed stays."""


def row_key(**parts: Any) -> str:
    """SHA-256 of what an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        key: See `row_key`.
        source_id: Of the report or picture.
        state: One of the states above.
        reason: Why it has no answer.
        answer: JSON of the accepted answer.
        repair: Hash of the repair prompt where one was sent.
        draft: The first answer where it could not stand, as `Draft` writes it.
        tokens_in: Read by the model, over all calls of this row.
        tokens_out: Written.
    """

    key: str
    source_id: str
    state: str = TODO
    reason: str = ""
    answer: str | None = None
    repair: str = ""
    draft: str | None = None
    tokens_in: int = 0
    tokens_out: int = 0


@dataclass(frozen=True)
class Draft:
    """A first answer that could not stand; it is paid for, so only its repair is asked for.

    Attributes:
        content: Its text.
        reasons: Why it cannot stand.
        tokens_in: It took.
        tokens_out: Likewise.
    """

    content: str
    reasons: tuple[str, ...]
    tokens_in: int = 0
    tokens_out: int = 0

    def dump(self) -> str:
        """For the ledger."""
        return json.dumps([self.content, self.reasons, self.tokens_in, self.tokens_out])

    @staticmethod
    def load(text: str) -> Draft:
        """What `dump` made."""
        content, reasons, tokens_in, tokens_out = json.loads(text)
        return Draft(content, tuple(reasons), tokens_in, tokens_out)


@dataclass(frozen=True)
class Batch:
    """What the Batch API was given.

    Attributes:
        number: In this ledger.
        address: Of the endpoint it is for.
        lines: One a request; `batch.Line` knows their form.
        file: As the endpoint calls it, once it is there.
        batch: Likewise, once it was started.
    """

    number: int
    address: str
    lines: list[Any]
    file: str | None
    batch: str | None


@dataclass(frozen=True)
class Spent:
    """Sums over every call this ledger has seen, answers that were thrown away included."""

    tokens_in: int = 0
    tokens_out: int = 0
    money: float = 0.0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.tokens_in + self.tokens_out


class Ledger:
    """The rows of one output folder; use as a context manager.

    Args:
        folder: Of the output; gets `ledger.sqlite`, readable by its owner alone.

    Raises:
        InputError: The file is no ledger of this version, or another process writes to it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        # SQLite gives -wal and -shm the mode of the file itself.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self.path.chmod(0o600)
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=0.5)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._db.close()
            busy = "locked" in str(error)
            why = "is in use by another run" if busy else f"is no ledger of ours ({error})"
            raise InputError(f"{self.path} {why}") from None

    def _open(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        # One writer: a second run on the same folder would pay for the same rows.
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _VERSION):
            raise sqlite3.DatabaseError(f"version {version}, this program writes {_VERSION}")
        db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
        self._count_unknown()

    def _count_unknown(self) -> None:
        """Calls under way when a run was killed: nobody knows what they took, so all counts."""
        with self.transaction():
            held = self._db.execute("SELECT held FROM rows WHERE held IS NOT NULL").fetchall()
            for (text,) in held:
                self.spend(*json.loads(text))
            self._db.execute("UPDATE rows SET held=NULL WHERE held IS NOT NULL")
            self._db.execute("UPDATE rows SET state=? WHERE state=?", (TODO, IN_FLIGHT))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is written inside, or nothing.

        Raises:
            LedgerError: It cannot be written.
        """
        self._write("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._write("COMMIT")

    def _write(self, what: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(what, values)
        except sqlite3.Error as error:
            raise LedgerError(
                f"cannot write {self.path}: {error}; make room and type the same again: what was "
                "answered before is kept"
            ) from None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._db.close()

    def plan(
        self, wanted: Sequence[tuple[str, str]], repair: str, again: Iterable[str] = ()
    ) -> list[str]:
        """Enter the rows of a run; those already answered stay.

        Args:
            wanted: (key, source_id) of every row, in order.
            repair: Hash of the repair prompt; answers that came of another one are asked again.
            again: Final states that are to be asked again.

        Returns:
            Keys without a final state, in order.
        """
        with self.transaction():
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS wanted (key TEXT PRIMARY KEY)")
            self._db.execute("DELETE FROM wanted")
            self._db.executemany(
                "INSERT OR IGNORE INTO wanted VALUES (?)", ((k,) for k, _ in wanted)
            )
            self._db.executemany(
                "INSERT OR IGNORE INTO rows (key, source_id) VALUES (?, ?)", wanted
            )
            ours = "UPDATE rows SET state=? WHERE key IN (SELECT key FROM wanted) AND "
            self._db.execute(f"{ours} repair NOT IN ('', ?)", (TODO, repair))
            self._db.execute(f"{ours} state=?", (TODO, FAILED))
            for state in again:  # from the beginning: another answer is what is wanted
                draft = (
                    "UPDATE rows SET draft=NULL WHERE key IN (SELECT key FROM wanted) AND state=?"
                )
                self._db.execute(draft, (state,))
                self._db.execute(f"{ours} state=?", (TODO, state))
        left = {k for (k,) in self._db.execute("SELECT key FROM rows WHERE state=?", (TODO,))}
        return [key for key, _ in wanted if key in left]

    def start(self, keys: Sequence[str]) -> None:
        """Mark rows as asked and not answered."""
        for key in keys:
            self._write("UPDATE rows SET state=? WHERE key=?", (IN_FLIGHT, key))

    def hold(self, key: str, tokens_in: int, tokens_out: int, money: float) -> None:
        """A call of a row is about to go out that may take so much."""
        held = json.dumps([tokens_in, tokens_out, money])
        self._write("UPDATE rows SET state=?, held=? WHERE key=?", (IN_FLIGHT, held, key))

    def unhold(self, key: str) -> None:
        """A call of a row is over."""
        self._write("UPDATE rows SET held=NULL WHERE key=?", (key,))

    def drafts(self) -> dict[str, Draft]:
        """First answers of rows without a final state that wait for their repair."""
        found = self._db.execute(
            "SELECT key, draft FROM rows WHERE draft IS NOT NULL AND state=?", (TODO,)
        )
        return {key: Draft.load(text) for key, text in found}

    def keep_draft(self, key: str, draft: Draft) -> None:
        """The first answer of a row cannot stand."""
        self._write("UPDATE rows SET draft=? WHERE key=?", (draft.dump(), key))

    def release(self, keys: Sequence[str]) -> None:
        """Give rows back that were started and not answered."""
        for key in keys:
            self._write("UPDATE rows SET state=? WHERE key=? AND state=?", (TODO, key, IN_FLIGHT))

    def finish(self, row: Row, model: str) -> None:
        """Write down what became of a row."""
        self._write(
            "UPDATE rows SET state=?, reason=?, answer=?, repair=?, draft=?, tokens_in=?, "
            "tokens_out=?, held=NULL, model=?, updated=? WHERE key=?",
            (
                row.state, row.reason, row.answer, row.repair, row.draft, row.tokens_in,
                row.tokens_out, model, time.time(), row.key,
            ),
        )  # fmt: skip

    def spend(self, tokens_in: int, tokens_out: int, money: float) -> None:
        """Count one call."""
        self._write(
            "INSERT INTO spent VALUES (1, ?, ?, ?, 1) ON CONFLICT (id) DO UPDATE SET "
            "tokens_in=tokens_in+excluded.tokens_in, tokens_out=tokens_out+excluded.tokens_out, "
            "money=money+excluded.money, calls=calls+1",
            (tokens_in, tokens_out, money),
        )

    def spent(self) -> Spent:
        """Over all runs on this folder."""
        found = self._db.execute("SELECT tokens_in, tokens_out, money, calls FROM spent").fetchone()
        return Spent(*found) if found else Spent()

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        """Rows by key."""
        found = self._db.execute(
            "SELECT key, source_id, state, reason, answer, repair, draft, tokens_in, tokens_out "
            "FROM rows"
        )
        wanted = set(keys)
        return {row[0]: Row(*row) for row in found if row[0] in wanted}

    # What the Batch API has been given: see `batch.py`.

    def open_batches(self) -> list[Batch]:
        """Batches whose answers are not in yet."""
        found = self._db.execute(
            "SELECT id, address, lines, file, batch FROM batches WHERE state != 'read' ORDER BY id"
        )
        return [Batch(n, address, json.loads(lines), f, b) for n, address, lines, f, b in found]

    def add_batch(self, address: str, lines: Sequence[Any]) -> None:
        """A batch about to be sent."""
        self._write(
            "INSERT INTO batches (address, lines, state) VALUES (?, ?, 'new')",
            (address, json.dumps(list(lines))),
        )

    def set_batch(self, number: int, state: str, **ids: str) -> None:
        """Write down how far a batch is.

        Args:
            number: Of the batch.
            state: ``new``, ``uploaded``, ``sent`` or ``read``.
            ids: `file` and `batch` as the endpoint calls them.
        """
        self._write(
            "UPDATE batches SET state=?, file=COALESCE(?, file), batch=COALESCE(?, batch) "
            "WHERE id=?",
            (state, ids.get("file"), ids.get("batch"), number),
        )

    def pictures(self) -> dict[str, tuple[str, str]]:
        """Stamp of a picture file -> SHA-256, or why it cannot be used."""
        found = self._db.execute("SELECT stamp, sha256, why FROM pictures")
        return {stamp: (sha256, why) for stamp, sha256, why in found}

    def add_pictures(self, read: Mapping[str, tuple[str, str]]) -> None:
        """Remember what reading pictures gave."""
        with self.transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?)",
                ((stamp, *result) for stamp, result in read.items()),
            )
