"""Several models on several tasks: one evaluation for each pair, and one table."""

from __future__ import annotations

import json
import logging
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from xraygpt.common import config as configuration
from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.numbers import decimal, with_interval
from xraygpt.common.registry import did_you_mean
from xraygpt.datasets.base import Split
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.evaluation.conditions import CONDITION_NAMES, OWN_HISTORY, TRUE
from xraygpt.evaluation.evaluator import Control, Evaluator
from xraygpt.experiment import Evaluation, build_evaluator, build_model
from xraygpt.models.base import BaseModel
from xraygpt.tasks.base import BaseTask

log = logging.getLogger(__name__)

NOTICE = "Research use only, not for diagnosis."
CANNOT = "–"
TABLE = "table"
_LOWER_IS_BETTER = ("wrong_side", "missed_", "loss", "bits_per_byte", "ECE", "Brier")


@dataclass(kw_only=True)
class TableTask:
    """A column of the table."""

    task: BaseTask.Config
    """What the models are asked, and how answers are scored."""
    dataset: dict[str, Any] = field(default_factory=dict)
    """Keys of the corpus that differ for this task, such as `{tasks: [detection]}`."""
    scores: list[str] = field(default_factory=list)
    """Scores to print; empty prints the one that decides whether a model reads its images."""
    controls: list[Control] | None = None
    """Controls to run; null runs the task's default controls."""


@dataclass(kw_only=True)
class TableRun:
    """What is the same for all evaluations."""

    output_dir: Path = Path("output/table")
    """Folder for the table and, by model and task, the results of each evaluation."""
    split: Split = "test"
    """Split to evaluate."""
    max_samples: int | None = None
    """Maximum number of samples of each task; null means all."""
    batch_size_eval: int = 16
    """Number of rows decoded at once."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the models that run in this process."""
    shuffles: int = 1
    """Number of seeds of the control with another patient's image."""
    seed: int = 0
    """Seed of sampling and shuffling."""
    page_cases: int = 60
    """Number of cases on each result page."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "max_samples", "batch_size_eval", "shuffles")
            check.at_least(0, "page_cases")


@dataclass(kw_only=True)
class ModelTable:
    """Models × tasks on one corpus."""

    models: dict[str, BaseModel.Config]
    """The models, by the names that the table uses."""
    datasets: dict[str, BaseBuilder.Config]
    """The one corpus on which all models are evaluated."""
    tasks: dict[str, TableTask]
    """The tasks, by the names that the table uses."""
    run: TableRun = field(default_factory=TableRun)
    """What is the same for all evaluations."""
    imports: list[str] = field(default_factory=list)
    """Modules with further plug-ins, which are imported first."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            for name in ("models", "tasks"):
                check.refuse(not getattr(self, name), name, "name at least one")
            one = len(self.datasets) == 1
            check.refuse(not one, "datasets", "the table uses one corpus")

    def evaluation(self, model: str, task: str) -> Evaluation:
        """Return the configuration of one cell."""
        label, corpus = next(iter(self.datasets.items()))
        entry, run = self.tasks[task], self.run
        tree = configuration.to_tree(corpus) | entry.dataset
        where = f"tasks.{task}.dataset"
        changed = configuration.from_tree(BaseBuilder.Config, tree, where)
        return Evaluation(
            model=self.models[model],
            datasets={label: changed},
            run=Evaluator.Config(
                task=entry.task, output_dir=run.output_dir / model / task, split=run.split,
                max_samples=run.max_samples, batch_size_eval=run.batch_size_eval,
                device=run.device, shuffles=run.shuffles, controls=entry.controls, seed=run.seed,
                page_cases=run.page_cases,
            ),
        )  # fmt: skip


@dataclass
class Cell:
    """One model on one task.

    Attributes:
        scores: Rows of scores.json for the true images, by name.
        control: The strongest control by the first score: its condition and value.
        n: Number of samples.
        page: The result page.
        reason: Why there are no scores: the model cannot do the task, or the evaluation failed.
        failed: Whether it failed.
    """

    scores: dict[str, dict[str, Any]] = field(default_factory=dict)
    control: tuple[str, float] | None = None
    n: int = 0
    page: str = ""
    reason: str = ""
    failed: bool = False


