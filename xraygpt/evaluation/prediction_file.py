"""Prediction files: a first line with the run's identity, then one prediction per line."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xraygpt.common import checkpoint
from xraygpt.runners import logs
from xraygpt.tasks.base import Prediction


def compute_signature(identity: dict[str, Any]) -> str:
    """Return twelve hex digits that change with anything in `identity`."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write(path: Path, identity: dict[str, Any], predictions: Sequence[Prediction]) -> None:
    """Write a prediction file, replacing an existing one atomically."""
    _write_rows(path, [_heading(identity), *(p.as_row() for p in predictions)])


def resume(path: Path, identity: dict[str, Any]) -> dict[str, Prediction]:
    """Read an earlier command's predictions by sample id, and prepare the file for appending.

    An incomplete last line is removed, and a missing first line is written.
    """
    rows = logs.read_rows(path) or [_heading(identity)]
    _write_rows(path, rows)
    return _by_sample(rows, path.parent)


def read(path: Path) -> dict[str, Prediction]:
    """Read predictions by sample id from a file that another process may be writing."""
    return _by_sample(logs.read_rows(path), path.parent)


def read_shards(path: Path) -> dict[str, Prediction]:
    """Read the predictions of all shards of `path`, by sample id."""
    predictions: dict[str, Prediction] = {}
    for shard in sorted(path.parent.glob(f"{path.stem}-*-of-*.jsonl")):
        predictions = read(shard) | predictions
    return predictions


def path_for(folder: Path, stem: str, shard: tuple[int, int] | None) -> Path:
    """Return the path of the file with all rows, or of the file of shard (k, n)."""
    suffix = "" if shard is None else "-{}-of-{}".format(*shard)
    return folder / f"{stem}{suffix}.jsonl"


def _heading(identity: dict[str, Any]) -> dict[str, Any]:
    return {"signature": compute_signature(identity), "identity": identity}


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    checkpoint.write_text_atomic(path, text)


def _by_sample(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Prediction]:
    return {row["sample_id"]: Prediction(**row, folder=folder) for row in rows[1:]}
