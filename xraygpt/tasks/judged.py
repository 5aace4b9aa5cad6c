"""Scores of reports from stored verdicts of a judge: GREEN and CRIMSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xraygpt.metrics.crimson import crimson_score, urgent_findings
from xraygpt.metrics.green import CATEGORIES
from xraygpt.metrics.reports import missed_score, positive_findings
from xraygpt.metrics.statistics import Score, ratio_score, share_of_sums
from xraygpt.metrics.verdicts import Kind, Verdicts, read_verdicts, text_key, verdict_scores
from xraygpt.tasks.base import Prediction

URGENT = "pneumothorax"
Rows = Sequence[Mapping[str, Any] | None]


def report_key(kind: Kind, prediction: Prediction) -> str:
    """Return the name of a verdict on a report."""
    return text_key(kind, prediction.prediction, prediction.reference)


def judged_scores(predictions: Sequence[Prediction]) -> tuple[list[Score], dict[str, str]]:
    """Compute the scores for which the folder has verdicts on all of these reports.

    Returns:
        The scores, and reasons, by name, for those of judges that have not seen all reports.
    """
    folder = predictions[0].folder if predictions else None
    studies = [p.study_id for p in predictions]
    scores: list[Score] = []
    left_out: dict[str, str] = {}
    judges: dict[Kind, Callable[[Rows, Verdicts, Sequence[str]], list[Score]]] = {
        "green": _green, "crimson": _crimson,
    }  # fmt: skip
    for kind, compute in judges.items():
        verdicts = read_verdicts(folder, kind)
        if verdicts is None:
            continue
        keys = [report_key(kind, p) for p in predictions]
        absent = sum(key not in verdicts.values for key in keys)
        if absent:
            left_out[kind.upper()] = (
                f"{absent} of {len(keys)} reports are not judged; run python -m xraygpt.judge "
                f"{kind} FOLDER"
            )
            continue
        scores += compute([verdicts.values[key] for key in keys], verdicts, studies)
    return [*scores, *(missed_urgent(predictions) if scores else ())], left_out


def missed_urgent(predictions: Sequence[Prediction]) -> list[Score]:
    """Compute how often an urgent finding that the labeller knows is missed.

    It stands beside every judge, because judges weigh a missed finding as they like.
    """
    found, known = (
        [positive_findings(text) for text in texts]
        for texts in ([p.prediction for p in predictions], [p.reference for p in predictions])
    )
    studies = [p.study_id for p in predictions]
    score = missed_score(found, known, URGENT, studies)
    return [replace(score, optional=True)] if score.n else []


def _green(rows: Rows, verdicts: Verdicts, studies: Sequence[str]) -> list[Score]:
    values = [None if row is None else float(row["score"]) for row in rows]
    scores = verdict_scores("GREEN", values, verdicts.judge, studies, "GREEN, 0 to 1")
    for name in CATEGORIES:
        counts = [[row["significant"][name] if row else 0, row is not None] for row in rows]
        scores.append(_mean(f"GREEN_errors/{name}", counts, verdicts.judge, studies))
    return scores


def _crimson(rows: Rows, verdicts: Verdicts, studies: Sequence[str]) -> list[Score]:
    values = [None if row is None else crimson_score(row) for row in rows]
    urgent = [(0, 0) if row is None else urgent_findings(row) for row in rows]
    scores = verdict_scores("CRIMSON", values, verdicts.judge, studies, "CRIMSON, -1 to 1")
    return [*scores, _mean("missed_urgent", urgent, verdicts.judge, studies)]


def _mean(
    name: str, counts: Sequence[Sequence[float]], judge: str, studies: Sequence[str]
) -> Score:
    array = np.array(counts, dtype=float).reshape(-1, 2)
    score = ratio_score(name, array, share_of_sums, f"by {judge}", studies)
    return replace(score, optional=True)