Cells = dict[str, dict[str, Cell]]


def evaluate_all(
    settings: ModelTable,
    models: Sequence[str] = (),
    tasks: Sequence[str] = (),
    shard: tuple[int, int] | None = None,
) -> Cells:
    """Evaluate models on tasks; a repeated command continues where an earlier one stopped.

    Args:
        settings: The configuration.
        models: Names of models; empty means all.
        tasks: Names of tasks; empty means all.
        shard: Shard (k, n): answer only every n-th question, and score nothing.

    Returns:
        The cells by model and task. A failed evaluation is a cell with a reason.

    Raises:
        InputError: A name is unknown.
    """
    chosen = _chosen(tasks, settings.tasks, "--tasks")
    experiments = {
        name: {task: settings.evaluation(name, task) for task in chosen}
        for name in _chosen(models, settings.models, "--models")
    }
    return {
        name: _evaluate_model(settings, name, cells, shard) for name, cells in experiments.items()
    }


def _evaluate_model(
    settings: ModelTable,
    name: str,
    experiments: Mapping[str, Evaluation],
    shard: tuple[int, int] | None,
) -> dict[str, Cell]:
    """Evaluate one model, which is built once, on all tasks."""
    try:
        model = build_model(next(iter(experiments.values())), settings.run.seed)
    except XrayGPTError as error:
        log.warning("%s cannot be built: %s", name, error)
        return {task: Cell(reason=str(error), failed=True) for task in experiments}
    model.merge_lora()
    model.keep_answers(settings.run.output_dir / name)
    cells = {}
    try:
        for task, experiment in experiments.items():
            log.info("%s: %s", name, task)
            try:
                cells[task] = _cell(experiment, model, settings.tasks[task], shard)
            except XrayGPTError as error:
                log.warning("%s: %s: %s", name, task, error)
                cells[task] = Cell(reason=str(error), failed=True)
    finally:
        model.close()
    return cells


def _chosen(names: Sequence[str], known: Mapping[str, object], option: str) -> list[str]:
    for name in names:
        if name not in known:
            raise InputError(f"{option} {name}: there is no such name{did_you_mean(name, known)}")
    return [name for name in known if not names or name in names]


def _cell(
    experiment: Evaluation, model: BaseModel, entry: TableTask, shard: tuple[int, int] | None
) -> Cell:
    task = entry.task.build().name
    reason = model.unsupported_reason(task)
    if reason:
        return Cell(reason=reason)
    evaluator = build_evaluator(experiment, model=model)
    if shard is not None:
        return Cell(n=evaluator.answer_shard(*shard))
    result = evaluator.run()
    names = entry.scores or _deciding(evaluator.task, result["scores"])
    page = str(evaluator.folder / "report.html")
    return read_cell(result, names, page)


