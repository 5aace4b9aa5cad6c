"""The answers of an endpoint and what they cost, in the folder of a result."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from xraygpt.curation.llm.ledger_rows import Usage

JOURNAL_FILE = "requests.jsonl"


class Journal:
    """Stores each answer on arrival, so that none is requested twice.

    A line has either the key of a request and its answer, or the usage of a call. Neither questions
    nor images are stored.

    Args:
        folder: The folder of the result, which may contain the answers of an earlier command. None
            keeps answers in memory only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.path = None if folder is None else folder / JOURNAL_FILE
        self.answers: dict[str, str] = {}
        self._usage = Usage()
        for row in self._read():
            if "key" in row:
                self.answers[row["key"]] = row["answer"]
            else:
                self._count(row["tokens_in"], row["tokens_out"], row["cost"])

    def total_usage(self) -> Usage:
        """Return the usage of all calls so far."""
        return self._usage

    def add_usage(self, tokens_in: int, tokens_out: int, cost: float) -> None:
        """Record the usage of one call."""
        self._count(tokens_in, tokens_out, cost)
        self._append({"tokens_in": tokens_in, "tokens_out": tokens_out, "cost": cost})

    def add_answer(self, key: str, answer: str) -> None:
        """Record the answer to a request."""
        self.answers[key] = answer
        self._append({"key": key, "answer": answer})

    def _count(self, tokens_in: int, tokens_out: int, cost: float) -> None:
        u = self._usage
        self._usage = Usage(
            u.tokens_in + tokens_in, u.tokens_out + tokens_out, u.cost + cost, u.calls + 1
        )

    def _read(self) -> list[dict[str, Any]]:
        """Read the rows; a line that was cut off is skipped."""
        rows: list[dict[str, Any]] = []
        if self.path is None or not self.path.is_file():
            return rows
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and ({"key", "answer"} <= set(row) or "cost" in row):
                rows.append(row)
        return rows

    def _append(self, row: dict[str, Any]) -> None:
        if self.path is None:
            return
        # One write per line: the processes of several shards append to the same file.
        line = ("\n" + json.dumps(row)).encode()  # ends a line that was cut off
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
