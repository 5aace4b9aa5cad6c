"""Scores for the probabilities of yes/no answers: ranking, calibration and decisions.

AUROC and average precision rank samples against each other, so they are not ratios of sums over
samples. Their bootstrap weights each sample by how often it occurs in a resample: one sort and two
running sums serve all resamples. Resamples and percentiles are those of `statistics.bootstrap`.

Shapes: n samples, k labels, r resamples, m samples with a known reference, t distinct
probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import (
    RowRatio,
    Score,
    bootstrap_weights,
    f1_of_sums,
    ratio_score,
    share_of_sums,
)

#: Maps the weights (r, n) of the samples to the value (r,) in each resample.
Statistic = Callable[[np.ndarray], np.ndarray]

_CELLS = 2_000_000  # weights processed at once: keeps temporary arrays below about 100 MB


def auroc(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Compute the area under the ROC curve, in [0, 1]: how often a positive outranks a negative.

    Ties count half (Mann and Whitney 1947; Hanley and McNeil 1982).

    Args:
        probabilities: (n,) probabilities of yes; any numbers that can be ranked.
        truth: (n,) references: 1 yes, 0 no, NaN unknown and excluded.

    Returns:
        The area; NaN if there are no positives or no negatives.
    """
    ones = np.ones((1, len(probabilities)))
    return float(_auroc(_rank(np.asarray(probabilities), np.asarray(truth)), ones)[0])


