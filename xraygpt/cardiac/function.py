"""Ventricular function of a short-axis cine: segmentation, areas, volumes.

A network expects rows and columns in the order of its training images, which files do not state.
Both orders are tried on one phase, and the one in which the network is more confident is used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError
from xraygpt.measure.cardiac_function import (
    MeasurementError,
    Ventricle,
    find_phases,
    mass,
    stack_volumes,
)
from xraygpt.segmentation.base import Segmenter
from xraygpt.segmentation.labels import INFARCT, LV, MYOCARDIUM, NO_REFLOW, RV

log = logging.getLogger(__name__)

PROBES = 2  # slices in which the cavity is followed to find end diastole and end systole
STRIDE = 3  # phases between two phases that are tried first


@dataclass(frozen=True)
class StackLabels:
    """Label maps of a cine stack.

    Attributes:
        phases: (T,) indices of the segmented phases, ascending.
        labels: (T, S, H, W) uint8, values as in `segmentation.labels`.
        confidence: (T, S) as in `Segmentation`.
        transposed: Whether rows and columns were exchanged for the segmenter.
    """

    phases: np.ndarray
    labels: np.ndarray
    confidence: np.ndarray
    transposed: bool


@dataclass(frozen=True)
class Function:
    """Function of both ventricles.

    Attributes:
        phases: (T,) indices of the measured phases in the stack.
        left: The left ventricle; its indices of end diastole and systole are positions in `phases`.
        right: The right ventricle at the same phases; None if the segmenter does not find it.
        reasons: Why a value is missing, one sentence each.
    """

    phases: np.ndarray
    left: Ventricle
    right: Ventricle | None
    reasons: tuple[str, ...] = ()


def segment_stack(
    stack: Stack, segmenter: Segmenter, phases: Sequence[int] | None = None
) -> StackLabels:
    """Segment all slices of some phases.

    Args:
        stack: A short-axis cine.
        segmenter: Segmenter for short-axis images.
        phases: Indices of phases; None means all.

    Raises:
        DataError: An image cannot be read.
    """
    return _StackSegmenter(stack, segmenter).all_slices(
        range(stack.phases) if phases is None else phases
    )


def segment_extremes(stack: Stack, segmenter: Segmenter) -> StackLabels:
    """Segment all slices of only those phases that can be end diastole or end systole.

    The cavity in the two slices in which it is largest at first is followed at every third phase,
    then at all phases next to the largest and the smallest area. All slices are segmented of these
    two phases and their neighbours, and of further neighbours until both extremes have a neighbour
    on either side.

    Raises:
        DataError: An image cannot be read.
        MeasurementError: There is no cavity in the first phase.
    """
    segmented, count = _StackSegmenter(stack, segmenter), stack.phases
    areas = (segmented.all_slices([0]).labels[0] == LV).sum(axis=(1, 2))
    if not areas.any():
        raise MeasurementError("the first phase has no cavity of the left ventricle")
    probes = np.argsort(areas)[-PROBES:].tolist()
    known: dict[int, int] = {}

    def area(phase: int) -> int:
        if phase not in known:
            known[phase] = int((segmented.slices(phase, probes)[0] == LV).sum())
        return known[phase]

    chosen = set[int]()
    for extreme in (max, min):
        best = extreme(range(0, count, STRIDE), key=area)
        near = [(best + step) % count for step in range(1 - STRIDE, STRIDE)]
        best = extreme(near, key=area)
        chosen |= {(best + step) % count for step in (-1, 0, 1)}
    while True:
        labelled = segmented.all_slices(sorted(chosen))
        sums = (labelled.labels == LV).sum(axis=(1, 2, 3))
        phases = [int(labelled.phases[i]) for i in (sums.argmax(), sums.argmin())]
        missing = {(p + step) % count for p in phases for step in (-1, 1)} - chosen
        if not missing:
            return labelled
        chosen |= missing


class _StackSegmenter:
    """Segments slices of a stack, each once, in the orientation in which the segmenter is surer."""

    def __init__(self, stack: Stack, segmenter: Segmenter) -> None:
        self.stack, self.segmenter = stack, segmenter
        self.transposed: bool | None = None
        self._done: dict[tuple[int, int], tuple[np.ndarray, float]] = {}

    def all_slices(self, phases: Iterable[int]) -> StackLabels:
        chosen = sorted(set(phases))
        results = [self.slices(phase, range(self.stack.slices)) for phase in chosen]
        labels, confidence = (np.stack(parts) for parts in zip(*results, strict=True))
        return StackLabels(np.array(chosen), labels, confidence, bool(self.transposed))

    def slices(self, phase: int, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return (N, H, W) labels and (N,) confidences of some slices of a phase."""
        new = [i for i in slices if (phase, i) not in self._done]
        if new:
            images = np.stack([self.stack.image(phase, i) for i in new])
            labels, confidence = self._segment(images)
            for i, result in zip(new, zip(labels, confidence, strict=True), strict=True):
                self._done[phase, i] = result
        found = [self._done[phase, i] for i in slices]
        return np.stack([labels for labels, _ in found]), np.array([c for _, c in found])

    def _segment(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.transposed is None:
            results = {t: self.segmenter.segment(_turned(images, t)) for t in (False, True)}
            means = {t: float(result.confidence.mean()) for t, result in results.items()}
            self.transposed = means[True] > means[False]
            log.info(
                "%s: confidence %.3f as stored, %.3f with rows and columns exchanged; using %s",
                self.stack.name, means[False], means[True],
                "exchanged" if self.transposed else "as stored",
            )  # fmt: skip
            result = results[self.transposed]
        else:
            result = self.segmenter.segment(_turned(images, self.transposed))
        return _turned(result.labels, self.transposed), result.confidence


def _turned(images: np.ndarray, transposed: bool) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 1)) if transposed else images


def structure_areas(
    labels: np.ndarray, values: Sequence[int], spacing: Sequence[float]
) -> np.ndarray:
    """Return (T, S) areas in mm² of the pixels that have one of the values.

    Args:
        labels: (T, S, H, W).
        values: Values as in `segmentation.labels`.
        spacing: Distances between rows and between columns in mm.
    """
    counts = np.isin(labels, list(values)).sum(axis=(2, 3))
    areas: np.ndarray = counts * (spacing[0] * spacing[1])
    return areas


def measure_function(stack: Stack, labelled: StackLabels) -> Function:
    """Measure volumes, ejection fraction and mass from the label maps of a short-axis cine.

    Raises:
        DataError: The distances between pixels or between slices are unknown.
        MeasurementError: The masks allow no measurement; the message says why.
    """
    if stack.spacing is None:
        raise DataError(f"{stack.name}: there is no pixel spacing, so there are no volumes in mL")
    widths = stack.slice_widths
    if widths is None:
        raise DataError(
            f"{stack.name}: the distance between slices is unknown, so there are no volumes in mL"
        )
    cavity, muscle, right = (
        stack_volumes(structure_areas(labelled.labels, values, stack.spacing), widths)
        for values in ((LV,), (MYOCARDIUM, INFARCT, NO_REFLOW), (RV,))
    )
    phases = find_phases(cavity)
    left = Ventricle(cavity, phases, mass(float(muscle[phases.end_diastole])))
    reasons = list[str]()
    if not muscle[phases.end_diastole]:
        reasons.append("there is no mass: the mask has no myocardium at end diastole")
    if not right.any():
        reasons.append("there are no values of the right ventricle: the masks do not have it")
        return Function(labelled.phases, left, None, tuple(reasons))
    return Function(labelled.phases, left, Ventricle(right, phases), tuple(reasons))