def _deciding(task: BaseTask, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    known = {row["name"] for row in rows}
    return [next((name for name in task.deciding_scores if name in known), "")]


def read_cell(result: Mapping[str, Any], names: Sequence[str], page: str = "") -> Cell:
    """Return a cell from the content of a scores.json.

    Args:
        result: The content.
        names: Scores to show, the first of which is compared with the controls.
        page: The result page.
    """
    rows = result["scores"]
    true = {row["name"]: row for row in rows if row["condition"] == TRUE}
    others = {
        row["condition"]: row["value"]
        for row in rows
        if row["name"] == names[0] and row["condition"] not in (TRUE, OWN_HISTORY)
    }
    finite = [condition for condition, value in others.items() if not math.isnan(value)]
    strongest = min if names[0].startswith(_LOWER_IS_BETTER) else max
    best = strongest(finite, key=lambda c: others[c], default=None)
    reasons = [_missing(name, result, true) for name in names if name not in true]
    return Cell(
        {name: true[name] for name in names if name in true},
        None if best is None else (best, others[best]),
        result["n"],
        page,
        "; ".join(reasons),
    )


def _missing(name: str, result: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """Return why a score is not among those of an evaluation."""
    if not name:
        return "the deciding score could not be computed"
    reasons = result.get("left_out") or {}
    why = "; ".join(f"{what}: {text}" for what, text in reasons.items() if "control" not in what)
    hint = did_you_mean(name, known)
    return f"there is no score {name}{hint}" + (f" (left out: {why})" if why else "")


def as_markdown(settings: ModelTable, cells: Cells) -> str:
    """Return the table: models are rows, tasks are columns.

    A cell has its first score with its 95 % interval, and below it the strongest control. A dash
    means that the model cannot do the task; the reasons are listed.
    """
    tasks = [task for task in settings.tasks if any(task in row for row in cells.values())]
    lines = [
        f"Split `{settings.run.split}`. {NOTICE}", "", f"| model | {' | '.join(tasks)} |",
        "|---" * (len(tasks) + 1) + "|",
    ]  # fmt: skip
    reasons: dict[tuple[str, str], list[str]] = {}
    for model, row in cells.items():
        shown = []
        for task in tasks:
            cell = row.get(task, Cell(reason="not evaluated"))
            shown.append(_shown(cell))
            if cell.reason:
                text = textwrap.shorten(cell.reason, 240, placeholder=" …")
                reasons.setdefault((model, text), []).append(task)
        lines.append(f"| {model} | {' | '.join(shown)} |")
    notes = [f"- {model}, {', '.join(names)}: {why}" for (model, why), names in reasons.items()]
    lines += ["", "Scores: " + "; ".join(f"{t}: {_names(cells, t)}" for t in tasks) + "."]
    lines.append("Below each score: the strongest control. A model that is not clearly better has "
                 "not shown that it uses the image.")  # fmt: skip
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def _shown(cell: Cell) -> str:
    if not cell.scores:
        return "failed" if cell.failed else "no score" if cell.n else CANNOT
    parts = [with_interval(row) for row in cell.scores.values()]
    if cell.control is not None:
        condition, value = cell.control
        parts.append(f"{CONDITION_NAMES[condition]} {decimal(value)}")
    return "<br>".join(parts)


def _names(cells: Cells, task: str) -> str:
    names = dict.fromkeys(n for row in cells.values() if task in row for n in row[task].scores)
    return ", ".join(names) or "none"


def with_earlier(settings: ModelTable, cells: Cells) -> Cells:
    """Add the cells of an earlier ``table.json`` that were not evaluated this time."""
    path = settings.run.output_dir / f"{TABLE}.json"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        earlier = {
            (row["model"], row["task"]): Cell(
                {score["name"]: score for score in row["scores"]},
                row["strongest_control"] and tuple(row["strongest_control"]),
                row["n"], row["page"], row["reason"], row["failed"],
            )
            for row in rows
        }  # fmt: skip
    except FileNotFoundError:
        return cells
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is not a table of this version (%s) and is replaced", path, error)
        return cells
    merged: Cells = {}
    for model in settings.models:
        for task in settings.tasks:
            cell = cells.get(model, {}).get(task) or earlier.get((model, task))
            if cell is not None:
                merged.setdefault(model, {})[task] = cell
    return merged


def write_table(settings: ModelTable, cells: Cells) -> str:
    """Write ``table.md`` and ``table.json``, and return the table.

    Cells that were not evaluated this time are those of the last table in the folder.
    """
    folder = settings.run.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    cells = with_earlier(settings, cells)
    text = as_markdown(settings, cells)
    write_text_atomic(folder / f"{TABLE}.md", text)
    rows = [
        {
            "model": model, "task": task, "n": cell.n, "page": cell.page, "reason": cell.reason,
            "failed": cell.failed, "scores": list(cell.scores.values()),
            "strongest_control": cell.control,
        }
        for model, row in cells.items()
        for task, cell in row.items()
    ]  # fmt: skip
    write_text_atomic(folder / f"{TABLE}.json", json.dumps(rows, indent=1))
    return text
