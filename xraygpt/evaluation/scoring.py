"""From stored predictions to scores: no model, no image, the same numbers whenever it is run.

The folder of an evaluation holds ``predictions_<condition>.jsonl`` (first line: whose they are) and
``scoring.json`` (what the task took from the training answers). `score_folder` needs no more.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from xraygpt.common import checkpoint
from xraygpt.common.config import from_tree
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.metrics.statistics import Score, weighted_sum
from xraygpt.runners import logs
from xraygpt.tasks.base import BaseTask, Prediction

log = logging.getLogger(__name__)

TRUE, SHUFFLED, BLANK, COMMON, NEAREST = "true", "shuffled", "blank", "most_common", "nearest"
MIRRORED = "mirrored"
CONDITIONS = (TRUE, SHUFFLED, BLANK, MIRRORED, COMMON, NEAREST)  # in the order of tables
LEARNED = "scoring.json"
# Columns of papers on IU X-ray, and of the leaderboard ReXrank; what was not taken has a dash.
COLUMNS = {
    "As papers have it": (
        "COCO BLEU-1", "COCO BLEU-2", "COCO BLEU-3", "COCO BLEU-4", "METEOR", "COCO ROUGE-L",
        "CIDEr-D", "frequent_coding_micro_F1", "frequent_coding_macro_F1", "distinct",
    ),
    "As ReXrank has it": (
        "1/RadCliQ-v1", "BLEU-2", "BERTScore_F1", "SembScore", "RadGraph_partial",
        "RaTEScore", "GREEN",
    ),
}  # fmt: skip


def score_rows(
    task: BaseTask, predictions: Mapping[str, Sequence[Prediction]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every score of every condition, those of several seeds averaged.

    Args:
        task: Scores; knows what it took from the training answers.
        predictions: By condition, those of a seed as ``shuffled-0``; ``true`` is the first.

    Returns:
        Rows, where a control's holds as `true_minus` how far the true image is above it, paired;
        and by name why a score was left out.
    """
    groups: dict[str, list[list[Score]]] = {}
    left_out: dict[str, str] = {}
    for name, said in predictions.items():
        groups.setdefault(name.split("-")[0], []).append(task.score(said))
        left_out |= task.left_out
    kept = _everywhere(groups, left_out)
    groups = {c: [[s[n] for n in kept] for s in several] for c, several in _named(groups).items()}
    rows = []
    for condition, several in groups.items():
        weight = 1 / len(several)
        for true, *same in zip(*groups[TRUE], *several, strict=True):
            mean = weighted_sum([(weight, s) for s in same])
            row = {**mean.as_row(), "condition": condition, "seeds": len(same)}
            if condition != TRUE:
                ahead = weighted_sum([(1.0, true), *((-weight, s) for s in same)])
                row["true_minus"] = {k: ahead.as_row()[k] for k in ("value", "low", "high")}
            rows.append(row)
    return rows, left_out


def _named(groups: Mapping[str, list[list[Score]]]) -> dict[str, list[dict[str, Score]]]:
    return {c: [{s.name: s for s in one} for one in several] for c, several in groups.items()}


def _everywhere(groups: Mapping[str, list[list[Score]]], left_out: dict[str, str]) -> list[str]:
    """Names of the scores that every condition has; the others are left out, with the reason.

    A finding may have a line in one condition alone only if its truth differs, which it never does;
    but a judge or a labeller may fail on one of them.
    """
    each: list[set[str]] = [{s.name for s in one} for v in groups.values() for one in v]
    names = [s.name for s in groups[TRUE][0]]
    for name in set().union(*each) - each[0].intersection(*each):
        left_out.setdefault(name, "it could not be taken in every condition")
    return [n for n in names if all(n in one for one in each)]


def write_fitted(folder: Path, task: BaseTask) -> None:
    """Beside the predictions, what scoring needs of the training answers."""
    checkpoint.write_file(folder / LEARNED, json.dumps(task.fitted(), indent=1))


