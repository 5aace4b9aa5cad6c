"""Calibration and thresholds of a finding head, from predictions for held-out training images.

The predictions come from cross-validation inside the training split. If the encoder itself was
trained on these images, its features would make them too confident; they then come from a run of
the same encoder recipe that held part of the training split out (its own `val` split).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit, logit

from xraygpt.common.errors import InputError
from xraygpt.common.keyed_random import keyed_int
from xraygpt.models.findings import HeldOutCounts

FOLDS = 5


@dataclass(frozen=True)
class HeldOut:
    """Predictions for images that neither the regressions nor the encoder was fitted on.

    Attributes:
        names: F findings.
        probabilities: (n, F) in (0, 1).
        labels: (n, F), 1 present, 0 absent.
    """

    names: tuple[str, ...]
    probabilities: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Calibration:
    """Logits of calibrated probabilities are ``slope * logit + intercept`` (Platt 1999)."""

    slope: float
    intercept: float

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """Calibrate probabilities of any shape."""
        return np.asarray(expit(self.slope * _logit(probabilities) + self.intercept))


def calibrate(held_out: HeldOut) -> Calibration:
    """Fit one slope and one intercept to all findings together.

    Raises:
        InputError: No finding is both present and absent among the held-out images.
    """
    from sklearn.linear_model import LogisticRegression

    labels = held_out.labels.ravel()
    if labels.min() == labels.max():
        raise InputError("the held-out images have no findings to calibrate the head with")
    fitted = LogisticRegression(C=1e6, max_iter=1000)
    fitted.fit(_logit(held_out.probabilities).reshape(-1, 1), labels)
    return Calibration(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))


def expected_f1_threshold(probabilities: np.ndarray) -> float:
    """Return the threshold with the highest expected F1 under calibrated probabilities.

    If the k likeliest of n images are called positive, the expected F1 is about
    ``2 Σ_{i ≤ k} p_i / (k + Σ_i p_i)`` (Ye et al. 2012, ICML). Unlike the best F1 on labels, this
    does not depend on the few positives of a rare finding.

    Args:
        probabilities: (n,) calibrated probabilities in [0, 1].
    """
    ordered = np.sort(probabilities)[::-1]
    f1 = 2 * np.cumsum(ordered) / (np.arange(1, len(ordered) + 1) + ordered.sum())
    return float(ordered[int(f1.argmax())])


def cross_validated(train: Any, selected: Sequence[int], strength: float) -> HeldOut:
    """Predict each training image with regressions that were fitted without its study's fold.

    Args:
        train: A `probe.Split`.
        selected: Indices of the findings.
        strength: See `probe.fit`.
    """
    from xraygpt.jobs.probe import fit

    folds = np.array([keyed_int("head fold", study) % FOLDS for study in train.studies])
    labels = train.labels[:, list(selected)]
    rows = [np.empty(0, dtype=int)]
    parts = [np.empty((0, len(selected)))]
    for fold in range(FOLDS):
        held, kept = np.flatnonzero(folds == fold), folds != fold
        varied = (labels[kept].min(axis=0) < labels[kept].max(axis=0)) if kept.any() else [False]
        if len(held) and np.all(varied):
            rows.append(held)
            parts.append(fit(train.features[kept], labels[kept], strength)(train.features[held]))
    index = np.concatenate(rows)
    if not len(index):
        raise InputError(
            "there are too few training images to set the head's thresholds by cross-validation"
        )
    names = tuple(train.names[i] for i in selected)
    return HeldOut(names, np.concatenate(parts), labels[index])


def from_run(run: Path, base: bool, strength: float, accelerator: Any) -> HeldOut:
    """Predict the images that an encoder's run held out, with that run's encoder.

    Args:
        run: Run of the encoder's recipe; its first corpus has a `val` split, on which nothing was
            trained.
        base: Whether the features of the initial encoder are appended (``+base``).
        strength: See `probe.fit`.
        accelerator: Determines the device to compute on.
    """
    from xraygpt.common.checkpoint import find_checkpoint
    from xraygpt.common.config import load
    from xraygpt.experiment import Training
    from xraygpt.jobs.probe import fit, learnable, load_splits

    experiment = load(Training, find_checkpoint(run) / "config.yaml", ["model.ckpt=null"])
    name = f"run/{run}{'+base' if base else ''}"
    _, train, val = load_splits(experiment, name, accelerator, split="val")
    selected = learnable(train)
    fitted = fit(train.features, train.labels[:, selected], strength)
    return HeldOut(
        tuple(train.names[i] for i in selected), fitted(val.features), val.labels[:, selected]
    )


def thresholds_for(
    names: Sequence[str], held_out: HeldOut, calibration: Calibration
) -> list[float]:
    """Return a threshold for each finding; a finding that was not held out gets the median.

    Args:
        names: Findings of the head.
        held_out: Predictions for held-out images.
        calibration: Calibration that the head's probabilities get.
    """
    calibrated = calibration(held_out.probabilities)
    by_name = {
        name: expected_f1_threshold(column)
        for name, column in zip(held_out.names, calibrated.T, strict=True)
    }
    middle = float(np.median(list(by_name.values())))
    return [by_name.get(name, middle) for name in names]


def count_held_out(
    held_out: HeldOut, calibration: Calibration, thresholds: Mapping[str, float]
) -> dict[str, HeldOutCounts]:
    """Count how often the head is right about each finding.

    Args:
        held_out: Predictions for held-out images.
        calibration: Calibration that the head's probabilities get.
        thresholds: The head's threshold for each finding.
    """
    calibrated = calibration(held_out.probabilities)
    counts = {}
    for i, name in enumerate(held_out.names):
        if name in thresholds:
            present, reported = held_out.labels[:, i] > 0, calibrated[:, i] >= thresholds[name]
            numbers = (present.sum(), reported.sum(), (present & reported).sum())
            counts[name] = HeldOutCounts(*map(int, numbers))
    return counts


def _logit(probabilities: np.ndarray) -> np.ndarray:
    return np.asarray(logit(np.clip(probabilities, 1e-7, 1 - 1e-7)))
