"""Charts of a run's losses on the result page, as coordinates of an SVG drawing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.numbers import decimal
from xraygpt.evaluation.conditions import CONDITION_NAMES
from xraygpt.evaluation.history import read_run_config
from xraygpt.runners import logs
from xraygpt.tasks.base import loss_unit

_AVERAGED_ROWS = 10  # width of the moving average of the training loss
_MAX_POINTS = 200
_MAX_MARKERS = 40  # points of a curve that are also drawn as dots
_START = 0.1  # share of the training during which the training loss may be cut off
_CUT_FACTOR = 1.5  # the axis is cut if it would be this many times as long without the cut
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 410.0, 14.0, 190.0  # edges of the plot, in SVG units
_DASHES = {"train": "", "true": "", "shuffled": "7 4", "blank": "2 4"}

_Points = list[tuple[int, float]]


@dataclass(frozen=True)
class _Curve:
    """A loss by step.

    Attributes:
        key: Name of the colour on the page.
        name: Caption in the legend.
        points: Steps and losses.
    """

    key: str
    name: str
    points: _Points


@dataclass(frozen=True)
class _Axes:
    """Limits of the plot; the steps start at 0."""

    last_step: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return round(_LEFT + (_RIGHT - _LEFT) * step / max(self.last_step, 1), 1)

    def y(self, value: float) -> float:
        return round(_BOTTOM - (_BOTTOM - _TOP) * (value - self.low) / (self.high - self.low), 1)


def loss_chart(run: Path) -> dict[str, Any] | None:
    """Return the lines, axes and legend of a run's losses, or None if the run has none.

    Every point lies within the axes. The only exception is a training loss that starts far above
    all other values: its first points are left out, and `cut` says so.
    """
    curves = _read_curves(logs.read_rows(run / "metrics.jsonl"))
    if not curves:
        return None
    last_step = max(step for curve in curves for step, _ in curve.points)
    values = [value for curve in curves for _, value in curve.points]
    limit = _cut_limit(curves, last_step)
    kept = [value for value in values if value <= limit]
    ticks, digits = _ticks(min(kept), max(kept))
    axes = _Axes(last_step, ticks[0], ticks[-1])
    grid: list[dict[str, Any]] = [{"at": axes.y(v), "label": decimal(v, digits)} for v in ticks]
    task = (read_run_config(run).get("run") or {}).get("task")
    return {
        "name": run.parent.name,
        "unit": loss_unit(task),
        "lines": [_line(curve, axes, limit) for curve in curves],
        "grid": grid,
        "steps": [{"at": axes.x(s), "label": str(s)} for s in (0, last_step // 2, last_step)],
        "cut": _describe_cut(max(values), decimal(ticks[-1], digits))
        if max(values) > limit
        else "",
    }


def _describe_cut(highest: float, top: str) -> str:
    return f"The training loss starts at {decimal(highest)}, above the axis, which ends at {top}."


def _read_curves(rows: Sequence[Mapping[str, Any]]) -> list[_Curve]:
    """Return the training loss, the validation loss and those of the controls in the log."""
    names = {"train/loss": ("train", "training, moving average")}
    names["val/loss"] = ("true", "validation, true image")
    for row in rows:
        for key in row:
            control = key.removeprefix("val/loss_")
            if control != key:
                names[key] = (control, f"validation, {CONDITION_NAMES.get(control, control)}")
    if not any(key.startswith("val/loss_") for key in names):
        names["val/loss"] = ("true", "validation")
    curves = [_Curve(key, name, _loss_points(rows, log)) for log, (key, name) in names.items()]
    return [curve for curve in curves if curve.points]


def _loss_points(rows: Sequence[Mapping[str, Any]], name: str) -> _Points:
    """Return steps and losses; the training loss is a moving average, thinned out."""
    points = [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
    if name != "train/loss":
        return points
    averaged: _Points = []
    for i, (step, _) in enumerate(points):
        window = [value for _, value in points[max(i - _AVERAGED_ROWS + 1, 0) : i + 1]]
        averaged.append((step, sum(window) / len(window)))
    stride = max(len(averaged) // _MAX_POINTS, 1)
    return averaged[::-stride][::-1]  # with the last point


def _cut_limit(curves: Sequence[_Curve], last_step: int) -> float:
    """Return the largest loss to draw: infinity, or less if the training starts far above it."""
    later = [
        value
        for curve in curves
        for step, value in curve.points
        if curve.key != "train" or step > _START * last_step
    ]
    highest = max(value for curve in curves for _, value in curve.points)
    if not later or highest - min(later) <= _CUT_FACTOR * (max(later) - min(later)):
        return math.inf
    return max(later)


def _ticks(low: float, high: float) -> tuple[list[float], int]:
    """Return round values around [low, high], and the decimals needed to write them."""
    spread = (high - low) or max(abs(high), 1e-3)
    exponent = math.floor(math.log10(spread / 4))
    step = next(
        factor * 10.0**exponent
        for factor in (1, 2, 2.5, 5, 10)
        if spread / (factor * 10.0**exponent) <= 4
    )
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    digits = max(0, -exponent + 1)
    values = [round(index * step, digits + 2) for index in range(first, last + 1)]
    while digits and all(abs(v - round(v, digits - 1)) < 1e-9 for v in values):
        digits -= 1
    return values, digits


def _line(curve: _Curve, axes: _Axes, limit: float) -> dict[str, Any]:
    """Return a polyline with its legend; few points are also drawn as dots."""
    points = [(axes.x(s), axes.y(v)) for s, v in curve.points if v <= limit]
    return {
        "key": curve.key if curve.key in _DASHES else "mirrored",
        "dash": _DASHES.get(curve.key, "4 2"),
        "name": curve.name,
        "last": decimal(curve.points[-1][1]),
        "points": " ".join(f"{x},{y}" for x, y in points),
        "dots": points if curve.key != "train" and len(points) <= _MAX_MARKERS else [],
        "cut": points[0] if len(points) < len(curve.points) else None,
    }