def average_precision(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Compute the mean precision at the positives, ranked by probability, in [0, 1].

    The arguments are those of `auroc`. The result is the step-wise sum over distinct probabilities,
    without interpolation, as in scikit-learn; it is NaN if there are no positives.
    """
    ones = np.ones((1, len(probabilities)))
    return float(_average_precision(_rank(np.asarray(probabilities), np.asarray(truth)), ones)[0])


@dataclass(frozen=True)
class _Labels:
    """The labels that are scored, with the settings that all their scores share."""

    names: Sequence[str]
    probabilities: np.ndarray  # (n, labels)
    truth: np.ndarray  # (n, labels)
    groups: Sequence[str] | None
    macro_suffix: str  # the end of macro scores' signatures

    @property
    def known(self) -> np.ndarray:
        """Which references are known, (n, labels) bool."""
        return ~np.isnan(self.truth)

    @property
    def counts(self) -> list[int]:
        """Number of known references for each label."""
        return [int(count) for count in self.known.sum(axis=0)]

    @property
    def n(self) -> int:
        """Number of samples with any known reference."""
        return int(self.known.any(axis=1).sum())


def probability_scores(
    probabilities: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    min_positives: int = 8,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute AUROC, average precision, Brier score and F1 of each label, and their means.

    Args:
        probabilities: (n, k) probabilities of yes, in [0, 1].
        truth: (n, k) references: 1 yes, 0 no, NaN unknown; unknown cells are excluded.
        names: Names of the k labels.
        threshold: Minimum probability of the answer yes, for F1.
        min_positives: A label with fewer positives, or without any known negative, is not scored
            and is excluded from the means.
        groups: The study of each sample; intervals resample whole studies. None treats samples as
            independent.

    Returns:
        ``AUROC/<name>`` and so on for each label, then ``AUROC_macro`` and so on; nothing if no
        label has enough positives. Brier (1950) is a mean squared error; lower is better.

    Raises:
        InputError: If shapes differ or a value is out of its range.
    """
    probabilities, truth = _checked(probabilities, truth, names)
    positives = (truth == 1).sum(axis=0)
    enough = (positives >= max(min_positives, 1)) & (truth == 0).any(axis=0)
    columns: list[int] = np.flatnonzero(enough).tolist()
    if not columns:
        return []
    labels = _Labels(
        [names[i] for i in columns],
        probabilities[:, columns],
        truth[:, columns],
        groups,
        f"mean over labels of {min_positives} positives and more",
    )
    return [*_ranking_scores(labels), *_cell_scores(labels, threshold)]


def _ranking_scores(labels: _Labels) -> list[Score]:
    """Compute AUROC and average precision."""
    weights = bootstrap_weights(len(labels.truth), labels.groups)
    ranks = [_rank(p, t) for p, t in zip(labels.probabilities.T, labels.truth.T, strict=True)]
    scores = []
    for metric, measure in {"AUROC": _auroc, "average_precision": _average_precision}.items():
        for name, rank, n in zip(labels.names, ranks, labels.counts, strict=True):
            statistic = _mean_statistic([rank], measure)
            score = resampled_score(f"{metric}/{name}", statistic, metric, labels.groups, weights)
            scores.append(replace(score, n=n))
        macro = resampled_score(
            f"{metric}_macro",
            _mean_statistic(ranks, measure),
            f"{metric}, {labels.macro_suffix}",
            labels.groups,
            weights,
        )
        scores.append(replace(macro, n=labels.n))
    return scores


def _cell_scores(labels: _Labels, threshold: float) -> list[Score]:
    """Compute Brier score and F1: ratios of sums over the cells with a known reference."""
    known, positive = labels.known, labels.truth == 1
    predicted = (labels.probabilities >= threshold) & known
    errors = np.where(known, (labels.probabilities - np.nan_to_num(labels.truth)) ** 2, 0.0)
    f1_counts = np.stack([predicted & positive, predicted, positive], axis=2)
    metrics = {
        "Brier": (np.stack([errors, known], axis=2), share_of_sums, "Brier score, lower is better"),
        "F1": (f1_counts, f1_of_sums, f"F1 at probability {threshold}"),
    }
    scores = []
    for metric, (counts, ratio, signature) in metrics.items():
        cells = counts.astype(float)
        for i, (name, n) in enumerate(zip(labels.names, labels.counts, strict=True)):
            score = ratio_score(f"{metric}/{name}", cells[:, i], ratio, signature, labels.groups)
            scores.append(replace(score, n=n))
        macro = ratio_score(
            f"{metric}_macro",
            cells.reshape(len(cells), -1),
            _mean_ratio(ratio, cells.shape[2]),
            f"{signature}, {labels.macro_suffix}",
            labels.groups,
        )
        scores.append(replace(macro, n=labels.n))
    return scores


def auroc_score(
    name: str,
    probabilities: np.ndarray,
    truth: np.ndarray,
    signature: str,
    groups: Sequence[str] | None = None,
) -> Score:
    """Compute the AUROC of one label with its interval; the arguments are those of `auroc`."""
    rank = _rank(np.asarray(probabilities, dtype=float), np.asarray(truth, dtype=float))
    weights = bootstrap_weights(len(truth), groups)
    return resampled_score(name, _mean_statistic([rank], _auroc), signature, groups, weights)


def resampled_score(
    name: str,
    statistic: Statistic,
    signature: str,
    groups: Sequence[str] | None,
    weights: np.ndarray,
) -> Score:
    """Compute a statistic of weighted samples with its bootstrap interval.

    The score's counts are an identity matrix, one column per sample, so that sums over resampled
    rows are weights and the score can be compared in pairs like any other. The matrix takes n²
    bytes.

    Args:
        name: Name of the score.
        statistic: Maps weights (r, n) to values (r,), nan where undefined.
        signature: See `Score`.
        groups: The groups from which `weights` were made.
        weights: (r, n) from `bootstrap_weights`.
    """
    n = weights.shape[1]

    def rows(sums: np.ndarray) -> np.ndarray:
        step = max(1, _CELLS // max(n, 1))
        parts = [statistic(sums[i : i + step]) for i in range(0, len(sums), step)]
        return np.concatenate(parts)

    ratio = RowRatio(rows)
    values = rows(weights) if n else np.full(1, np.nan)
    low = high = float("nan")
    if not np.isnan(values).all():
        low, high = (float(v) for v in np.nanpercentile(values, [2.5, 97.5]))
    value = ratio(np.ones(n)) if n else float("nan")
    counts = np.eye(n, dtype=np.int8)
    return Score(name, value, n, low, high, signature, counts, ratio, groups)


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Average the values that are not NaN along an axis of a 2-D array; NaN if there are none."""
    valid = ~np.isnan(values)
    sums, n = np.where(valid, values, 0.0).sum(axis=axis), valid.sum(axis=axis)
    return np.divide(sums, n, out=np.full(len(sums), np.nan), where=n > 0)


def _checked(
    probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    p, t = np.asarray(probabilities, dtype=float), np.asarray(truth, dtype=float)
    if p.ndim != 2 or p.shape != t.shape or p.shape[1] != len(names):
        raise InputError(
            f"probabilities {p.shape}, truth {t.shape} and {len(names)} names do not match; "
            "expected (n, k), (n, k) and k names"
        )
    if not ((p >= 0) & (p <= 1)).all():
        row, column = (int(i[0]) for i in np.nonzero(~((p >= 0) & (p <= 1))))
        raise InputError(
            f"probability of {names[column]} in row {row} is {p[row, column]}; "
            "expected a number in [0, 1]"
        )
    if not (np.isin(t, (0, 1)) | np.isnan(t)).all():
        row, column = (int(i[0]) for i in np.nonzero(~(np.isin(t, (0, 1)) | np.isnan(t))))
        raise InputError(
            f"truth of {names[column]} in row {row} is {t[row, column]}; expected 1, 0 or NaN"
        )
    return p, t


@dataclass(frozen=True)
class _Rank:
    """Samples with a known reference, from the highest probability to the lowest."""

    rows: np.ndarray  # (m,) indices into the n samples
    positive: np.ndarray  # (m,) float64, 1 or 0
    starts: np.ndarray  # (t,) where each run of equal probabilities begins

    def sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weights (r, t) of positives and of negatives at each distinct probability."""
        if not len(self.rows):
            return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
        ranked = weights[:, self.rows]
        positives = np.add.reduceat(ranked * self.positive, self.starts, axis=1)
        return positives, np.add.reduceat(ranked, self.starts, axis=1) - positives


def _rank(probabilities: np.ndarray, truth: np.ndarray) -> _Rank:
    rows = np.flatnonzero(~np.isnan(truth.astype(float)))
    rows = rows[np.argsort(-probabilities[rows], kind="stable")]
    ordered = probabilities[rows]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(rows) else rows
    return _Rank(rows, truth[rows].astype(float), starts)


def _auroc(rank: _Rank, weights: np.ndarray) -> np.ndarray:
    positives, negatives = rank.sums(weights)
    all_negatives = negatives.sum(axis=1)
    below = all_negatives[:, None] - negatives.cumsum(axis=1)
    won = (positives * (below + negatives / 2)).sum(axis=1)
    pairs = positives.sum(axis=1) * all_negatives
    return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def _average_precision(rank: _Rank, weights: np.ndarray) -> np.ndarray:
    positives, negatives = rank.sums(weights)
    hits = positives.cumsum(axis=1)
    predicted = hits + negatives.cumsum(axis=1)
    precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
    weighted = (positives * precision).sum(axis=1)
    total = positives.sum(axis=1)
    return np.divide(weighted, total, out=np.full(len(weights), np.nan), where=total > 0)


def _mean_statistic(
    ranks: Sequence[_Rank], measure: Callable[[_Rank, np.ndarray], np.ndarray]
) -> Statistic:
    """Return the mean of a measure over the labels for which it is defined in a resample."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        return nan_mean(np.stack([measure(rank, weights) for rank in ranks]), axis=0)

    return statistic


def _mean_ratio(ratio: Callable[[np.ndarray], float], width: int) -> Callable[[np.ndarray], float]:
    """Return the mean of a ratio over labels, whose sums, ``width`` each, follow one another."""

    def macro(sums: np.ndarray) -> float:
        values = [ratio(row) for row in sums.reshape(-1, width)]
        defined = [v for v in values if not np.isnan(v)]
        return float(sum(defined) / len(defined)) if defined else float("nan")

    return macro
