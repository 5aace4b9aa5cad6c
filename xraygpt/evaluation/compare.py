"""Paired comparison of two prediction files by the scores of their task."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.scoring import FITTED_STATE_FILE, build_task
from xraygpt.metrics.paired import PERMUTATIONS, Difference, paired_difference
from xraygpt.metrics.statistics import Score
from xraygpt.tasks.base import BaseTask, Prediction

log = logging.getLogger(__name__)

DEFAULT_TASK = {"name": "report_generation"}  # for files that name no task


def compare(first: Path, second: Path, *, permutations: int = PERMUTATIONS) -> list[Difference]:
    """Compare every score that both prediction files have.

    Args:
        first: A prediction file, or the folder of an evaluation.
        second: The file or folder to compare with `first`.
        permutations: Number of random assignments in the randomisation test.

    Raises:
        InputError: The files are from different tasks, have no sample in common, or have different
            references for the same sample.
    """
    files = _prediction_file(first), _prediction_file(second)
    predictions = _read_predictions(files[0]), _read_predictions(files[1])
    common = _common_samples(files, predictions)
    task = _load_task(files)
    first_scores, second_scores = (
        {s.name: s for s in task.score([rows[i] for i in common])} for rows in predictions
    )
    return [
        paired_difference(score, second_scores[name], permutations=permutations)
        for name, score in first_scores.items()
        if name in second_scores and _is_defined(score) and _is_defined(second_scores[name])
    ]


def _is_defined(score: Score) -> bool:
    return bool(score.n and np.isfinite(score.value))


def _common_samples(
    files: tuple[Path, Path], predictions: tuple[Mapping[str, Prediction], ...]
) -> list[str]:
    """Return the ids of the samples that are in both files."""
    first, second = predictions
    common = [i for i in first if i in second]
    if not common:
        raise InputError(f"{files[0]} and {files[1]} have no samples in common")
    single = len(first) + len(second) - 2 * len(common)
    if single:
        log.warning("%d samples are in only one of the files and are ignored", single)
    different = [i for i in common if first[i].reference != second[i].reference]
    if different:
        raise InputError(
            f"{len(different)} samples have different references in the two files (first: "
            f"{different[0]}); compare evaluations of the same corpus, sections and text processor"
        )
    return common


def _load_task(files: tuple[Path, Path]) -> BaseTask:
    """Load the task of the first file, with its fitted state if there is one."""
    tree, other = (_task_tree(file) for file in files)
    if tree["name"] != other["name"]:
        raise InputError(
            f"{files[0]} and {files[1]} are from different tasks ({tree['name']}, "
            f"{other['name']}); compare predictions of the same task"
        )
    task = build_task(tree)
    state_file = files[0].parent / FITTED_STATE_FILE
    if state_file.is_file():
        task.load_fitted_state(json.loads(state_file.read_text(encoding="utf-8")))
    task.go_offline()
    return task


def _prediction_file(path: Path) -> Path:
    return path / "predictions_true.jsonl" if path.is_dir() else path


def _task_tree(file: Path) -> dict[str, Any]:
    """Read the settings of the task."""
    task = prediction_file.read_settings(file).get("identity", {}).get("task") or DEFAULT_TASK
    return {"name": task} if isinstance(task, str) else dict(task)


def _read_predictions(file: Path) -> dict[str, Prediction]:
    """Read predictions by sample id, skipping lines without a prediction, such as old headings."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: {error}") from None
    predictions = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            if "prediction" in row:
                fields = {"meta": {}, "prompt": "", "seed": 0, **row}
                predictions[row["sample_id"]] = Prediction.from_row(fields, file.parent)
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: not a prediction ({error})") from None
    if not predictions:
        raise InputError(f"{file} contains no predictions")
    return predictions
