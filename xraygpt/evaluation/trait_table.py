"""Tables of the scores of traits, in the order of the vocabulary, with the value of a guess."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from xraygpt.common.numbers import decimal, with_interval
from xraygpt.evaluation.conditions import SHUFFLED, TRUE
from xraygpt.metrics.echovlm import CORE
from xraygpt.metrics.traits import CHANCE, PREFIX

_ECHOVLM = "echovlm/"
_MAIN = ("AUROC", "balanced_accuracy", "R2")
_DETAILS = (
    "prevalence", "sensitivity", "specificity", "Brier", "ECE", "kappa", "exact", "within_one",
    "graded", "MAE", "R2_answered", "answered", "stated",
)  # fmt: skip
_AVERAGES = ("traits_balanced_accuracy", "traits_AUROC", "traits_R2")

Cells = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Rows of scores.json by metric and condition."""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: Sentence above the table.
        header: Names of the columns.
        rows: Cells; each row is as long as the header.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def as_markdown(self) -> list[str]:
        """Return the lines of the table."""
        lines = [self.title, "", f"| {' | '.join(self.header)} |", "|---" * len(self.header) + "|"]
        return lines + [f"| {' | '.join(row)} |" for row in self.rows]


def is_trait_score(name: str) -> bool:
    """Return whether a score is of one trait, and therefore in these tables only."""
    return name.startswith((PREFIX, _ECHOVLM))


def trait_tables(scores: Iterable[Mapping[str, Any]]) -> list[Table]:
    """Return the tables of traits; none if there are no scores of traits.

    Args:
        scores: Rows of scores.json.
    """
    cells: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in scores:
        cells.setdefault(str(row["name"]), {})[str(row["condition"])] = row
    conditions = list(dict.fromkeys(c for by_condition in cells.values() for c in by_condition))
    traits = list(dict.fromkeys(name.split("/")[2] for name in cells if name.startswith(PREFIX)))
    tables = []
    if traits:
        tables += [_main_table(cells, conditions, traits), _detail_table(cells, traits)]
    if CORE in cells:
        tables.append(_echovlm_table(cells, conditions))
    return tables


def _main_table(cells: Cells, conditions: Sequence[str], traits: Sequence[str]) -> Table:
    header = ["trait", "score", "chance", *conditions]
    header += ["true minus shuffled, paired"] if SHUFFLED in conditions else []
    header += ["n", "positive"]
    rows = []
    for trait in traits:
        measures = [m for m in _MAIN if f"{PREFIX}{m}/{trait}" in cells]
        positive = cells.get(f"{PREFIX}sensitivity/{trait}", {}).get(TRUE)
        is_number = f"{PREFIX}stated/{trait}" in cells
        count = "" if is_number else str(positive["n"]) if positive else "0"
        for measure in measures:
            by_condition = cells[f"{PREFIX}{measure}/{trait}"]
            rows.append([*_condition_row(by_condition, conditions, trait, measure), count])
        if not measures:
            rows.append([trait, "left out", *["–"] * (len(header) - 3), count])
    for name in _AVERAGES:
        if name in cells:
            measure = name.removeprefix("traits_")
            rows.append([*_condition_row(cells[name], conditions, "mean", measure), ""])
    title = "Traits. A guess scores what the column chance says. R² counts silence as the mean:"
    return Table(title, header, rows)


def _condition_row(
    by_condition: Mapping[str, Mapping[str, Any]],
    conditions: Sequence[str],
    label: str,
    measure: str,
) -> list[str]:
    chance = f"{CHANCE[measure]:g}" if measure in CHANCE else ""
    row = [label, measure.replace("_", " "), chance]
    row += [_cell(by_condition.get(c)) for c in conditions]
    if SHUFFLED in conditions:
        row.append(_cell(by_condition.get(SHUFFLED, {}).get("true_minus")))
    return [*row, str(by_condition[TRUE]["n"])]


def _cell(row: Mapping[str, Any] | None, digits: int = 3) -> str:
    """Return a value with its interval, or a dash without one."""
    if row is None or math.isnan(row["value"]):
        return "–"
    return with_interval(row, digits)


def _detail_table(cells: Cells, traits: Sequence[str]) -> Table:
    columns = [m for m in _DETAILS if any(f"{PREFIX}{m}/{trait}" in cells for trait in traits)]
    rows = []
    for trait in traits:
        found = [cells.get(f"{PREFIX}{m}/{trait}", {}).get(TRUE) for m in columns]
        values = ["–" if row is None or math.isnan(row["value"]) else decimal(row["value"])
                  for row in found]  # fmt: skip
        rows.append([trait, *values])
    title = "Traits with the true images, in detail:"
    return Table(title, ["trait", *(m.replace("_", " ") for m in columns)], rows)


def _echovlm_table(cells: Cells, conditions: Sequence[str]) -> Table:
    names = [name for name in cells if name.startswith(_ECHOVLM)]
    rows = []
    for name in [*names, CORE]:
        values = [cells[name].get(c) for c in conditions]
        label = "average" if name == CORE else name.removeprefix(_ECHOVLM)
        rows.append([label, *(_cell(v, 2) for v in values)])
    title = "echovlm-compatible scores (balanced accuracy, which echovlm calls AUROC, or R²):"
    return Table(title, ["trait", *conditions], rows)
