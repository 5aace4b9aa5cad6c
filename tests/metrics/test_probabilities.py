"""AUROC, average precision, Brier and F1 against scikit-learn; intervals against `bootstrap`."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from xraygpt.common.errors import InputError
from xraygpt.metrics.probabilities import (
    auroc,
    average_precision,
    bootstrap_weights,
    probability_scores,
)
from xraygpt.metrics.statistics import bootstrap, weighted_sum


def sample(seed: int = 0, n: int = 200, k: int = 6, unknown: float = 0.2):
    """Informative probabilities with many ties, and references with gaps."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, k)) < np.linspace(0.05, 0.6, k)).astype(float)
    p = np.clip(np.round(0.3 * truth + 0.7 * rng.random((n, k)), 2), 0, 1)
    truth[rng.random((n, k)) < unknown] = np.nan
    return p, truth, [f"label {i}" for i in range(k)]


def by_name(*args, **kwargs):
    return {s.name: s for s in probability_scores(*args, **kwargs)}


@pytest.mark.slow
def test_scores_equal_scikit_learn():
    """Largest difference of 240 labels 1e-16 (AUROC, Brier), 3e-16 (average precision), 0 (F1)."""
    for seed in range(5):
        p, truth, names = sample(seed)
        scores = by_name(p, truth, names, min_positives=1, threshold=0.45)
        values: dict[str, list[float]] = {
            m: [] for m in ("AUROC", "average_precision", "Brier", "F1")
        }
        for i, name in enumerate(names):
            known = ~np.isnan(truth[:, i])
            t, q = truth[known, i], p[known, i]
            expected = {
                "AUROC": roc_auc_score(t, q),
                "average_precision": average_precision_score(t, q),
                "Brier": brier_score_loss(t, q),
                "F1": f1_score(t, q >= 0.45),
            }
            for metric, value in expected.items():
                assert scores[f"{metric}/{name}"].value == pytest.approx(value, abs=1e-12)
                assert scores[f"{metric}/{name}"].n == known.sum()
                values[metric].append(value)
        for metric, per_label in values.items():
            assert scores[f"{metric}_macro"].value == pytest.approx(np.mean(per_label), abs=1e-12)
            assert np.std(per_label) > 0.005


def test_weights_count_as_copies():
    """The value of one resample is the score of its rows."""
    p, truth, names = sample()
    score = by_name(p, truth, names)["AUROC/label 3"]
    other = by_name(p, truth, names)["average_precision/label 3"]
    for weights in bootstrap_weights(200, resamples=5, seed=3):
        rows = np.repeat(np.arange(200), weights.astype(int))
        known = rows[~np.isnan(truth[rows, 3])]
        expected = roc_auc_score(truth[known, 3], p[known, 3])
        assert score.ratio(weights) == pytest.approx(expected, abs=1e-12)
        expected = average_precision_score(truth[known, 3], p[known, 3])
        assert other.ratio(weights) == pytest.approx(expected, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_equal_the_bootstrap(grouped):
    p, truth, names = sample(n=60, k=3)
    groups = [f"s{i // 3}" for i in range(60)] if grouped else None
    for score in by_name(p, truth, names, groups=groups, min_positives=3).values():
        expected = bootstrap(score.counts, score.ratio, groups)
        assert (score.low, score.high) == pytest.approx(expected, abs=1e-12)
        assert score.low < score.value < score.high


def test_paired_differences_work():
    p, truth, names = sample(n=60, k=3, unknown=0)
    noise = np.random.default_rng(1).random(p.shape)
    good, bad = (by_name(x, truth, names, min_positives=3)["AUROC_macro"] for x in (p, noise))
    difference = weighted_sum([(1.0, good), (-1.0, bad)])
    assert difference.value == pytest.approx(good.value - bad.value)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.high - difference.low < (good.high - good.low) + (bad.high - bad.low)


def test_by_hand():
    """Positives .9, .4; negatives .4, .1: 2 + .5 + 1 of 4 pairs won; precision 1, then 2 of 3."""
    p, truth = np.array([0.9, 0.4, 0.4, 0.1, 0.7]), np.array([1, 1, 0, 0, np.nan])
    assert auroc(p, truth) == pytest.approx(3.5 / 4)
    assert average_precision(p, truth) == pytest.approx((1 + 2 / 3) / 2)
    assert auroc(p[::-1], truth[::-1]) == pytest.approx(3.5 / 4)


def test_without_positives_or_negatives():
    ones = np.ones(3)
    assert np.isnan(auroc(ones, ones)) and np.isnan(auroc(ones, 0 * ones))
    assert average_precision(ones, ones) == 1 and np.isnan(average_precision(ones, 0 * ones))
    assert np.isnan(auroc(ones, ones * np.nan)) and np.isnan(auroc(np.zeros(0), np.zeros(0)))


def test_rare_labels_are_not_scored():
    p, truth, names = sample(unknown=0)
    positives = truth.sum(axis=0)
    floor = int(np.sort(positives)[2])
    scores = by_name(p, truth, names, min_positives=floor)
    selected = [i for i in range(6) if positives[i] >= floor]
    assert sorted(n for n in scores if n.startswith("F1/")) == [f"F1/label {i}" for i in selected]
    expected = np.mean([roc_auc_score(truth[:, i], p[:, i]) for i in selected])
    assert scores["AUROC_macro"].value == pytest.approx(expected, abs=1e-12)
    assert probability_scores(p, truth, names, min_positives=201) == []
    assert probability_scores(p, np.ones_like(truth), names) == []  # no negative
    assert probability_scores(np.zeros((0, 6)), np.zeros((0, 6)), names) == []


def test_samples_of_one_study_are_not_independent():
    p, truth, names = sample(n=40, k=2, unknown=0)
    studies = [f"s{i}" for i in range(40) for _ in range(8)]
    many, repeated_truth = p.repeat(8, axis=0), truth.repeat(8, axis=0)
    width = {
        key: score.high - score.low
        for key, score in {
            "grouped": by_name(many, repeated_truth, names, groups=studies)["AUROC_macro"],
            "naive": by_name(many, repeated_truth, names)["AUROC_macro"],
            "single": by_name(p, truth, names, min_positives=1)["AUROC_macro"],
        }.items()
    }
    assert width["naive"] < 0.5 * width["grouped"]
    # np.unique sorts the studies as text, so the resamples differ from those of single samples
    assert width["grouped"] == pytest.approx(width["single"], rel=0.15)


def test_it_is_fast_enough():
    """n 300, k 25, 1000 resamples: 1.2 s on one busy core; scikit-learn would take minutes."""
    p, truth, names = sample(n=300, k=25)
    start = time.process_time()
    assert len(probability_scores(p, truth, names)) > 80
    assert time.process_time() - start < 10


def test_invalid_inputs_raise():
    p, truth, names = sample()
    with pytest.raises(InputError, match=r"\(200, 6\), truth \(199, 6\) and 6 names"):
        probability_scores(p, truth[1:], names)
    with pytest.raises(InputError, match="and 2 names"):
        probability_scores(p, truth, names[:2])
    wrong = p.copy()
    wrong[7, 2] = np.nan
    with pytest.raises(InputError, match="label 2 in row 7 is nan"):
        probability_scores(wrong, truth, names)
    with pytest.raises(InputError, match="truth of label 1 in row 4 is 2"):
        truth[4, 1] = 2
        probability_scores(p, truth, names)
    with pytest.raises(InputError, match="3 groups for 200"):
        probability_scores(*sample(), groups=["a"] * 3)
