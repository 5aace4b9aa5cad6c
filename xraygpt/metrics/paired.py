"""Differences of scores on the same samples, in pairs: intervals, a randomisation test, Holm."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xraygpt.metrics.statistics import Score, weighted_sum

TOSSES = 2000


@dataclass(frozen=True)
class Difference:
    """One score of both systems."""

    name: str
    first: float
    second: float
    value: float  # first less second
    low: float  # 95 % interval
    high: float
    p: float  # in (0, 1]
    n: int


def paired(first: Score, second: Score, *, tosses: int = TOSSES, seed: int = 0) -> Difference:
    """Difference of a score on the same samples in the same order.

    Args:
        first: Of one system.
        second: The same metric of the other.
        tosses: Assignments drawn for the test.
        seed: Of these draws.
    """
    ahead = weighted_sum([(1.0, first), (-1.0, second)])
    one, two = _by_group(first), _by_group(second)
    rng = np.random.default_rng(seed)
    total, gap = one.sum(axis=0) + two.sum(axis=0), two - one
    kept = one.sum(axis=0)
    extreme = 0
    for toss in rng.random((tosses, len(one))) < 0.5:
        swapped = kept + toss @ gap
        drawn = first.ratio(swapped) - first.ratio(total - swapped)
        extreme += abs(drawn) >= abs(ahead.value) - 1e-12
    p = (extreme + 1) / (tosses + 1)
    return Difference(
        first.name, first.value, second.value, ahead.value, ahead.low, ahead.high, p, first.n
    )


def holm(values: Sequence[float]) -> list[float]:
    """P-values so adjusted that all tests together err with the stated probability."""
    order = np.argsort(values)
    adjusted, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        adjusted[place] = least
    return adjusted


def as_markdown(rows: Sequence[Difference]) -> str:
    """A table, one line a score."""
    lines = ["| metric | first | second | difference | p | p, Holm | n |", "|---" * 7 + "|"]
    for row, adjusted in zip(rows, holm([r.p for r in rows]), strict=True):
        gap = f"{row.value:+.3f} ({row.low:+.3f} … {row.high:+.3f})"
        lines.append(
            f"| {row.name} | {row.first:.3f} | {row.second:.3f} | {gap} | {row.p:.4f} "
            f"| {adjusted:.4f} | {row.n} |"
        )
    return "\n".join(lines) + "\n"


def _by_group(score: Score) -> np.ndarray:
    """(g, k) counts of each study."""
    if score.groups is None:
        return score.counts
    _, place = np.unique(np.asarray(score.groups), return_inverse=True)
    summed = np.zeros((place.max() + 1, score.counts.shape[1]))
    np.add.at(summed, place, score.counts)
    return summed


def main() -> None:
    """The command; it lies in `xraygpt.compare`, above the tasks it asks."""
    runpy.run_module("xraygpt.compare", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
