"""The result page of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xraygpt.datasets.base import StudyDataset
from xraygpt.datasets.leakage import Leakage
from xraygpt.evaluation import result_page
from xraygpt.evaluation.case_selection import select_cases
from xraygpt.evaluation.conditions import BLANK, MIRRORED, SHUFFLED, TRUE, condition_of
from xraygpt.evaluation.history import History
from xraygpt.evaluation.lockbox import opening_lines
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.payload import prediction_text


def write_evaluation_page(
    path: Path,
    *,
    task: BaseTask,
    data: StudyDataset,
    predictions: Mapping[str, Sequence[Prediction]],
    result: Mapping[str, Any],
    max_cases: int,
    seed: int,
    history: History,
    facts: Mapping[str, Any],
    configuration: str,
) -> None:
    """Write scores, loss curves and cases to one HTML file.

    Args:
        path: The HTML file.
        task: Task that compares and displays predictions.
        data: Samples with the true images.
        predictions: Predictions by condition.
        result: Content of scores.json.
        max_cases: Number of cases to show.
        seed: Seed for the random sample of cases.
        history: Training runs behind the model.
        facts: Versions, seed, machine and so on.
        configuration: The resolved configuration as YAML.
    """
    cases = _build_cases(task, data, predictions, max_cases, seed)
    total = len(predictions.get(TRUE, ()))
    shown = f"all {total} cases."
    if len(cases) < total:
        shown = f"{len(cases)} of {total} cases: the best, the worst, and a random sample."
    result_page.write_page(
        path,
        title="xraygpt: evaluation",
        subtitle=" ".join(
            filter(
                None,
                (
                    f"Split {result['split']}, {result['n']} samples, run {result['signature']}.",
                    result.get("input_check"),
                    _leakage_line(result),
                    *opening_lines(result),
                ),
            )
        ),
        verdict=result["verdict"]["sentences"],
        cases=cases,
        shown=shown,
        scores=result["scores"],
        losses=result["losses"],
        history=history,
        facts=facts,
        configuration=configuration,
    )


def _leakage_line(result: Mapping[str, Any]) -> str:
    """Return a sentence on reports of the split that are also in train; "" if none was counted."""
    row = result.get("leakage")
    return f"In this corpus, {Leakage(**row)}." if row else ""


def _build_cases(
    task: BaseTask,
    data: StudyDataset,
    predictions: Mapping[str, Sequence[Prediction]],
    max_cases: int,
    seed: int,
) -> list[result_page.Case]:
    by_id = {k: {p.sample_id: p for p in v} for k, v in predictions.items()}
    images = {r.sample_id: r.media for r in data.records}
    true_predictions = predictions.get(TRUE, [])
    comparisons = [task.compare(p) for p in true_predictions]
    selected = select_cases(
        [len(c.agreed) for c in comparisons],
        [len(c.missed) + len(c.added) for c in comparisons],
        max_cases,
        seed,
    )
    cases = []
    for index, reason in selected.items():
        prediction = true_predictions[index]
        sample_id = prediction.sample_id
        others = {
            condition_of(name): prediction_text(by_id[name][sample_id])
            for name in (f"{SHUFFLED}-0", BLANK, MIRRORED)
            if sample_id in by_id.get(name, {})
        }
        cases.append(
            result_page.Case(
                sample_id=sample_id,
                images=images[sample_id],
                prompt=prediction.meta.get("asked", prediction.prompt),
                **vars(task.display(prediction)),
                others=others,
                warnings=prediction.warnings,
                source=str(prediction.meta.get("source", "")),
                reason=reason,
                **vars(comparisons[index]),
            )
        )
    return cases
