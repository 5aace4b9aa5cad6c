"""The file of predictions: a first line that says whose they are, then one answer a line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from xraygpt.common import checkpoint
from xraygpt.runners import logs
from xraygpt.tasks.base import Prediction


def signature_of(identity: dict[str, Any]) -> str:
    """Twelve hex digits that change with anything in `identity`."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def stored(path: Path, identity: dict[str, Any]) -> dict[str, Prediction]:
    """Answers of an earlier, interrupted command, by sample; a torn last line is dropped.

    The file has its first line afterwards, and answers can be appended to it.
    """
    rows = logs.read_rows(path) or [{"signature": signature_of(identity), "identity": identity}]
    checkpoint.write_file(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
    return {row["sample_id"]: Prediction(**row) for row in rows[1:]}
