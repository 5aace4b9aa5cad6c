"""The file of predictions: a first line that says whose they are, then one answer a line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xraygpt.common import checkpoint
from xraygpt.runners import logs
from xraygpt.tasks.base import Prediction


def signature_of(identity: dict[str, Any]) -> str:
    """Twelve hex digits that change with anything in `identity`."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write(path: Path, identity: dict[str, Any], predictions: Sequence[Prediction]) -> None:
    """The whole file anew, at once or not at all."""
    rows = [_heading(identity), *(p.as_row() for p in predictions)]
    checkpoint.write_file(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))


def _heading(identity: dict[str, Any]) -> dict[str, Any]:
    return {"signature": signature_of(identity), "identity": identity}


def stored(path: Path, identity: dict[str, Any]) -> dict[str, Prediction]:
    """Answers of an earlier, interrupted command, by sample; a torn last line is dropped.

    The file has its first line afterwards, and answers can be appended to it.
    """
    rows = logs.read_rows(path) or [_heading(identity)]
    checkpoint.write_file(path, "".join(json.dumps(row, default=str) + "\n" for row in rows))
    return _by_sample(rows, path.parent)


def peeked(path: Path) -> dict[str, Prediction]:
    """The same of a file that another process may be writing; it is left alone."""
    return _by_sample(logs.read_rows(path), path.parent)


def path_of(folder: Path, stem: str, share: tuple[int, int] | None) -> Path:
    """The file of all answers, or of the `share` (k, n) of them."""
    mark = "" if share is None else "-{}-of-{}".format(*share)
    return folder / f"{stem}{mark}.jsonl"


def of_shares(path: Path) -> dict[str, Prediction]:
    """What the shares of `path` have answered."""
    found: dict[str, Prediction] = {}
    for share in sorted(path.parent.glob(f"{path.stem}-*-of-*.jsonl")):
        found = peeked(share) | found
    return found


def _by_sample(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Prediction]:
    return {row["sample_id"]: Prediction(**row, folder=folder) for row in rows[1:]}
