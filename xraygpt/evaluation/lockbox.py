"""The count of how often the lockbox split was opened, kept outside the output folders.

Every choice made after looking at scores fits a model to the split they come from. The lockbox
therefore measures a finished model once, and every result states how often it was opened before.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import InputError
from xraygpt.common.paths import cache_root

SPLIT = "lockbox"
RECORD_FILE = "lockbox.json"
"""The opening that a result folder belongs to."""


def count_file() -> Path:
    """Return the file with one JSON line per opening, which deleting results does not change."""
    return cache_root() / "lockbox.jsonl"


@dataclass(frozen=True)
class Opening:
    """One opening of the lockbox.

    Attributes:
        model: Digest of the model's weights.
        signature: The settings of the measurement.
        date: Date and time, in UTC.
        before: Number of earlier openings on this account.
        before_with_model: Number of earlier openings with the same weights.
    """

    model: str
    signature: str
    date: str
    before: int
    before_with_model: int

    def __str__(self) -> str:
        with_model = _times(self.before_with_model)
        return (
            f"The lockbox was opened {_times(self.before)} before ({with_model} with this model). "
            "Scores on it mean nothing for a model that was trained on these "
            "studies, such as xraygpt_mini or a model trained from it."
        )


def _times(count: int) -> str:
    return "1 time" if count == 1 else f"{count} times"


def open_lockbox(model: str | None, signature: str, folder: Path | None = None) -> Opening:
    """Count an opening of the lockbox, unless `folder` continues one.

    Args:
        model: Digest of the model's weights; None if it has no checkpoint.
        signature: The settings of the measurement.
        folder: Result folder, which stores the opening so that repeating an interrupted command
            does not count it again; None counts every call.

    Raises:
        InputError: The count cannot be written.
    """
    path = count_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if folder is not None and (folder / RECORD_FILE).is_file():
                return Opening(**json.loads((folder / RECORD_FILE).read_text(encoding="utf-8")))
            opening = _append_opening(file, model or "no checkpoint", signature)
            if folder is not None:
                write_text_atomic(folder / RECORD_FILE, json.dumps(asdict(opening), indent=1))
    except OSError as error:
        raise InputError(
            f"the lockbox stays closed: its opening cannot be counted in {path}: "
            f"{error.strerror}. Set XRAYGPT_CACHE to a folder that you can write to"
        ) from None
    except (ValueError, TypeError, KeyError):
        raise InputError(
            f"the lockbox stays closed: {path} or {folder}/{RECORD_FILE} is damaged; restore it"
        ) from None
    return opening


def _append_opening(file: TextIO, model: str, signature: str) -> Opening:
    file.seek(0)
    models = [json.loads(line)["model"] for line in file if line.strip()]
    date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    opening = Opening(model, signature, date, len(models), models.count(model))
    row = {name: getattr(opening, name) for name in ("date", "model", "signature")}
    file.write(json.dumps(row) + "\n")
    file.flush()
    return opening


def opening_lines(result: Mapping[str, object]) -> list[str]:
    """Return the sentence about the opening of the lockbox in scores.json, or an empty list."""
    row = result.get("lockbox")
    return [str(Opening(**row))] if isinstance(row, dict) else []