def score_folder(folder: Path) -> dict[str, Any]:
    """Scores of the predictions of an evaluation, anew; also of one that was stopped half-way.

    Args:
        folder: What `evaluate.py` made. Its ``scores.json`` and ``scores.md`` are replaced; losses,
            which only a model can give, are kept.

    Raises:
        InputError: No predictions, or not what evaluation writes.
    """
    found = {f.stem.removeprefix("predictions_"): f for f in folder.glob("predictions_*.jsonl")}
    found = {name: file for name, file in found.items() if "-of-" not in name}  # of shares
    known_names = [n for n in found if n.split("-")[0] in CONDITIONS]
    names = sorted(known_names, key=lambda n: (CONDITIONS.index(n.split("-")[0]), n))
    if TRUE not in names:
        raise InputError(
            f"{folder}: no predictions_true.jsonl; name the folder that evaluate.py printed"
        )
    heading, *_ = logs.read_rows(found[TRUE]) or [{}]
    identity = heading.get("identity", {})
    if "task" not in identity:
        raise InputError(f"{found[TRUE]}: its first line does not say which task it is of")
    task = task_of(identity["task"])
    if not (folder / LEARNED).is_file():
        raise InputError(f"{folder}: no {LEARNED}; let evaluate.py go on, which writes it")
    task.load_state(json.loads((folder / LEARNED).read_text(encoding="utf-8")))
    task.go_offline()
    predictions = {name: _read(found[name]) for name in names}
    longest = max(len(said) for said in predictions.values())
    stopped = [n for n, said in predictions.items() if 2 * len(said) < longest]
    for name in stopped:
        log.warning("%s has %d of %d answers: left out", name, len(predictions[name]), longest)
        del predictions[name]
    if TRUE in stopped:
        raise InputError(f"{folder}: hardly any answer to the true images; let evaluate.py go on")
    kept = set.intersection(*({p.sample_id for p in said} for said in predictions.values()))
    total = max(len(said) for said in predictions.values())
    if len(kept) < total:
        log.warning("%d of %d samples have an answer in every condition", len(kept), total)
    if not kept:
        raise InputError(f"{folder}: no sample has an answer in every condition; evaluate first")
    order = [p.sample_id for p in predictions[TRUE] if p.sample_id in kept]
    for name, said in predictions.items():
        by_id = {p.sample_id: p for p in said}
        predictions[name] = [by_id[i] for i in order]
    rows, left_out = score_rows(task, predictions)
    before = folder / "scores.json"
    known = json.loads(before.read_text(encoding="utf-8")) if before.is_file() else {}
    result = {
        "signature": heading.get("signature"),
        "identity": identity,
        "split": identity.get("split", ""),
        "losses": [],
        **known,
        "versions": logs.versions(),
        "n": len(order),
        "scores": rows,
        "left_out": {
            **{k: v for k, v in known.get("left_out", {}).items() if k.startswith("control ")},
            **left_out,
        },
    }
    write_scores(folder, result)
    return result


def task_of(tree: Any) -> BaseTask:
    """The task that made predictions, by its settings in their first line.

    Raises:
        ConfigError: This version does not know it, or one of its settings.
    """
    try:
        task: BaseTask = from_tree(BaseTask.Config, tree, "run.task").build()
    except ConfigError as error:
        if any("unknown task" in problem for problem in error.problems):
            hint = "if the task is a plug-in, name its module: --imports my_pkg.my_module"
            raise ConfigError("the file of predictions", [*error.problems, hint]) from None
        raise
    return task


def write_scores(folder: Path, result: Mapping[str, Any]) -> None:
    """``scores.json`` and ``scores.md``."""
    checkpoint.write_file(folder / "scores.json", json.dumps(result, indent=1))
    checkpoint.write_file(folder / "scores.md", as_markdown(result))


def _read(file: Path) -> list[Prediction]:
    try:
        return [Prediction(**row, folder=file.parent) for row in logs.read_rows(file)[1:]]
    except TypeError as error:
        raise InputError(f"{file}: a line is no prediction ({error})") from None


def as_markdown(result: Mapping[str, Any]) -> str:
    """The scores as a table, one column per condition."""
    lines = [
        f"Split `{result['split']}`, n = {result['n']}. Research use only, not for diagnosis.",
        "",
    ]
    if result["losses"]:
        lines += ["| loss | value | 95 % interval | n |", "|---|---|---|---|"]
    for row in result["losses"]:
        interval = f"{row['low']:.4f} … {row['high']:.4f}"
        lines.append(f"| {row['name']} | {row['value']:.4f} | {interval} | {row['n']} |")
    conditions = list(dict.fromkeys(r["condition"] for r in result["scores"]))
    if not conditions:
        return "\n".join(lines) + "\n"
    cells: dict[str, dict[str, dict[str, Any]]] = {}
    for row in result["scores"]:
        cells.setdefault(row["name"], {})[row["condition"]] = row
    lines += _table(conditions, cells, lambda row: row)
    for title, columns in COLUMNS.items():
        if any(c in cells for c in columns[:2]):
            lines += ["", f"{title}:", *_across(conditions, cells, columns)]
    if others := [c for c in conditions if c != TRUE]:
        lines += ["", "True image minus each control, paired:"]
        lines += _table(others, cells, lambda row: row["true_minus"])
    if result.get("left_out"):
        lines += ["", "Left out:", ""]
        lines += [f"- {name}: {why}" for name, why in result["left_out"].items()]
    return "\n".join(lines) + "\n"


def _table(
    conditions: Sequence[str],
    cells: dict[str, dict[str, dict[str, Any]]],
    shown: Callable[[dict[str, Any]], dict[str, float]],
) -> list[str]:
    """One line a metric, one column a condition."""
    lines = ["", "| metric | " + " | ".join(conditions) + " | n |"]
    lines.append("|---" * (len(conditions) + 2) + "|")
    for name, by in cells.items():
        row = [_cell(shown(by[c])) if c in by else "" for c in conditions]
        lines.append(f"| {name} | {' | '.join(row)} | {next(iter(by.values()))['n']} |")
    return lines


def _across(
    conditions: Sequence[str], cells: dict[str, dict[str, dict[str, Any]]], columns: Sequence[str]
) -> list[str]:
    """One line a condition, one column a metric."""
    lines = ["", "| condition | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for condition in conditions:
        found = [cells.get(name, {}).get(condition) for name in columns]
        row = ["–" if one is None else f"{one['value']:.3f}" for one in found]
        lines.append(f"| {condition} | {' | '.join(row)} |")
    return lines


def _cell(row: dict[str, float]) -> str:
    return f"{row['value']:.3f} ({row['low']:.3f} … {row['high']:.3f})"
