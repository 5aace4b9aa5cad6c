"""Probabilities of several yes-or-no answers against the truth: ranking, calibration, decisions.

AUROC and average precision rank samples against each other, so they are no ratio of sums over
samples. Their bootstrap draws how often each sample enters and weighs it by that: one sort and two
running sums serve every draw. Draws and percentiles are those of `statistics.bootstrap`.

Shapes: n samples, k labels, r draws, m samples whose truth is known, t distinct probabilities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import Score, draw_weights, ratio_score

#: From the weights (r, n) of the samples to the number (r,) in each draw.
Statistic = Callable[[np.ndarray], np.ndarray]

_CELLS = 2_000_000  # weights looked at in one go: keeps temporary arrays below some 100 MB


def auroc(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve, in [0, 1]: how often a positive outranks a negative.

    Ties count half (Mann and Whitney 1947; Hanley and McNeil 1982).

    Args:
        probabilities: (n,), of the answer yes; any numbers that rank will do.
        truth: (n,), 1 yes, 0 no, NaN unknown and left out.

    Returns:
        nan where one of the two is absent.
    """
    ones = np.ones((1, len(probabilities)))
    return float(_auroc(_rank(np.asarray(probabilities), np.asarray(truth)), ones)[0])


def average_precision(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean precision at the positives, ranked by probability, in [0, 1]; arguments as `auroc`.

    The step-wise sum over distinct probabilities, without interpolation, as scikit-learn has it.
    nan where there is no positive.
    """
    ones = np.ones((1, len(probabilities)))
    return float(_precision(_rank(np.asarray(probabilities), np.asarray(truth)), ones)[0])


def probability_scores(
    probabilities: np.ndarray,
    truth: np.ndarray,
    names: Sequence[str],
    *,
    threshold: float = 0.5,
    min_positives: int = 8,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """AUROC, average precision, Brier score and F1 of each label and their means over labels.

    Args:
        probabilities: (n, k) in [0, 1], of the answer yes.
        truth: (n, k), 1 yes, 0 no, NaN unknown: that cell is left out.
        names: k labels.
        threshold: From which probability on an answer is yes, for F1.
        min_positives: A label with fewer, or without any known negative, gets no line and does not
            enter the means.
        groups: Per sample its study, which intervals resample; None takes samples as independent.

    Returns:
        ``AUROC/<name>`` and so on for each label, then ``AUROC_macro`` and so on; nothing where no
        label has enough positives. Brier (1950) is a mean squared error, lower is better.

    Raises:
        InputError: If shapes differ or a value is out of its range.
    """
    probabilities, truth = _checked(probabilities, truth, names)
    yes, known = truth == 1, ~np.isnan(truth)
    few = f"labels of {min_positives} positives and more"
    enough = (yes.sum(axis=0) >= max(min_positives, 1)) & (truth == 0).any(axis=0)
    chosen: list[int] = np.flatnonzero(enough).tolist()
    if not chosen:
        return []
    draws = draw_weights(len(truth), groups)
    scores = []
    ranks = [_rank(probabilities[:, i], truth[:, i]) for i in chosen]
    own_n = known[:, chosen].sum(axis=0)
    n = int(known[:, chosen].any(axis=1).sum())
    for metric, measure in {"AUROC": _auroc, "average_precision": _precision}.items():
        for rank, i, size in zip(ranks, chosen, own_n, strict=True):
            one = resampled_score(
                f"{metric}/{names[i]}", _of([rank], measure), metric, groups, draws
            )
            scores.append(replace(one, n=int(size)))
        macro = resampled_score(
            f"{metric}_macro", _of(ranks, measure), f"{metric}, mean over {few}", groups, draws
        )
        scores.append(replace(macro, n=n))
    said = (probabilities >= threshold) & known
    errors = np.where(known, (probabilities - np.nan_to_num(truth)) ** 2, 0.0)
    sums = {
        "Brier": (np.stack([errors, known], axis=2), _mean, "Brier score, lower is better"),
        "F1": (np.stack([said & yes, said, yes], axis=2), _f1, f"F1 at probability {threshold}"),
    }
    for metric, (counts, ratio, signature) in sums.items():
        cells = counts[:, chosen].astype(float)
        for place, i in enumerate(chosen):
            score = ratio_score(f"{metric}/{names[i]}", cells[:, place], ratio, signature, groups)
            scores.append(replace(score, n=int(own_n[place])))
        macro = ratio_score(
            f"{metric}_macro",
            cells.reshape(len(cells), -1),
            _over_labels(ratio, cells.shape[2]),
            f"{signature}, mean over {few}",
            groups,
        )
        scores.append(replace(macro, n=n))
    return scores


def resampled_score(
    name: str,
    statistic: Statistic,
    signature: str,
    groups: Sequence[str] | None,
    draws: np.ndarray,
) -> Score:
    """A number of weighted samples with the interval of its bootstrap.

    The score's counts are one column a sample, so that sums over drawn rows are weights and scores
    can be compared in pairs like any other; they take n² bytes.

    Args:
        name: Of the metric.
        statistic: From weights (r, n) to the number (r,), nan where it is not defined.
        signature: See `Score`.
        groups: The same that the draws were made with.
        draws: (r, n) from `draw_weights`.
    """
    n = draws.shape[1]

    def ratio(sums: np.ndarray) -> float:
        return float(statistic(sums[None].astype(float))[0])

    step = max(1, _CELLS // max(n, 1))
    parts = [statistic(draws[i : i + step]) for i in range(0, len(draws), step)]
    values = np.concatenate(parts) if n else np.full(1, np.nan)
    low = high = float("nan")
    if not np.isnan(values).all():
        low, high = (float(v) for v in np.nanpercentile(values, [2.5, 97.5]))
    value = ratio(np.ones(n)) if n else float("nan")
    counts = np.eye(n, dtype=np.int8)
    return Score(name, value, n, low, high, signature, counts, ratio, groups)


def _checked(
    probabilities: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    p, t = np.asarray(probabilities, dtype=float), np.asarray(truth, dtype=float)
    if p.ndim != 2 or p.shape != t.shape or p.shape[1] != len(names):
        raise InputError(
            f"probabilities {p.shape}, truth {t.shape} and {len(names)} names do not fit; "
            "meant are (n, k), (n, k) and k"
        )
    if not ((p >= 0) & (p <= 1)).all():
        row, column = (int(i[0]) for i in np.nonzero(~((p >= 0) & (p <= 1))))
        raise InputError(
            f"probability of {names[column]} in row {row} is {p[row, column]}; give one in [0, 1]"
        )
    if not (np.isin(t, (0, 1)) | np.isnan(t)).all():
        row, column = (int(i[0]) for i in np.nonzero(~(np.isin(t, (0, 1)) | np.isnan(t))))
        raise InputError(
            f"truth of {names[column]} in row {row} is {t[row, column]}; 1, 0 or NaN is meant"
        )
    return p, t


@dataclass(frozen=True)
class _Rank:
    """Samples of known truth from the highest probability to the lowest."""

    rows: np.ndarray  # (m,) places among the n samples
    positive: np.ndarray  # (m,) float64, 1 or 0
    starts: np.ndarray  # (t,) where each run of equal probabilities begins

    def sums(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight of positives and of negatives (r, t) at each distinct probability."""
        if not len(self.rows):
            return np.zeros((len(weights), 1)), np.zeros((len(weights), 1))
        drawn = weights[:, self.rows]
        positives = np.add.reduceat(drawn * self.positive, self.starts, axis=1)
        return positives, np.add.reduceat(drawn, self.starts, axis=1) - positives


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


def _precision(rank: _Rank, weights: np.ndarray) -> np.ndarray:
    positives, negatives = rank.sums(weights)
    hits = positives.cumsum(axis=1)
    said = hits + negatives.cumsum(axis=1)
    precision = np.divide(hits, said, out=np.zeros_like(hits), where=said > 0)
    found = (positives * precision).sum(axis=1)
    total = positives.sum(axis=1)
    return np.divide(found, total, out=np.full(len(weights), np.nan), where=total > 0)


def _of(ranks: Sequence[_Rank], measure: Callable[[_Rank, np.ndarray], np.ndarray]) -> Statistic:
    """Mean over labels of a measure; a draw leaves out labels for which it is not defined."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = np.stack([measure(rank, weights) for rank in ranks])
        there = ~np.isnan(values)
        sums, n = np.where(there, values, 0.0).sum(axis=0), there.sum(axis=0)
        return np.divide(sums, n, out=np.full(len(weights), np.nan), where=n > 0)

    return statistic


def _over_labels(ratio: Callable[[np.ndarray], float], width: int) -> Callable[[np.ndarray], float]:
    """Mean of a ratio over the labels whose sums, ``width`` each, stand side by side."""

    def macro(sums: np.ndarray) -> float:
        values = [ratio(one) for one in sums.reshape(-1, width)]
        there = [v for v in values if not np.isnan(v)]
        return float(sum(there) / len(there)) if there else float("nan")

    return macro


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1]) if sums[1] else float("nan")


def _f1(sums: np.ndarray) -> float:
    return float(2 * sums[0] / max(sums[1] + sums[2], 1))
