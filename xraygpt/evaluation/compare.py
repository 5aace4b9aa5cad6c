"""Two files of predictions compared by the scores of their own task."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.evaluation.scoring import LEARNED, task_of
from xraygpt.metrics.paired import TOSSES, Difference, paired
from xraygpt.tasks.base import Prediction

log = logging.getLogger(__name__)

DEFAULT_TASK = {"name": "report_generation"}  # of files that do not say


def compare(first: Path, second: Path, *, tosses: int = TOSSES) -> list[Difference]:
    """Every score of two files of predictions, in pairs.

    Args:
        first: A file, or the folder of an evaluation.
        second: Likewise.
        tosses: Assignments drawn for the randomisation test.

    Raises:
        InputError: They are of two tasks, have no sample in common, or other references for the
            same sample.
    """
    first, second = _file(first), _file(second)
    one, two = _read(first), _read(second)
    common = [i for i in one if i in two]
    if not common:
        raise InputError(f"{first} and {second} have no sample in common")
    left = len(one) + len(two) - 2 * len(common)
    if left:
        log.warning("%d samples stand in one file only and are left out", left)
    other = [i for i in common if one[i].reference != two[i].reference]
    if other:
        raise InputError(
            f"{len(other)} samples have another reference in the other file (first: {other[0]}); "
            "compare evaluations of the same corpus, sections and text processor"
        )
    trees = _task(first), _task(second)
    if trees[0]["name"] != trees[1]["name"]:
        raise InputError(
            f"{first} and {second} are of two tasks ({trees[0]['name']}, {trees[1]['name']}); "
            "compare those of one"
        )
    task = task_of(trees[0])
    fitted = first.parent / LEARNED
    if fitted.is_file():
        task.load_state(json.loads(fitted.read_text(encoding="utf-8")))
    task.go_offline()
    named = [{s.name: s for s in task.score([rows[i] for i in common])} for rows in (one, two)]
    both = [n for n in named[0] if n in named[1]]
    defined = [n for n in both if all(one[n].n and np.isfinite(one[n].value) for one in named)]
    return [paired(*(one[n] for one in named), tosses=tosses) for n in defined]


def _file(path: Path) -> Path:
    return path / "predictions_true.jsonl" if path.is_dir() else path


def _task(file: Path) -> dict[str, Any]:
    """Settings of the task in the first line; reports if that does not say."""
    with file.open(encoding="utf-8") as lines:
        heading = json.loads(next(lines))
    task = heading.get("identity", {}).get("task") or DEFAULT_TASK
    return {"name": task} if isinstance(task, str) else dict(task)


def _read(file: Path) -> dict[str, Prediction]:
    """Predictions by sample; the first line is the run's."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if "prediction" in row:
                plain = {"meta": {}, "prompt": "", "seed": 0, **row}
                found[row["sample_id"]] = Prediction(**plain, folder=file.parent)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: no prediction ({error})") from None
    if not found:
        raise InputError(f"{file}: holds no predictions")
    return found
