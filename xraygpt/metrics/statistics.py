"""Scores with their n and a bootstrap interval."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError

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
    # What it was computed from, so that scores of the same samples can be compared in pairs.
    counts: np.ndarray = field(repr=False, compare=False)
    ratio: Callable[[np.ndarray], float] = field(repr=False, compare=False)
    groups: Sequence[str] | None = field(default=None, repr=False, compare=False)

    def as_row(self) -> dict[str, Any]:
        """For scores.json."""
        return {k: getattr(self, k) for k in ("name", "value", "n", "low", "high", "signature")}


def bootstrap(
    counts: np.ndarray,
    ratio: Callable[[np.ndarray], float],
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile interval of a ratio of sums (Efron 1979), resampling whole groups.

    Args:
        counts: (n, k) per-sample counts.
        ratio: From the k sums to the number.
        groups: Of each sample, e.g. its study: samples of one study are not independent. None takes
            each sample as its own group.
        resamples: Draws.
        seed: Of the draws.
    """
    if len(counts) == 0:
        return float("nan"), float("nan")
    if groups is not None:
        place, size = _places(groups)
        summed = np.zeros((size, counts.shape[1]))
        np.add.at(summed, place, counts)
        counts = summed
    values = [ratio(sums) for sums in _draws(len(counts), resamples, seed) @ counts]
    if np.isnan(values).all():  # nothing to take the ratio of, in any draw
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def draw_weights(
    n: int, groups: Sequence[str] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """How often each of n samples enters each draw of `bootstrap`, (resamples, n) float64.

    Args:
        n: Samples.
        groups: Of each sample, e.g. its study; whole groups are drawn.
        resamples: Draws.
        seed: Of the draws.

    Raises:
        InputError: Not one group for each sample.
    """
    if groups is not None and len(groups) != n:
        raise InputError(f"{len(groups)} groups for {n} samples; give one each")
    if n == 0:
        return np.zeros((resamples, 0))
    if groups is None:
        return _draws(n, resamples, seed)
    place, size = _places(groups)
    return _draws(size, resamples, seed)[:, place]


def _places(groups: Sequence[str]) -> tuple[np.ndarray, int]:
    """Of each sample the number of its group, and how many groups there are."""
    _, place = np.unique(np.asarray(groups), return_inverse=True)
    return place, int(place.max()) + 1


@lru_cache(maxsize=4)
def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, n) how often each of n groups is drawn, with replacement, in each resample."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(0, n, n) for _ in range(resamples))
    return np.stack([np.bincount(places, minlength=n) for places in drawn]).astype(float)


def ratio_score(
    name: str,
    counts: np.ndarray,
    ratio: Callable[[np.ndarray], float],
    signature: str,
    groups: Sequence[str] | None = None,
) -> Score:
    """A ratio of sums, such as F1 or BLEU.

    Args:
        name: Of the metric.
        counts: (n, k) per-sample counts that are summed.
        ratio: From the k sums to the number.
        signature: See `Score`.
        groups: See `bootstrap`.
    """
    n = len(counts)
    value = ratio(counts.sum(axis=0)) if n else float("nan")
    low, high = bootstrap(counts, ratio, groups)
    return Score(name, value, n, low, high, signature, counts, ratio, groups)


def weighted_sum(terms: Sequence[tuple[float, Score]]) -> Score:
    """A metric's values on the same samples, weighted and added; every draw resamples all alike.

    Args:
        terms: Weight and score: 1/k for each of k seeds is their mean; 1 for one condition and -1
            for another is their paired difference.
    """
    first = terms[0][1]
    width = first.counts.shape[1]

    def ratio(sums: np.ndarray) -> float:
        each = (sums[i * width : (i + 1) * width] for i in range(len(terms)))
        return sum(w * s.ratio(part) for (w, s), part in zip(terms, each, strict=True))

    counts = np.hstack([score.counts for _, score in terms])
    return replace(ratio_score(first.name, counts, ratio, first.signature, first.groups), n=first.n)


def mean_score(
    name: str, values: Sequence[float], signature: str, groups: Sequence[str] | None = None
) -> Score:
    """The mean of per-sample values with its interval."""
    counts = np.array([[v, 1.0] for v in values], dtype=float).reshape(-1, 2)
    return ratio_score(name, counts, lambda c: float(c[0] / max(c[1], 1.0)), signature, groups)
