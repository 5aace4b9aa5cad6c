"""Coordinates of the charts on the result page: scores by condition, and training losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.runners import logs

HEADLINE_METRICS = (
    "drawn_macro_F1", "drawn_laterality",
    "COCO BLEU-4", "COCO ROUGE-L", "frequent_coding_macro_F1",
    "BLEU-4", "ROUGE-L", "findings_text_F1", "abnormal_text_F1", "findings_coding_F1",
    "abnormal_coding_F1", "accuracy", "accuracy_closed", "accuracy_open", "distinct",
)  # fmt: skip
MAX_OTHER_METRICS = 8  # metrics charted for a task without a headline metric

_CURVES = (  # log key, colour on the page, caption
    ("train/loss", "true", "training"),
    ("val/loss", "most_common", "val"),
    ("val/loss_shuffled", "shuffled", "val with another study's image"),
)
_AVERAGED_ROWS = 10  # width of the moving average of the training loss
_MAX_POINTS = 200
_LEFT, _WIDTH, _BOTTOM, _HEIGHT = 42, 350, 190, 175  # position and size of the plot, in SVG units

_Points = list[tuple[int, float]]


def score_chart(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Chart headline metrics, or others in [0, 1], with one strip per condition (% of its width).

    Args:
        scores: Rows of scores.json.
    """
    finite = [row for row in scores if math.isfinite(row["value"])]
    chart = []
    for name in _charted_metrics(finite):
        rows = [row for row in finite if row["name"] == name]
        strips = [_strip(row) for row in rows]
        chart.append({"name": name.replace("_", " "), "n": rows[0]["n"], "rows": strips})
    return chart


def _charted_metrics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    headlines = [name for name in HEADLINE_METRICS if name in names]
    if headlines:
        return headlines
    out_of_range = {row["name"] for row in rows if row["low"] < 0 or row["high"] > 1}
    return [name for name in names if name not in out_of_range][:MAX_OTHER_METRICS]


def _strip(row: Mapping[str, Any]) -> dict[str, str]:
    value, low, high = (min(max(row[k], 0.0), 1.0) * 100 for k in ("value", "low", "high"))
    return {
        "key": row["condition"],
        "low": f"{low:.1f}",
        "width": f"{high - low:.1f}",
        "at": f"{value:.1f}",
        "label": f"{row['value']:.3f} ({row['low']:.3f}–{row['high']:.3f})",
    }


def loss_chart(run: Path) -> dict[str, Any] | None:
    """Return the polylines of a run's losses, or None if the run has none."""
    rows = logs.read_rows(run / "metrics.jsonl")
    curves = [(_loss_points(rows, name), colour, caption) for name, colour, caption in _CURVES]
    curves = [curve for curve in curves if curve[0]]
    if not curves:
        return None
    last_step = max(step for points, _, _ in curves for step, _ in points)
    values = [value for points, _, _ in curves for _, value in points]
    low, high = min(values), float(np.percentile(values, 98))
    lines = [_line(points, colour, last_step, low, high) for points, colour, _ in curves]
    captions = [f"{caption} {points[-1][1]:.3f}" for points, _, caption in curves]
    ticks = [{"at": _y(v, low, high), "label": f"{v:.2f}"} for v in np.linspace(low, high, 4)]
    return {
        "name": run.parent.name,
        "lines": lines,
        "grid": ticks,
        "last": last_step,
        "caption": f"nats per target token, last values: {', '.join(captions)}",
    }


def _line(points: _Points, colour: str, last_step: int, low: float, high: float) -> dict[str, Any]:
    coordinates = " ".join(
        f"{_LEFT + _WIDTH * step / max(last_step, 1):.1f},{_y(value, low, high)}"
        for step, value in points
    )
    return {"key": colour, "points": coordinates, "width": 1.3 if colour == "true" else 2}


def _loss_points(rows: Sequence[Mapping[str, Any]], name: str) -> _Points:
    """Return steps and losses; the training loss is a moving average, thinned out."""
    points = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    if name != "train/loss":
        return points
    averaged = [
        (step, float(np.mean([v for _, v in points[max(i - _AVERAGED_ROWS + 1, 0) : i + 1]])))
        for i, (step, _) in enumerate(points)
    ]
    return averaged[:: max(len(averaged) // _MAX_POINTS, 1)]


def _y(value: float, low: float, high: float) -> float:
    """Return the vertical coordinate; values far above `high` are cut off."""
    spread = max(high - low, 1e-6)
    return round(_BOTTOM - _HEIGHT * min((value - low) / spread, 1.02), 1)
