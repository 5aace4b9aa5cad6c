"""Scores with their sample counts and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError

RESAMPLES = 1000


@dataclass(frozen=True)
class RowRatio:
    """A ratio of sums that is computed for all resamples at once, which is faster.

    Attributes:
        rows: Maps the sums (r, k) of r resamples to their values (r,).
    """

    rows: Callable[[np.ndarray], np.ndarray]

    def __call__(self, sums: np.ndarray) -> float:
        """Return the value for the sums (k,) of one sample."""
        return float(self.rows(np.asarray(sums, dtype=float)[None])[0])


def ratios_of_rows(ratio: Callable[[np.ndarray], float], sums: np.ndarray) -> np.ndarray:
    """Return the value of a ratio for each row of sums, (r, k) to (r,)."""
    if isinstance(ratio, RowRatio):
        return ratio.rows(sums)
    return np.array([ratio(row) for row in sums], dtype=float)


@dataclass(frozen=True)
class Score:
    """The value of one metric with its interval."""

    name: str
    value: float
    n: int  # samples the value is computed from
    low: float  # 95 % bootstrap interval
    high: float
    signature: str  # metric, variant and version
    # The data behind the value, so that scores of the same samples can be compared in pairs.
    counts: np.ndarray = field(repr=False, compare=False)
    ratio: Callable[[np.ndarray], float] = field(repr=False, compare=False)
    groups: Sequence[str] | None = field(default=None, repr=False, compare=False)
    # Whether it may be missing in some conditions, because a judge was not asked about them.
    optional: bool = field(default=False, repr=False, compare=False)

    def as_row(self) -> dict[str, Any]:
        """Return the entry for scores.json."""
        return {k: getattr(self, k) for k in ("name", "value", "n", "low", "high", "signature")}


def bootstrap(
    counts: np.ndarray,
    ratio: Callable[[np.ndarray], float],
    groups: Sequence[str] | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Compute the 95 % percentile interval of a ratio of sums (Efron 1979) over whole groups.

    Args:
        counts: (n, k) per-sample counts.
        ratio: Maps the k sums to the value.
        groups: The group of each sample, e.g. its study, because samples of one study are not
            independent. None treats every sample as its own group.
        resamples: Number of bootstrap resamples.
        seed: Seed for the resampling.
    """
    if len(counts) == 0:
        return float("nan"), float("nan")
    if groups is not None:
        counts = sum_by_group(counts, groups)
    values = ratios_of_rows(ratio, _resample_counts(len(counts), resamples, seed) @ counts)
    if np.isnan(values).all():  # undefined in every resample
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def bootstrap_weights(
    n: int, groups: Sequence[str] | None = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """Return how often each sample occurs in each resample of `bootstrap`, (resamples, n) float64.

    Args:
        n: Number of samples.
        groups: The group of each sample, e.g. its study; groups are resampled as a whole.
        resamples: Number of bootstrap resamples.
        seed: Seed for the resampling.

    Raises:
        InputError: If the number of groups is not n.
    """
    if groups is not None and len(groups) != n:
        raise InputError(f"got {len(groups)} groups for {n} samples; expected one each")
    if n == 0:
        return np.zeros((resamples, 0))
    if groups is None:
        return _resample_counts(n, resamples, seed)
    indices, size = _group_indices(groups)
    return _resample_counts(size, resamples, seed)[:, indices]


def sum_by_group(counts: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Sum the (n, k) counts over the samples of each group, (groups, k) float64."""
    indices, size = _group_indices(groups)
    summed = np.zeros((size, counts.shape[1]))
    np.add.at(summed, indices, counts)
    return summed


def _group_indices(groups: Sequence[str]) -> tuple[np.ndarray, int]:
    """Return the index of each sample's group, and the number of groups."""
    _, indices = np.unique(np.asarray(groups), return_inverse=True)
    return indices, int(indices.max()) + 1


@lru_cache(maxsize=4)
def _resample_counts(n: int, resamples: int, seed: int) -> np.ndarray:
    """Sample n groups with replacement and return their counts, (resamples, n) float64."""
    rng = np.random.default_rng(seed)
    sampled = (rng.integers(0, n, n) for _ in range(resamples))
    return np.stack([np.bincount(indices, minlength=n) for indices in sampled]).astype(float)


def ratio_score(
    name: str,
    counts: np.ndarray,
    ratio: Callable[[np.ndarray], float],
    signature: str,
    groups: Sequence[str] | None = None,
) -> Score:
    """Compute a ratio of sums, such as F1 or BLEU, with its interval.

    Args:
        name: Name of the score.
        counts: (n, k) per-sample counts that are summed.
        ratio: Maps the k sums to the value.
        signature: See `Score`.
        groups: See `bootstrap`.
    """
    n = len(counts)
    value = ratio(counts.sum(axis=0)) if n else float("nan")
    low, high = bootstrap(counts, ratio, groups)
    return Score(name, value, n, low, high, signature, counts, ratio, groups)


def weighted_sum(terms: Sequence[tuple[float, Score]]) -> Score:
    """Compute a weighted sum of one metric's values on the same samples and resamples.

    Args:
        terms: Weights and scores: weights 1/k for k seeds give their mean; 1 for one condition and
            -1 for another give the paired difference.
    """
    first = terms[0][1]
    width = first.counts.shape[1]

    def ratio(sums: np.ndarray) -> float:
        parts = (sums[i * width : (i + 1) * width] for i in range(len(terms)))
        return sum(w * s.ratio(part) for (w, s), part in zip(terms, parts, strict=True))

    def rows(sums: np.ndarray) -> np.ndarray:
        total = np.zeros(len(sums))
        for i, (weight, score) in enumerate(terms):
            total += weight * ratios_of_rows(score.ratio, sums[:, i * width : (i + 1) * width])
        return total

    is_fast = all(isinstance(score.ratio, RowRatio) for _, score in terms)
    counts = np.hstack([score.counts for _, score in terms])
    combined = RowRatio(rows) if is_fast else ratio
    score = ratio_score(first.name, counts, combined, first.signature, first.groups)
    return replace(score, n=first.n)


def mean_score(
    name: str, values: Sequence[float], signature: str, groups: Sequence[str] | None = None
) -> Score:
    """Compute the mean of per-sample values with its interval."""
    counts = np.array([[v, 1.0] for v in values], dtype=float).reshape(-1, 2)
    mean = RowRatio(lambda sums: sums[:, 0] / np.maximum(sums[:, 1], 1.0))
    return ratio_score(name, counts, mean, signature, groups)


def _share(sums: np.ndarray) -> np.ndarray:
    below = sums[:, 1]
    return np.divide(sums[:, 0], below, out=np.full(len(sums), np.nan), where=below != 0)


share_of_sums = RowRatio(_share)
"""Divides the first sum by the second; nan if the second is 0."""

f1_of_sums = RowRatio(lambda sums: 2 * sums[:, 0] / np.maximum(sums[:, 1] + sums[:, 2], 1))
"""Computes F1 from summed true, predicted and reference positives; 0 if there are none."""


def macro_ratio(whole: np.ndarray, bottom: Sequence[int] = (1, 2)) -> RowRatio:
    """Return precision, recall or F1 averaged over classes, for `ratio_score`.

    A class without a denominator counts as 0, as in scikit-learn. A resample that happens to have
    none for a class says nothing about the class, which is then left out of the resample's mean; so
    rare classes do not pull intervals below the value.

    Args:
        whole: Sums over the whole sample, (3 · classes,): for each class the true positives, the
            predicted positives and the reference's positives.
        bottom: The sums that make up the denominator: predicted (1), reference (2), or both for F1.
    """
    is_empty = whole.reshape(-1, 3)[:, list(bottom)].sum(axis=-1) == 0
    share = 1 - float(is_empty.mean()) if is_empty.size else 0.0

    def rows(sums: np.ndarray) -> np.ndarray:
        by_class = sums.reshape(len(sums), -1, 3)
        below = by_class[..., list(bottom)].sum(axis=-1)
        above = by_class[..., 0] * len(bottom)
        values = np.divide(above, below, out=np.zeros(below.shape), where=below > 0)
        defined = (below > 0).sum(axis=1)
        return np.asarray(share * values.sum(axis=1) / np.maximum(defined, 1))

    return RowRatio(rows)
