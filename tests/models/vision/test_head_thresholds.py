"""Calibration and thresholds of a finding head."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from xraygpt.common.errors import InputError
from xraygpt.jobs import head_thresholds as job
from xraygpt.jobs.probe import Split
from xraygpt.vocabulary.chest_labeller import FINDINGS


def test_calibration_undoes_overconfidence():
    rng = np.random.default_rng(0)
    truth = expit(rng.normal(-1, 1.5, (4000, 3)))
    labels = (rng.random(truth.shape) < truth).astype(float)
    overconfident = expit(2 * logit(truth) + 0.5)
    found = job.calibrate(job.HeldOut(("a", "b", "c"), overconfident, labels))
    assert found.slope == pytest.approx(0.5, abs=0.03)
    assert found.intercept == pytest.approx(-0.25, abs=0.06)
    np.testing.assert_allclose(found(overconfident), truth, atol=0.03)


def test_the_threshold_maximises_the_expected_f1():
    # Calling the first image positive: 2 * 0.9 / (1 + 1.3); the first two: 2 * 1.2 / (2 + 1.3).
    assert job.expected_f1_threshold(np.array([0.1, 0.9, 0.3])) == 0.9
    # With a second likely image, both are called positive.
    assert job.expected_f1_threshold(np.array([0.1, 0.9, 0.6])) == 0.6


def test_the_threshold_is_close_to_the_best_on_many_labels():
    rng = np.random.default_rng(1)
    p = rng.beta(0.4, 3, 20_000)
    labels = rng.random(len(p)) < p

    def f1(threshold):
        called = p >= threshold
        return 2 * (labels & called).sum() / (labels.sum() + called.sum())

    best = max(f1(t) for t in np.linspace(0.02, 0.9, 89))
    assert f1(job.expected_f1_threshold(p)) > best - 0.01


def test_cross_validation_predicts_each_image_without_its_study():
    """Features that identify a study help a fit on the same images, not on held-out ones."""
    rng = np.random.default_rng(2)
    count = 80
    labels = np.zeros((count, len(FINDINGS)))
    labels[:, 3] = rng.random(count) < 0.5
    studies = [f"s{i}" for i in range(count)]
    train = Split(np.eye(count), labels, studies, [()] * count)
    held_out = job.cross_validated(train, [3], 1e3)
    assert held_out.probabilities.shape == held_out.labels.shape == (count, 1)
    positive = held_out.labels[:, 0] == 1
    difference = held_out.probabilities[positive].mean() - held_out.probabilities[~positive].mean()
    assert abs(difference) < 0.2


def test_too_few_images_are_refused():
    one = Split(np.eye(2), np.zeros((2, len(FINDINGS))), ["a", "b"], [(), ()])
    with pytest.raises(InputError, match="too few training images"):
        job.cross_validated(one, [3], 1.0)


def test_a_finding_that_was_not_held_out_gets_the_median():
    p = np.array([[0.9, 0.5], [0.2, 0.1], [0.1, 0.05]])
    held_out = job.HeldOut(("edema", "scar"), p, (p > 0.4).astype(float))
    same = job.Calibration(1.0, 0.0)
    edema, scar, other = job.thresholds_for(["edema", "scar", "mass"], held_out, same)
    assert (edema, scar) == (pytest.approx(0.9), pytest.approx(0.5))
    assert other == pytest.approx(0.7)
