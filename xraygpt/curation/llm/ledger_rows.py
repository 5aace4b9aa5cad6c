"""What the ledger stores: rows and their states, rejected first answers, batches and usage."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

TODO, IN_FLIGHT, DONE, REFUSED, INVALID, FAILED = (
    "todo", "in_flight", "done", "refused", "invalid", "failed",
)  # fmt: skip
FINAL = (DONE, REFUSED, INVALID)  # retried only on request; failed rows are always retried


def row_key(**parts: Any) -> str:
    """Compute the SHA-256 of everything an answer depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """One item of a run.

    Attributes:
        key: The key, as computed by `row_key`.
        source_id: Id of the report or picture.
        state: One of the states above.
        reason: Why the row has no answer.
        answer: The JSON of the accepted answer.
        repair: Hash of the repair prompt, if one was sent.
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
    """A rejected first answer, which is paid for: a later run requests only its repair.

    Attributes:
        content: The text of the answer.
        reasons: Why the answer was rejected.
        tokens_in: Input tokens of its call.
        tokens_out: Output tokens of its call.
    """

    content: str
    reasons: tuple[str, ...]
    tokens_in: int = 0
    tokens_out: int = 0

    def dump(self) -> str:
        """Serialise the draft for the ledger."""
        return json.dumps([self.content, self.reasons, self.tokens_in, self.tokens_out])

    @staticmethod
    def load(text: str) -> Draft:
        """Restore a draft that `dump` serialised."""
        content, reasons, tokens_in, tokens_out = json.loads(text)
        return Draft(content, tuple(reasons), tokens_in, tokens_out)


@dataclass(frozen=True)
class Batch:
    """A batch of requests for the Batch API.

    Attributes:
        number: Id of the batch in this ledger.
        address: URL of the endpoint it belongs to.
        lines: One entry per request; see `batch.BatchLine`.
        file_id: Id of the file at the endpoint, once uploaded.
        batch_id: Id of the batch at the endpoint, once started.
    """

    number: int
    address: str
    lines: list[Any]
    file_id: str | None
    batch_id: str | None


@dataclass(frozen=True)
class Usage:
    """The total usage over all calls in a ledger, including calls whose answers were rejected."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0
    calls: int = 0

    @property
    def tokens(self) -> int:
        """The sum of input and output tokens."""
        return self.tokens_in + self.tokens_out
