"""Scores with their n and a bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Score:
    """One reported number."""

    name: str
    value: float
    n: int  # samples it rests on
    low: float  # 95 % bootstrap interval
    high: float
    signature: str  # metric, variant and version

    def as_row(self) -> dict[str, Any]:
        """For scores.json."""
        return asdict(self)


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of `statistic` over resampled indices (Efron 1979).

    Args:
        statistic: From an int array of sample indices (with repeats) to a number.
        n: Samples there are.
        resamples: Draws.
        seed: Of the draws.
    """
    if n == 0:
        return float("nan"), float("nan")
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(0, n, n)) for _ in range(resamples)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def mean_score(name: str, values: Sequence[float], signature: str) -> Score:
    """The mean of per-sample values with its interval."""
    array = np.asarray(values, dtype=float)
    n = len(array)
    value = float(array.mean()) if n else float("nan")
    low, high = bootstrap(lambda i: float(array[i].mean()), n)
    return Score(name=name, value=value, n=n, low=low, high=high, signature=signature)


def ratio_score(
    name: str, counts: np.ndarray, ratio: Callable[[np.ndarray], float], signature: str
) -> Score:
    """A ratio of sums, such as F1 or BLEU.

    Args:
        name: Of the metric.
        counts: (n, k) per-sample counts that are summed.
        ratio: From the k sums to the number.
        signature: See `Score`.
    """
    n = len(counts)
    value = ratio(counts.sum(axis=0)) if n else float("nan")
    low, high = bootstrap(lambda i: ratio(counts[i].sum(axis=0)), n)
    return Score(name=name, value=value, n=n, low=low, high=high, signature=signature)
