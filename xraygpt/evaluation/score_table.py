"""Scores as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from xraygpt.common.numbers import decimal, interval, with_interval
from xraygpt.evaluation.conditions import TRUE
from xraygpt.evaluation.lockbox import opening_lines
from xraygpt.evaluation.trait_table import is_trait_score, trait_tables

PUBLISHED_TABLES = {
    "Metrics of papers on IU X-ray": (
        "COCO BLEU-1", "COCO BLEU-2", "COCO BLEU-3", "COCO BLEU-4", "METEOR", "COCO ROUGE-L",
        "CIDEr-D", "frequent_coding_micro_F1", "frequent_coding_macro_F1", "distinct",
    ),
    "Metrics of the ReXrank leaderboard": (
        "1/RadCliQ-v1", "BLEU-2", "BERTScore_F1", "SembScore", "RadGraph_partial",
        "RaTEScore", "GREEN",
    ),
    "Metrics of RadVLM": (
        "radvlm_mAP_50", "radvlm_avg_IoU", "radvlm_F1_macro", "radvlm_F1_micro",
        "radvlm_precision_macro", "radvlm_recall_macro",
    ),
    "Metrics of MAIRA-2": (
        "RadFact_logical_precision", "RadFact_logical_recall", "RadFact_spatial_precision",
        "RadFact_spatial_recall", "RadFact_grounding_precision", "RadFact_grounding_recall",
    ),
}  # fmt: skip
"""Titles and columns of tables with published metrics; a dash replaces a missing score."""

_Cells = dict[str, dict[str, dict[str, Any]]]  # rows of scores.json by metric and condition


def as_markdown(result: Mapping[str, Any]) -> str:
    """Return the content of scores.json as tables.

    Metrics are rows and conditions are columns, except in the tables of published metrics.
    """
    lines = [
        f"Split `{result['split']}`, n = {result['n']}. Research use only, not for diagnosis.",
        *opening_lines(result),
        "",
        *_loss_table(result["losses"]),
    ]
    conditions = list(dict.fromkeys(row["condition"] for row in result["scores"]))
    if conditions:
        lines += _score_tables(conditions, result["scores"])
        lines += _left_out_list(result.get("left_out") or {})
    return "\n".join(lines) + "\n"


def _loss_table(losses: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| loss | value | 95 % interval | n |", "|---|---|---|---|"] if losses else []
    for row in losses:
        value = f"{decimal(row['value'], 4)} | {interval(row, 4)}"
        lines.append(f"| {row['name']} | {value} | {row['n']} |")
    return lines


def _score_tables(conditions: Sequence[str], scores: Sequence[dict[str, Any]]) -> list[str]:
    cells: _Cells = {}
    for row in scores:
        if not is_trait_score(row["name"]):
            cells.setdefault(row["name"], {})[row["condition"]] = row
    lines = _metric_table(conditions, cells, lambda row: row)
    for title, columns in PUBLISHED_TABLES.items():
        if any(c in cells for c in columns[:3]):
            lines += ["", f"{title}:", *_condition_table(conditions, cells, columns)]
    for table in trait_tables(scores):
        lines += ["", *table.as_markdown()]
    if others := [c for c in conditions if c != TRUE]:
        lines += ["", "True image minus each control, paired:"]
        lines += _metric_table(others, cells, lambda row: row["true_minus"])
    return lines


def _left_out_list(left_out: Mapping[str, str]) -> list[str]:
    if not left_out:
        return []
    return ["", "Left out:", "", *(f"- {name}: {reason}" for name, reason in left_out.items())]


def _metric_table(
    conditions: Sequence[str],
    cells: _Cells,
    value_of: Callable[[dict[str, Any]], dict[str, float]],
) -> list[str]:
    """Build a table with one row per metric and one column per condition."""
    lines = ["", "| metric | " + " | ".join(conditions) + " | n |"]
    lines.append("|---" * (len(conditions) + 2) + "|")
    for name, by_condition in cells.items():
        values = [
            with_interval(value_of(by_condition[c])) if c in by_condition else ""
            for c in conditions
        ]
        n = next(iter(by_condition.values()))["n"]
        lines.append(f"| {name} | {' | '.join(values)} | {n} |")
    return lines


def _condition_table(conditions: Sequence[str], cells: _Cells, columns: Sequence[str]) -> list[str]:
    """Build a table with one row per condition and one column per metric."""
    lines = ["", "| condition | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for condition in conditions:
        rows = [cells.get(name, {}).get(condition) for name in columns]
        values = ["–" if row is None else decimal(row["value"]) for row in rows]
        lines.append(f"| {condition} | {' | '.join(values)} |")
    return lines
