"""Prediction files: one prediction per line; `settings.json` beside them has the run's settings.

Files of earlier versions, whose first line contains the settings, are read as well.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xraygpt.common import checkpoint
from xraygpt.common.errors import InputError
from xraygpt.runners import logs
from xraygpt.tasks.base import Prediction

SETTINGS_FILE = "settings.json"


def compute_signature(identity: dict[str, Any]) -> str:
    """Return twelve hex digits that change with anything in `identity`."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_folder(folder: Path, identity: dict[str, Any]) -> None:
    """Create the folder of a run if needed, and write its settings.

    Args:
        folder: The folder, which may contain predictions of an earlier command.
        identity: Everything that affects the predictions.

    Raises:
        InputError: The folder contains predictions made with other settings.
    """
    signature = compute_signature(identity)
    folder.mkdir(parents=True, exist_ok=True)
    stored = _read_json(folder / SETTINGS_FILE).get("signature", signature)
    if stored != signature:
        raise InputError(
            f"{folder} contains predictions made with other settings (signature {stored}, now "
            f"{signature}); choose another output folder"
        )
    settings = {"signature": signature, "identity": identity}
    text = json.dumps(settings, indent=1, default=str)
    checkpoint.write_text_atomic(folder / SETTINGS_FILE, text + "\n")


def read_settings(path: Path) -> dict[str, Any]:
    """Read the `signature` and `identity` of the run that wrote a prediction file, {} if unknown.

    Args:
        path: The prediction file, whose first line contains the settings if an earlier version
            wrote it.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            first = json.loads(next(lines, "{}"))
    except (OSError, ValueError):
        first = {}
    if isinstance(first, dict) and "identity" in first:
        return first
    return _read_json(path.parent / SETTINGS_FILE)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of predictions, up to a line that was cut off; empty if there is no file."""
    return [row for row in logs.read_rows(path) if "identity" not in row]


def write(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write a prediction file, replacing an existing one atomically."""
    _write_rows(path, [p.as_row() for p in predictions])


def resume(path: Path) -> dict[str, Prediction]:
    """Read an earlier command's predictions by sample id, and prepare the file for appending.

    An incomplete last line is removed.
    """
    rows = read_rows(path)
    _write_rows(path, rows)
    return _by_sample(rows, path.parent)


def read(path: Path) -> dict[str, Prediction]:
    """Read predictions by sample id from a file that another process may be writing."""
    return _by_sample(read_rows(path), path.parent)


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


def write_table(
    path: Path, predictions: Sequence[Prediction], images: Mapping[str, Sequence[str]]
) -> None:
    """Write predictions as a CSV file that spreadsheets open, replacing an existing one.

    Args:
        path: The CSV file, in UTF-8 with a byte-order mark, without which Excel garbles accents.
        predictions: The predictions, one per row.
        images: Paths of the images, by sample id.
    """
    names = dict.fromkeys(n for p in predictions for n in p.payload.get("probabilities", {}))
    file = io.StringIO()
    table = csv.writer(file)
    columns = ["sample_id", "study_id", "image", "prediction", "findings"]
    table.writerow([*columns, *(f"P({name})" for name in names), "warnings"])
    for p in predictions:
        probabilities = p.payload.get("probabilities", {})
        cells = [
            p.sample_id, p.study_id, "; ".join(images.get(p.sample_id, ())), p.prediction,
            "; ".join(p.payload.get("findings", [])),
        ]  # fmt: skip
        cells += [f"{probabilities[n]:.4f}" if n in probabilities else "" for n in names]
        table.writerow([*cells, " ".join(p.warnings)])
    checkpoint.write_text_atomic(path, "\ufeff" + file.getvalue())


def _write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    checkpoint.write_text_atomic(path, text)


def _by_sample(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Prediction]:
    return {row["sample_id"]: Prediction.from_row(row, folder) for row in rows}
