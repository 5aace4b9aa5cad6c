"""Coordinates of the chart of scores by condition on the result page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from xraygpt.common.numbers import with_interval

HEADLINE_METRICS = (
    "drawn_macro_F1", "drawn_laterality", "traits_balanced_accuracy", "traits_AUROC",
    "COCO BLEU-4", "COCO ROUGE-L", "frequent_coding_macro_F1",
    "BLEU-4", "ROUGE-L", "findings_text_F1", "abnormal_text_F1", "findings_coding_F1",
    "abnormal_coding_F1", "accuracy", "accuracy_closed", "accuracy_open", "distinct",
)  # fmt: skip
MAX_OTHER_METRICS = 8  # metrics charted for a task without a headline metric


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
        "label": with_interval(row),
    }
