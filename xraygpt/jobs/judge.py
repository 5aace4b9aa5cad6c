"""The work behind `python -m xraygpt.judge`: verdicts on the answers in a result folder."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import InputError
from xraygpt.curation.llm.cost import estimate_run
from xraygpt.curation.llm.items import Item, item_key
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.ledger_rows import DONE
from xraygpt.curation.llm.privacy import Licensed, check_privacy
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.pipeline import Unfinished, request_answers
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.conditions import CONDITIONS, FROM_TRAINING, condition_of
from xraygpt.evaluation.scoring import build_task
from xraygpt.instructions.records import SYNTHETIC
from xraygpt.judging.verdict_forms import stored_verdict
from xraygpt.metrics.verdicts import Kind, Question, read_verdicts, verdict_path
from xraygpt.tasks.base import Prediction

log = logging.getLogger(__name__)

NOTICE = "Research use only, not for diagnosis."
_FINAL = (DONE, "invalid", "refused", "failed")


@dataclass
class Judged:
    """The result of a run.

    Attributes:
        verdicts: Number of accepted verdicts.
        unusable: Sample and reason of each answer of the judge that could not be used.
        calls: Number of calls in this run.
    """

    verdicts: int
    unusable: list[tuple[str, str]]
    calls: int = 0


def judge(
    kind: Kind,
    folder: Path,
    conditions: Sequence[str],
    settings: RewriteSettings,
    public: bool,
) -> Judged:
    """Have the answers in a result folder judged, and write the verdicts into it.

    Args:
        kind: The judge.
        folder: Result folder of an evaluation.
        conditions: Conditions to judge; empty means all that a model answered.
        settings: The language model; its task is that of the judge.
        public: Whether the user states that all texts are public.

    Raises:
        InputError: The folder has no such answers, or the texts may not be sent to the endpoint.
        Unfinished: The run was stopped; finished verdicts are kept, and the next run continues.
    """
    predictions = _read(folder, conditions)
    _check_privacy(folder, predictions, settings, public)
    questions = questions_for(kind, folder, predictions)
    others = questions_for(kind, folder, _read(folder, ())) if conditions else []
    return ask(kind, questions, folder, settings, keep={question.key for question in others})


def ask(
    kind: Kind,
    questions: Sequence[Question],
    out: Path,
    settings: RewriteSettings,
    keep: Collection[str] = (),
) -> Judged:
    """Ask a judge, and write its verdicts.

    Args:
        kind: The judge.
        questions: Questions with different keys.
        out: Folder for verdicts and the ledger; an earlier run is continued.
        settings: The language model.
        keep: Keys of questions that are not asked now, but whose verdicts by the same judge stay.

    Raises:
        InputError: The endpoint's key is missing.
        Unfinished: The run was stopped; finished verdicts are kept, and the next run continues.
    """
    settings.endpoint.create_sdk_client(settings.retry_policy.timeout)  # reports a missing key
    out.mkdir(parents=True, exist_ok=True)
    items = [_item(question, settings) for question in questions]
    with Ledger(out) as ledger:
        result = request_answers(items, settings, ledger)
        rows = ledger.rows([item.key for item in items])
    lines, unusable, open_items = [], [], 0
    for item, question in zip(items, questions, strict=True):
        row = rows[item.key]
        if row.state not in _FINAL:
            open_items += 1
            continue
        verdict = (
            stored_verdict(kind, json.loads(row.answer or "{}")) if row.state == DONE else None
        )
        if verdict is None:
            unusable.append((question.example, f"{row.state}: {row.reason}"))
        lines.append(
            json.dumps({"key": question.key, "judge": settings.endpoint.model, "verdict": verdict})
        )
    if open_items and not settings.partial:
        reason = (result.stop_reason or "not finished").rstrip(".")
        raise Unfinished(
            f"{reason}. {len(lines)} of {len(items)} verdicts are saved in {out}; run the same "
            "command again to continue",
            result.exit_code or 1,
        )
    judge_name, asked = settings.endpoint.model, {question.key for question in questions}
    earlier = read_verdicts(out, kind) if keep else None
    if earlier is not None and earlier.judge == judge_name:
        lines += [
            json.dumps({"key": key, "judge": judge_name, "verdict": verdict})
            for key, verdict in earlier.values.items()
            if key in keep and key not in asked
        ]
    write_text_atomic(verdict_path(out, kind), "".join(f"{line}\n" for line in lines))
    _write_unusable(out / f"unusable_{kind}.csv", unusable)
    return Judged(len(items) - open_items - len(unusable), unusable, result.calls)


def estimate(
    kind: Kind,
    folder: Path,
    conditions: Sequence[str],
    settings: RewriteSettings,
    public: bool,
    sample: int,
) -> str:
    """Return the estimated tokens, time and cost, without any call; see `judge`."""
    predictions = _read(folder, conditions)
    privacy = _check_privacy(folder, predictions, settings, public)
    items = [_item(q, settings) for q in questions_for(kind, folder, predictions)]
    return f"{estimate_run(items, settings, folder, sample)}\n  privacy  would be {privacy}"


def _item(question: Question, settings: RewriteSettings) -> Item:
    key = item_key(
        settings.endpoint, settings.task, settings.prompt, question.key, question.sections
    )
    return Item(key, question.key, question.sections, question.source)


def _read(folder: Path, conditions: Sequence[str]) -> dict[str, list[Prediction]]:
    """Return the predictions of the conditions.

    Raises:
        InputError: There are none.
    """
    found: dict[str, list[Prediction]] = {}
    for path in sorted(folder.glob("predictions_*.jsonl")):
        name = path.stem.removeprefix("predictions_")
        condition = condition_of(name)
        if "-of-" in name or condition not in CONDITIONS or condition in FROM_TRAINING:
            continue
        if not conditions or name in conditions or condition in conditions:
            rows = prediction_file.read_rows(path)
            found[name] = [Prediction.from_row(row, folder) for row in rows]
    if not any(found.values()):
        asked = f" of {', '.join(conditions)}" if conditions else ""
        raise InputError(
            f"{folder} has no answers{asked}; give the folder that evaluate.py printed"
        )
    return found


def _check_privacy(
    folder: Path,
    predictions: dict[str, list[Prediction]],
    settings: RewriteSettings,
    public: bool,
) -> str:
    """Check that the texts may be sent; unless stated otherwise, only phantoms are public."""
    synthetic = all(
        str(p.meta.get("source", "")).startswith(SYNTHETIC)
        for group in predictions.values()
        for p in group
    )
    access = "public" if public or synthetic else "credentialed"
    return check_texts(folder, access == "public", settings)


def check_texts(source: Path, public: bool, settings: RewriteSettings) -> str:
    """Check that texts may be sent to the endpoint, and return the decision.

    Raises:
        InputError: They may not.
    """
    access = "public" if public else "credentialed"
    corpus = Licensed(f"what {source.name} contains (without --public-data)", access)
    return check_privacy(corpus, settings.endpoint, settings.agreement, settings.batch)


# ---- What is asked -------------------------------------------------------------------------------


def questions_for(
    kind: Kind, folder: Path, predictions: dict[str, list[Prediction]]
) -> list[Question]:
    """Return the questions for a judge; equal answers of several conditions are asked once.

    Raises:
        InputError: The judge does not suit the task of the folder.
    """
    settings = prediction_file.read_settings(next(iter(folder.glob("predictions_*.jsonl"))))
    task = build_task(settings.get("identity", {}).get("task"))
    if kind not in task.judges:
        suited = f"{', '.join(task.judges)}" if task.judges else "none"
        raise InputError(f"judges of the task {task.name} are: {suited}; not {kind}")
    distinct: dict[str, Question] = {}
    for group in predictions.values():
        for question in task.judge_questions(kind, group):
            distinct.setdefault(question.key, question)
    if not distinct:
        raise InputError(f"{folder}: there is nothing for the judge {kind} to judge")
    return list(distinct.values())


def _write_unusable(path: Path, rows: Sequence[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([("sample_id", "reason"), *rows])
    write_text_atomic(path, buffer.getvalue())
