"""Verdicts of a language model on answers: the file next to predictions, and scores from it.

``python -m xraygpt.judge`` asks the model and writes the file; scoring only reads it, so it needs
no network and always gives the same result. A verdict belongs to the texts that were judged: if an
answer changes, its old verdict is no longer found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xraygpt.common.errors import DataError
from xraygpt.metrics.statistics import Score, mean_score, ratio_score, share_of_sums

Kind = Literal["conversation", "green", "crimson", "radfact"]
KINDS: tuple[Kind, ...] = ("conversation", "green", "crimson", "radfact")


@dataclass(frozen=True)
class Question:
    """What a judge is asked about an answer.

    Attributes:
        key: Name of the verdict; see `text_key`.
        sections: Heading -> text, for the prompt.
        example: Id of a sample with this answer.
        source: What the verdict is checked against.
    """

    key: str
    sections: dict[str, str]
    example: str
    source: str = ""


@dataclass(frozen=True)
class Verdicts:
    """The verdicts of one judge in one folder.

    Attributes:
        judge: Name of the model, for signatures.
        values: What the judge said, by `text_key`; None where its answer could not be used.
    """

    judge: str
    values: Mapping[str, Mapping[str, Any] | None]


def verdict_path(folder: Path, kind: Kind) -> Path:
    """Return the file of verdicts in a folder of predictions."""
    return folder / f"verdicts_{kind}.jsonl"


def text_key(kind: Kind, *texts: str) -> str:
    """Return the name of a verdict on these texts."""
    return hashlib.sha256(json.dumps([kind, *texts]).encode()).hexdigest()[:24]


def read_verdicts(folder: Path | None, kind: Kind) -> Verdicts | None:
    """Read the verdicts in a folder; None if there are none.

    Raises:
        DataError: The file is damaged.
    """
    path = None if folder is None else verdict_path(folder, kind)
    if path is None or not path.is_file():
        return None
    values: dict[str, Mapping[str, Any] | None] = {}
    judge = ""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            values[row["key"]], judge = row["verdict"], row["judge"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number} is no verdict ({type(error).__name__}: {error}); write the "
                "file again with python -m xraygpt.judge"
            ) from None
    return Verdicts(judge, values)


def verdict_scores(
    name: str,
    values: Sequence[float | None],
    judge: str,
    groups: Sequence[str],
    unit: str,
) -> list[Score]:
    """Compute the mean of a judge's values, and the share of answers without one.

    Args:
        name: Name of the score.
        values: One for each answer; None where the judge's answer could not be used.
        judge: Name of the judge.
        groups: The study of each answer; intervals resample whole studies.
        unit: The scale, such as "0 to 10".
    """
    counts = np.array([[v or 0.0, v is not None] for v in values], dtype=float).reshape(-1, 2)
    missing = [float(v is None) for v in values]
    scores = [
        ratio_score(name, counts, share_of_sums, f"{unit}, by {judge}", groups),
        mean_score(f"{name}_unusable", missing, f"answers of {judge} that were not usable", groups),
    ]
    return [replace(score, optional=True) for score in scores]
