"""Reproducible scoring of stored predictions, without the model or the images.

The folder of an evaluation contains ``settings.json``, ``predictions_<condition>.jsonl`` and
``scoring.json`` (what the task computed from the training answers). `score_folder` needs only these
files.
"""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xraygpt.common import checkpoint
from xraygpt.common.config import from_tree
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.conditions import (
    CONDITIONS,
    FROM_TRAINING,
    OWN_HISTORY,
    TRUE,
    condition_of,
)
from xraygpt.evaluation.score_table import as_markdown
from xraygpt.evaluation.verdict import judge
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.runners import logs
from xraygpt.tasks.base import BaseTask, Prediction

log = logging.getLogger(__name__)

FITTED_STATE_FILE = "scoring.json"


def score_rows(
    task: BaseTask, predictions: Mapping[str, Sequence[Prediction]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Compute every score of every condition, averaged over seeds.

    Args:
        task: Task that computes the scores.
        predictions: Predictions by condition, ``true`` first; the seeds of a control are named
            ``shuffled-0`` and so on.

    Returns:
        Rows of scores.json, in which `true_minus` is the paired difference between the true images
        and a control; and reasons, by name, for skipped scores.
    """
    groups: dict[str, list[list[Score]]] = {}
    left_out: dict[str, str] = {}
    for name, condition_predictions in predictions.items():
        scores = task.score(condition_predictions)
        groups.setdefault(condition_of(name), []).append(scores)
        if condition_of(name) not in FROM_TRAINING:  # these may lack probabilities
            left_out = task.left_out | left_out  # what is said of the true images comes first
    names = _common_names(groups, left_out)
    optional = tuple(s.name for s in groups[TRUE][0] if s.optional)
    left_out = {
        name: why
        for name, why in left_out.items()
        if not any(score.startswith(name) for score in optional)
    }
    by_name = {c: [{s.name: s for s in seed} for seed in seeds] for c, seeds in groups.items()}
    rows = [
        _score_row(condition, by_name[TRUE][0][name], [seed[name] for seed in seeds])
        for condition, seeds in by_name.items()
        for name in names
        if all(name in seed for seed in seeds)
    ]
    return rows, left_out


def answers_changed(predictions: Mapping[str, Sequence[Prediction]]) -> dict[str, float]:
    """Return the share of answers that differ from those to the true images, by control.

    The literature calls it image sensitivity (Zafar et al. 2026, arXiv:2603.03437). Several seeds
    of a control are averaged.

    Args:
        predictions: Predictions by condition, as for `score_rows`.
    """
    true = {p.sample_id: _answer(p) for p in predictions[TRUE]}
    shares: dict[str, list[float]] = {}
    for name, rows in predictions.items():
        condition = condition_of(name)
        if condition not in (TRUE, OWN_HISTORY, *FROM_TRAINING) and rows:
            changed = [_answer(p) != true[p.sample_id] for p in rows if p.sample_id in true]
            shares.setdefault(condition, []).append(sum(changed) / max(len(changed), 1))
    return {condition: sum(each) / len(each) for condition, each in shares.items()}


def _answer(prediction: Prediction) -> Any:
    payload, text = prediction.payload, prediction.prediction
    if "probabilities" in payload and text:  # such as "yes 0.873"
        text = text.split(" ")[0]
    return text, [box["box"] for box in payload.get("boxes", ())], payload.get("mask")


def _score_row(condition: str, true: Score, scores: Sequence[Score]) -> dict[str, Any]:
    """Return the row for one score of one condition, averaged over seeds."""
    weight = 1 / len(scores)
    mean = weighted_sum([(weight, s) for s in scores])
    row = {**mean.as_row(), "condition": condition, "seeds": len(scores)}
    if condition != TRUE:
        gap = weighted_sum([(1.0, true), *((-weight, s) for s in scores)])
        row["true_minus"] = {k: gap.as_row()[k] for k in ("value", "low", "high")}
    return row


def _common_names(groups: Mapping[str, list[list[Score]]], left_out: dict[str, str]) -> list[str]:
    """Return the names of the scores that every condition has; add the others to `left_out`.

    All conditions have the same references and therefore the same scores, unless a judge or a
    labeller fails on one of them. Answers that are copied from the training split may lack scores
    of probabilities, and optional scores are kept for the conditions that have them.
    """
    required = {c: seeds for c, seeds in groups.items() if c not in FROM_TRAINING}
    name_sets = [{s.name for s in seed} for seeds in required.values() for seed in seeds]
    optional = {s.name for s in groups[TRUE][0] if s.optional}
    names = [s.name for s in groups[TRUE][0]]
    for name in set().union(*name_sets) - name_sets[0].intersection(*name_sets) - optional:
        left_out.setdefault(name, "it could not be computed for every condition")
    return [n for n in names if n in optional or all(n in name_set for name_set in name_sets)]


def write_fitted_state(folder: Path, task: BaseTask) -> None:
    """Save what scoring needs from the training answers next to the predictions."""
    text = json.dumps(task.fitted_state(), indent=1)
    checkpoint.write_text_atomic(folder / FITTED_STATE_FILE, text)


def write_scores(folder: Path, result: Mapping[str, Any]) -> None:
    """Write ``scores.json`` and ``scores.md``."""
    checkpoint.write_text_atomic(folder / "scores.json", json.dumps(result, indent=1))
    text = f"{verdict_text(result)}\n\n{as_markdown(result)}"
    checkpoint.write_text_atomic(folder / "scores.md", text)


def verdict_text(result: Mapping[str, Any]) -> str:
    """Return the verdict of a scores.json as one paragraph."""
    return " ".join(result["verdict"]["sentences"])


def score_folder(folder: Path) -> dict[str, Any]:
    """Recompute the scores for an evaluation's predictions, even if it was interrupted.

    Args:
        folder: Result folder of `evaluate.py`. Its ``scores.json`` and ``scores.md`` are replaced,
            except for the losses, which need the model.

    Raises:
        InputError: The folder has no valid predictions.
    """
    files = _prediction_files(folder)
    settings = prediction_file.read_settings(files[TRUE])
    identity = settings.get("identity", {})
    if "task" not in identity:
        raise InputError(
            f"{folder} has no {prediction_file.SETTINGS_FILE} that says which task the predictions "
            "are from; repeat the evaluate.py command, which writes it"
        )
    task = build_task(identity["task"])
    if not (folder / FITTED_STATE_FILE).is_file():
        raise InputError(
            f"{folder} has no {FITTED_STATE_FILE}; repeat the evaluate.py command, which writes it"
        )
    task.load_fitted_state(json.loads((folder / FITTED_STATE_FILE).read_text(encoding="utf-8")))
    task.go_offline()
    predictions = {name: _read_predictions(file) for name, file in files.items()}
    predictions = _common_samples(_without_interrupted(predictions, folder), folder)
    rows, left_out = score_rows(task, predictions)
    path = folder / "scores.json"
    previous = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    previous_left_out = previous.get("left_out", {})
    result = {
        "signature": settings.get("signature"),
        "identity": identity,
        "split": identity.get("split", ""),
        "losses": [],
        **previous,
        "versions": logs.versions(),
        "n": len(predictions[TRUE]),
        "scores": rows,
        "answers_changed": answers_changed(predictions),
        "left_out": {
            **{
                k: v
                for k, v in previous_left_out.items()
                if k == "loss" or k.startswith("control ")
            },
            **left_out,
        },
        "studies": len({prediction.study_id for prediction in predictions[TRUE]}),
    }
    result["verdict"] = judge(task, result).as_row()
    write_scores(folder, result)
    return result


def write_rexrank(folder: Path) -> list[Path]:
    """Write the two files of ReXrank's evaluation: references and answers by study.

    ReXrank evaluates studies; of several samples of a study, the first counts.

    Args:
        folder: Result folder of `evaluate.py`.

    Returns:
        ``gt_reports.csv`` and ``predicted_reports.csv``, with the columns study_id and report.

    Raises:
        InputError: The folder has no predictions.
    """
    first: dict[str, Prediction] = {}
    for prediction in _read_predictions(_prediction_files(folder)[TRUE]):
        first.setdefault(prediction.study_id, prediction)
    paths = []
    for name, text_of in (
        ("gt_reports.csv", lambda p: p.reference), ("predicted_reports.csv", lambda p: p.prediction)
    ):  # fmt: skip
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(("study_id", "report"))
        writer.writerows((study, text_of(p)) for study, p in first.items())
        checkpoint.write_text_atomic(folder / name, buffer.getvalue())
        paths.append(folder / name)
    return paths


def _prediction_files(folder: Path) -> dict[str, Path]:
    """Return the prediction files in the order of the conditions, without those of shards.

    Raises:
        InputError: There is no prediction file for the true images.
    """
    files = {f.stem.removeprefix("predictions_"): f for f in folder.glob("predictions_*.jsonl")}
    names = [n for n in files if "-of-" not in n and condition_of(n) in CONDITIONS]
    names.sort(key=lambda n: (CONDITIONS.index(condition_of(n)), n))
    if TRUE not in names:
        raise InputError(
            f"{folder} has no predictions_true.jsonl; give the folder that evaluate.py printed"
        )
    return {name: files[name] for name in names}


def _without_interrupted(
    predictions: Mapping[str, list[Prediction]], folder: Path
) -> dict[str, list[Prediction]]:
    """Return predictions without the conditions that have fewer than half of the answers.

    Raises:
        InputError: The true images have fewer than half of the answers.
    """
    longest = max(len(rows) for rows in predictions.values())
    interrupted = [n for n, rows in predictions.items() if 2 * len(rows) < longest]
    for name in interrupted:
        log.warning(
            "%s has only %d of %d answers and is skipped", name, len(predictions[name]), longest
        )
    if TRUE in interrupted:
        raise InputError(
            f"{folder} has too few answers for the true images; repeat the evaluate.py command"
        )
    return {name: rows for name, rows in predictions.items() if name not in interrupted}


def _common_samples(
    predictions: Mapping[str, list[Prediction]], folder: Path
) -> dict[str, list[Prediction]]:
    """Return the predictions for samples that every condition has, in the same order.

    Raises:
        InputError: No sample has a prediction in every condition.
    """
    common = set.intersection(*({p.sample_id for p in rows} for rows in predictions.values()))
    total = max(len(rows) for rows in predictions.values())
    if len(common) < total:
        log.warning("%d of %d samples have an answer in every condition", len(common), total)
    if not common:
        raise InputError(f"{folder}: no sample has an answer in every condition; evaluate first")
    order = [p.sample_id for p in predictions[TRUE] if p.sample_id in common]
    by_id = {name: {p.sample_id: p for p in rows} for name, rows in predictions.items()}
    return {name: [rows[i] for i in order] for name, rows in by_id.items()}


def build_task(tree: Any) -> BaseTask:
    """Build the task of a prediction file from its settings.

    Raises:
        ConfigError: The task or one of its settings is unknown to this version.
    """
    try:
        task: BaseTask = from_tree(BaseTask.Config, tree, "run.task").build()
    except ConfigError as error:
        if any("unknown task" in problem for problem in error.problems):
            hint = "if the task is a plug-in, give its module with --imports my_pkg.my_module"
            raise ConfigError("the prediction file", [*error.problems, hint]) from None
        raise
    return task


def _read_predictions(file: Path) -> list[Prediction]:
    try:
        rows = prediction_file.read_rows(file)
        return [Prediction.from_row(row, file.parent) for row in rows]
    except (TypeError, ValueError) as error:
        raise InputError(f"{file}: a line is not a prediction ({error})") from None
