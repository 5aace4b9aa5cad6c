"""What the ledger stores: rows and their states, rejected first answers, batches and usage."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

TODO, IN_FLIGHT, DONE, REFUSED, INVALID, FAILED = (
    "todo", "in_flight", "done", "refused", "invalid", "failed",
)  # fmt: skip
FINAL = (DONE, REFUSED, INVALID)  # retried only on request; failed rows always are


def row_key(**parts: Any) -> str:
    """Compute the SHA-256 of everything an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One item of a run.

    Attributes:
        key: See `row_key`.
        source_id: Id of the report or picture.
        state: One of the states above.
        reason: Why it has no answer.
        answer: JSON of the accepted answer.
        repair: Hash of the repair prompt if one was sent.
        draft: The rejected first answer, as written by `Draft.dump`.
        tokens_in: Input tokens of all calls of this row.
        tokens_out: Output tokens of all calls of this row.
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
    """A rejected first answer. It is paid for, so a later run requests only its repair.

    Attributes:
        content: Its text.
        reasons: Why it was rejected.
        tokens_in: Input tokens of its call.
        tokens_out: Output tokens of its call.
    """

    content: str
    reasons: tuple[str, ...]
    tokens_in: int = 0
    tokens_out: int = 0

    def dump(self) -> str:
        """Serialise for the ledger."""
        return json.dumps([self.content, self.reasons, self.tokens_in, self.tokens_out])

    @staticmethod
    def load(text: str) -> Draft:
        """Restore what `dump` wrote."""
        content, reasons, tokens_in, tokens_out = json.loads(text)
        return Draft(content, tuple(reasons), tokens_in, tokens_out)


@dataclass(frozen=True)
class Batch:
    """A batch of the Batch API.

    Attributes:
        number: Id in this ledger.
        address: URL of its endpoint.
        lines: One entry per request, see `batch.BatchLine`.
        file_id: Id at the endpoint, once uploaded.
        batch_id: Id at the endpoint, once started.
    """

    number: int
    address: str
    lines: list[Any]
    file_id: str | None
    batch_id: str | None


@dataclass(frozen=True)
class Usage:
    """Totals over all calls of a ledger, including those of rejected answers."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """Input and output tokens."""
        return self.tokens_in + self.tokens_out
