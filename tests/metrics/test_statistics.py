"""Intervals and paired differences of scores."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.metrics.statistics import mean_score, ratio_score, weighted_sum


def f1(counts: np.ndarray) -> float:
    return float(2 * counts[0] / (counts[1] + counts[2]))


def test_a_difference_small_beside_the_spread_is_clear_in_pairs():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=200)  # every sample's own difficulty, shared by both models
    a, b = mean_score("m", hard + 0.1, "s"), mean_score("m", hard, "s")
    assert a.low < b.high  # alone, the intervals overlap
    ahead = weighted_sum([(1.0, a), (-1.0, b)])
    assert (ahead.value, ahead.low, ahead.high) == pytest.approx((0.1, 0.1, 0.1))


def test_no_difference_is_not_clear():
    rng = np.random.default_rng(1)
    a, b = (mean_score("m", rng.normal(size=100), "s") for _ in range(2))
    ahead = weighted_sum([(1.0, a), (-1.0, b)])
    assert ahead.low < 0 < ahead.high


def test_the_mean_of_ratios_is_not_the_ratio_of_sums():
    few = ratio_score("F1", np.array([[1.0, 1.0, 1.0]]), f1, "s")
    many = ratio_score("F1", np.array([[0.0, 8.0, 2.0]]), f1, "s")
    assert weighted_sum([(0.5, few), (0.5, many)]).value == pytest.approx(0.5)


def test_studies_are_resampled_whole_in_both():
    """Ten images of one study are one observation: a difference seen in it alone is not clear."""
    groups = ["a"] * 10 + ["b"]
    a = mean_score("m", [1.0] * 10 + [-1.0], "s", groups)
    b = mean_score("m", [0.0] * 11, "s", groups)
    alone = weighted_sum([(1.0, a), (-1.0, b)])
    assert alone.low < 0 < alone.high
