"""The SQLite ledger of an output folder: it records all answers, so that none is paid for twice.

A row's key is the hash of everything its answer depends on: if the prompt, model, schema or source
text changes, a new row is made; otherwise the old row is found again. Every answer is committed on
arrival. A killed process leaves rows `in_flight`, which the next run requests again.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.curation.llm.ledger_rows import FAILED, IN_FLIGHT, TODO, Batch, Draft, Row, Usage

LEDGER_FILE = "ledger.sqlite"
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
    """The ledger cannot be written to; committed data is unaffected."""


class Ledger:
    """The ledger of one output folder; use as a context manager.

    Args:
        folder: The output folder; `ledger.sqlite` is created in it, readable only by its owner.

    Raises:
        InputError: The file is not a ledger of this version, or is open in another process.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER_FILE
        folder.mkdir(parents=True, exist_ok=True)
        # SQLite gives -wal and -shm the mode of the file itself.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        self.path.chmod(0o600)
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=0.5)
        try:
            _prepare_database(self._db)
            self._settle_reservations()
        except sqlite3.DatabaseError as error:
            self._db.close()
            busy = "locked" in str(error)
            why = "is in use by another run" if busy else f"is not an xraygpt ledger ({error})"
            raise InputError(f"{self.path} {why}") from None

    def _settle_reservations(self) -> None:
        """Charge the reservations of a killed run in full, as the usage of its calls is unknown."""
        with self.transaction():
            reserved = self._db.execute("SELECT held FROM rows WHERE held IS NOT NULL").fetchall()
            for (text,) in reserved:
                self.add_usage(*json.loads(text))
            self._db.execute("UPDATE rows SET held=NULL WHERE held IS NOT NULL")
            self._db.execute("UPDATE rows SET state=? WHERE state=?", (TODO, IN_FLIGHT))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Context manager that commits either everything written inside it or nothing.

        Raises:
            LedgerError: The ledger cannot be written to.
        """
        self._write("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._write("COMMIT")

    def _write(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise LedgerError(
                f"cannot write to {self.path}: {error}; free disk space and run the same command "
                "again (all answers so far are saved)"
            ) from None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.close()

    def prepare(
        self, rows: Sequence[tuple[str, str]], repair_sha256: str, reset_states: Iterable[str] = ()
    ) -> list[str]:
        """Add the rows of a run; rows that already have an answer keep it.

        Args:
            rows: The (key, source_id) of every row, in order.
            repair_sha256: Hash of the repair prompt; answers repaired with another one are reset.
            reset_states: Final states to reset.

        Returns:
            The keys of rows without a final state, in order.
        """
        with self.transaction():
            self._db.execute("CREATE TEMP TABLE IF NOT EXISTS run_keys (key TEXT PRIMARY KEY)")
            self._db.execute("DELETE FROM run_keys")
            self._db.executemany(
                "INSERT OR IGNORE INTO run_keys VALUES (?)", ((key,) for key, _ in rows)
            )
            self._db.executemany("INSERT OR IGNORE INTO rows (key, source_id) VALUES (?, ?)", rows)
            reset = "UPDATE rows SET state=? WHERE key IN (SELECT key FROM run_keys) AND "
            self._db.execute(f"{reset} repair NOT IN ('', ?)", (TODO, repair_sha256))
            self._db.execute(f"{reset} state=?", (TODO, FAILED))
            for state in reset_states:  # the draft is dropped too: another answer is requested
                drop_draft = (
                    "UPDATE rows SET draft=NULL WHERE key IN (SELECT key FROM run_keys) AND state=?"
                )
                self._db.execute(drop_draft, (state,))
                self._db.execute(f"{reset} state=?", (TODO, state))
        todo = {k for (k,) in self._db.execute("SELECT key FROM rows WHERE state=?", (TODO,))}
        return [key for key, _ in rows if key in todo]

    def mark_in_flight(self, keys: Sequence[str]) -> None:
        """Mark rows as sent but not yet answered."""
        for key in keys:
            self._write("UPDATE rows SET state=? WHERE key=?", (IN_FLIGHT, key))

    def reserve(self, key: str, tokens_in: int, tokens_out: int, cost: float) -> None:
        """Record the maximum usage of a call that is about to be made."""
        reservation = json.dumps([tokens_in, tokens_out, cost])
        self._write("UPDATE rows SET state=?, held=? WHERE key=?", (IN_FLIGHT, reservation, key))

    def clear_reservation(self, key: str) -> None:
        """Remove the reservation of a finished call."""
        self._write("UPDATE rows SET held=NULL WHERE key=?", (key,))

    def pending_drafts(self) -> dict[str, Draft]:
        """Return the rejected first answers of rows whose repair is still to be requested."""
        drafts = self._db.execute(
            "SELECT key, draft FROM rows WHERE draft IS NOT NULL AND state=?", (TODO,)
        )
        return {key: Draft.load(text) for key, text in drafts}

    def save_draft(self, key: str, draft: Draft) -> None:
        """Save the rejected first answer of a row."""
        self._write("UPDATE rows SET draft=? WHERE key=?", (draft.dump(), key))

    def release(self, keys: Sequence[str]) -> None:
        """Reset rows that were sent but not answered to `todo`."""
        for key in keys:
            self._write("UPDATE rows SET state=? WHERE key=? AND state=?", (TODO, key, IN_FLIGHT))

    def finish(self, row: Row, model: str) -> None:
        """Save the final state of a row."""
        self._write(
            "UPDATE rows SET state=?, reason=?, answer=?, repair=?, draft=?, tokens_in=?, "
            "tokens_out=?, held=NULL, model=?, updated=? WHERE key=?",
            (
                row.state, row.reason, row.answer, row.repair, row.draft, row.tokens_in,
                row.tokens_out, model, time.time(), row.key,
            ),
        )  # fmt: skip

    def add_usage(self, tokens_in: int, tokens_out: int, cost: float) -> None:
        """Add the usage of one call to the totals."""
        self._write(
            "INSERT INTO spent VALUES (1, ?, ?, ?, 1) ON CONFLICT (id) DO UPDATE SET "
            "tokens_in=tokens_in+excluded.tokens_in, tokens_out=tokens_out+excluded.tokens_out, "
            "money=money+excluded.money, calls=calls+1",
            (tokens_in, tokens_out, cost),
        )

    def total_usage(self) -> Usage:
        """Return the totals over all runs on this folder."""
        row = self._db.execute("SELECT tokens_in, tokens_out, money, calls FROM spent").fetchone()
        return Usage(*row) if row else Usage()

    def rows(self, keys: Sequence[str]) -> dict[str, Row]:
        """Return the stored rows by key."""
        stored = self._db.execute(
            "SELECT key, source_id, state, reason, answer, repair, draft, tokens_in, tokens_out "
            "FROM rows"
        )
        requested = set(keys)
        return {row[0]: Row(*row) for row in stored if row[0] in requested}

    def open_batches(self) -> list[Batch]:
        """Return the batches whose answers have not been collected."""
        stored = self._db.execute(
            "SELECT id, address, lines, file, batch FROM batches WHERE state != 'read' ORDER BY id"
        )
        return [
            Batch(number, address, json.loads(lines), file_id, batch_id)
            for number, address, lines, file_id, batch_id in stored
        ]

    def add_batch(self, address: str, lines: Sequence[Any]) -> None:
        """Add a batch that is about to be sent."""
        self._write(
            "INSERT INTO batches (address, lines, state) VALUES (?, ?, 'new')",
            (address, json.dumps(list(lines))),
        )

    def update_batch(
        self, number: int, state: str, *, file_id: str | None = None, batch_id: str | None = None
    ) -> None:
        """Save the progress of a batch.

        Args:
            number: Id of the batch in this ledger.
            state: ``new``, ``uploaded``, ``sent`` or ``read``.
            file_id: Id of the batch's file at the endpoint; None keeps the stored id.
            batch_id: Id of the batch at the endpoint; None keeps the stored id.
        """
        self._write(
            "UPDATE batches SET state=?, file=COALESCE(?, file), batch=COALESCE(?, batch) "
            "WHERE id=?",
            (state, file_id, batch_id, number),
        )

    def pictures(self) -> dict[str, tuple[str, str]]:
        """Return a map from the stamp of a picture to (SHA-256, why it cannot be used)."""
        stored = self._db.execute("SELECT stamp, sha256, why FROM pictures")
        return {stamp: (sha256, why) for stamp, sha256, why in stored}

    def add_pictures(self, pictures: Mapping[str, tuple[str, str]]) -> None:
        """Save the results of reading pictures, in the form that `pictures` returns."""
        with self.transaction():
            self._db.executemany(
                "INSERT OR IGNORE INTO pictures VALUES (?, ?, ?)",
                ((stamp, *result) for stamp, result in pictures.items()),
            )


def _prepare_database(db: sqlite3.Connection) -> None:
    """Lock the database, check its version and create missing tables."""
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    # Only one writer, because a second run on the same folder would pay for the same rows.
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, _VERSION):
        raise sqlite3.DatabaseError(f"its version is {version}, but this program needs {_VERSION}")
    db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_VERSION}; COMMIT;")
