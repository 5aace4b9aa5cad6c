"""Paired differences of scores on the same samples: intervals, randomisation tests, Holm."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xraygpt.common.numbers import decimal, with_interval
from xraygpt.metrics.statistics import Score, ratios_of_rows, sum_by_group, weighted_sum

PERMUTATIONS = 2000


@dataclass(frozen=True)
class Difference:
    """One score of two systems and their difference."""

    name: str
    first: float
    second: float
    value: float  # first minus second
    low: float  # 95 % interval
    high: float
    p: float  # in (0, 1]
    n: int


def paired_difference(
    first: Score, second: Score, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> Difference:
    """Compute the difference between two systems' scores on the same samples in the same order.

    Args:
        first: The score of one system.
        second: The same score of the other system.
        permutations: Random assignments sampled for the randomisation test.
        seed: Seed for these assignments.
    """
    difference = weighted_sum([(1.0, first), (-1.0, second)])
    first_counts, second_counts = _by_group(first), _by_group(second)
    rng = np.random.default_rng(seed)
    first_sums = first_counts.sum(axis=0)
    total, gap = first_sums + second_counts.sum(axis=0), second_counts - first_counts
    swaps = rng.random((permutations, len(first_counts))) < 0.5
    swapped = np.stack([first_sums + swap @ gap for swap in swaps])
    permuted = ratios_of_rows(first.ratio, swapped) - ratios_of_rows(first.ratio, total - swapped)
    extreme = int((np.abs(permuted) >= abs(difference.value) - 1e-12).sum())
    return Difference(
        name=first.name,
        first=first.value,
        second=second.value,
        value=difference.value,
        low=difference.low,
        high=difference.high,
        p=(extreme + 1) / (permutations + 1),
        n=first.n,
    )


def holm(values: Sequence[float]) -> list[float]:
    """Adjust p-values for the family-wise error rate (Holm 1979); the order is kept."""
    order = np.argsort(values)
    adjusted, running_max = [0.0] * len(values), 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = running_max
    return adjusted


def as_markdown(rows: Sequence[Difference]) -> str:
    """Format the differences as a Markdown table with one row per score."""
    lines = ["| metric | first | second | difference | p | p, Holm | n |", "|---" * 7 + "|"]
    for row, adjusted in zip(rows, holm([r.p for r in rows]), strict=True):
        gap = with_interval(vars(row), signed=True)
        lines.append(
            f"| {row.name} | {decimal(row.first)} | {decimal(row.second)} | {gap} "
            f"| {decimal(row.p, 4)} | {decimal(adjusted, 4)} | {row.n} |"
        )
    return "\n".join(lines) + "\n"


def _by_group(score: Score) -> np.ndarray:
    """Return the counts of each study, (studies, k)."""
    return score.counts if score.groups is None else sum_by_group(score.counts, score.groups)


def main() -> None:
    """Run `xraygpt.compare`, of which this module is an alias on the command line."""
    runpy.run_module("xraygpt.compare", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
