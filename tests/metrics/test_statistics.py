"""Intervals and paired differences of scores."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.metrics.statistics import mean_score, ratio_score, weighted_sum


def f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / (counts[1] + counts[2]))


def test_a_small_difference_is_significant_in_pairs():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(size=200)  # of each sample, the same for both models
    a, b = mean_score("m", difficulty + 0.1, "s"), mean_score("m", difficulty, "s")
    assert a.low < b.high  # the unpaired intervals overlap
    difference = weighted_sum([(1.0, a), (-1.0, b)])
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))


def test_no_difference_is_not_significant():
    rng = np.random.default_rng(1)
    a, b = (mean_score("m", rng.normal(size=100), "s") for _ in range(2))
    difference = weighted_sum([(1.0, a), (-1.0, b)])
    assert difference.low < 0 < difference.high


def test_weighted_sum_averages_ratios_not_sums():
    few = ratio_score("F1", np.array([[1.0, 1.0, 1.0]]), f1, "s")
    many = ratio_score("F1", np.array([[0.0, 8.0, 2.0]]), f1, "s")
    assert weighted_sum([(0.5, few), (0.5, many)]).value == pytest.approx(0.5)


def test_whole_studies_are_resampled_in_both():
    """Ten images of one study are one observation: a difference in it alone is not significant."""
    groups = ["a"] * 10 + ["b"]
    a = mean_score("m", [1.0] * 10 + [-1.0], "s", groups)
    b = mean_score("m", [0.0] * 11, "s", groups)
    difference = weighted_sum([(1.0, a), (-1.0, b)])
    assert difference.low < 0 < difference.high
