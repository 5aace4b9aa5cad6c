"""Segmentation of a cine stack, phase by phase.

A network expects rows and columns in the order of its training images, which files do not state.
Both orders are tried on one phase, and the one in which the network is more confident is used. The
difference is small (0.01 lower to 0.02 higher for the right order in four studies), so the order of
a known network's training images has an advantage.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError
from xraygpt.common.logging import progress
from xraygpt.measure.cardiac_function import MeasurementError
from xraygpt.segmentation.base import Region, Segmentation, Segmenter, Slices
from xraygpt.segmentation.labels import LV

log = logging.getLogger(__name__)

PROBES = 2  # slices in which the cavity is followed to find end diastole and end systole
STRIDE = 3  # phases between two phases that are tried first
MARGIN = 0.4  # of the heart's extent, added on each side to the region of the heart
_MIN_MARGIN = 8  # pixels
_ADVANTAGE = 0.02  # in confidence, of the order that the segmenter was trained on
_MAX_LOSS = 0.1  # of confidence relative to the whole image, for which the region is given up


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


def segment_stack(
    stack: Stack, segmenter: Segmenter, phases: Sequence[int] | None = None
) -> StackLabels:
    """Segment all slices of some phases.

    Args:
        stack: A short-axis cine.
        segmenter: Segmenter for short-axis images.
        phases: Indices of phases; None means all, or those with masks if the segmenter needs them.

    Raises:
        DataError: An image cannot be read, or there are no masks.
    """
    chosen = segmentable_phases(stack, segmenter) if phases is None else phases
    segmented = _StackSegmenter(stack, segmenter)
    while True:
        labelled = segmented.all_slices(chosen)
        if not segmented.complete(_extremes(labelled, stack.slice_widths)):
            return labelled


def segmentable_phases(stack: Stack, segmenter: Segmenter) -> Sequence[int]:
    """Return the phases that a segmenter can work on: all, or those with masks."""
    if segmenter.needs_labels:
        if not stack.labelled_phases:
            raise DataError(
                f"{stack.name}: there are no masks; give run.masks, or use another run.segmenter"
            )
        return stack.labelled_phases
    return range(stack.phases)


def segment_extremes(stack: Stack, segmenter: Segmenter) -> StackLabels:
    """Segment all slices of only those phases that can be end diastole or end systole.

    The cavity in the two slices in which it is largest at first is followed at every third phase,
    then at all phases next to the largest and the smallest area. All slices are segmented of these
    two phases and their neighbours, and of further neighbours until both extremes have a neighbour
    on either side. These two phases are segmented as `segment_stack` does.

    Raises:
        DataError: An image cannot be read, or there are no masks.
        MeasurementError: There is no cavity in the first phase.
    """
    if segmenter.needs_labels or segmenter.needs_whole_stack:
        return segment_stack(stack, segmenter)
    segmented, count = _StackSegmenter(stack, segmenter), stack.phases
    areas = (segmented.all_slices([0]).labels[0] == LV).sum(axis=(1, 2))
    if not areas.any():
        raise MeasurementError("the first phase has no cavity of the left ventricle")
    probes = np.argsort(areas)[-PROBES:].tolist()
    known: dict[int, int] = {}

    def area(phase: int) -> int:
        if phase not in known:
            known[phase] = int((segmented.slices(phase, probes) == LV).sum())
        return known[phase]

    chosen = set[int]()
    for extreme in (max, min):
        best = extreme(range(0, count, STRIDE), key=area)
        near = [(best + step) % count for step in range(1 - STRIDE, STRIDE)]
        best = extreme(near, key=area)
        chosen |= {(best + step) % count for step in (-1, 0, 1)}
    while True:
        labelled = segmented.all_slices(sorted(chosen))
        phases = _extremes(labelled, stack.slice_widths)
        missing = {(p + step) % count for p in phases for step in (-1, 1)} - chosen
        if not missing and not segmented.complete(phases):
            return labelled
        chosen |= missing


def _extremes(labelled: StackLabels, widths: np.ndarray | None) -> list[int]:
    """Return the phases with the largest and the smallest cavity."""
    counts = (labelled.labels == LV).sum(axis=(2, 3))
    sums = counts.sum(axis=1) if widths is None else counts @ widths
    return [int(labelled.phases[i]) for i in (sums.argmax(), sums.argmin())]


class _StackSegmenter:
    """Segments slices of a stack, each once.

    The first phase is segmented in both orientations, and shows where the heart is. In later
    phases, the segmenter may ignore the rest of the image, unless the heart reaches the edge of
    this region. End diastole and end systole are segmented again without a region.
    """

    def __init__(self, stack: Stack, segmenter: Segmenter) -> None:
        self.stack, self.segmenter = stack, segmenter
        known = {"stored": False, "exchanged": True}
        self.transposed: bool | None = known.get(segmenter.orientation)
        self.region: Region | None = None
        self._usual_confidence = 0.0
        self._complete = set[int]()  # phases that were segmented without a region
        self._done: dict[tuple[int, int], tuple[np.ndarray, float]] = {}

    def all_slices(self, phases: Iterable[int]) -> StackLabels:
        chosen = sorted(set(phases))
        every = range(self.stack.slices)
        self._segment_phases(chosen, every)
        results = [self._collect(phase, every) for phase in chosen]
        labels, confidence = (np.stack(parts) for parts in zip(*results, strict=True))
        return StackLabels(np.array(chosen), labels, confidence, bool(self.transposed))

    def slices(self, phase: int, slices: Sequence[int]) -> np.ndarray:
        """Return (N, H, W) labels of some slices of a phase."""
        self._segment_phases([phase], slices)
        return self._collect(phase, slices)[0]

    def complete(self, phases: Iterable[int]) -> bool:
        """Segment phases again that were segmented with a region; return whether there were any."""
        if not self.segmenter.uses_region:
            return False
        new = [phase for phase in phases if phase not in self._complete]
        for phase in new:
            every = range(self.stack.slices)
            slices = turned(self._read(phase, every)._replace(region=None), bool(self.transposed))
            self._keep(phase, every, self.segmenter.segment(slices))
        self._complete.update(new)
        return bool(new)

    def _collect(self, phase: int, slices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        found = [self._done[phase, i] for i in slices]
        return np.stack([labels for labels, _ in found]), np.array([c for _, c in found])

    def _segment_phases(self, phases: Sequence[int], slices: Sequence[int]) -> None:
        """Segment those of the slices that are not segmented yet."""
        if self.segmenter.needs_whole_stack:
            slices = range(self.stack.slices)
        missing = {p: [i for i in slices if (p, i) not in self._done] for p in phases}
        if len(slices) == self.stack.slices and not self.segmenter.uses_region:
            # All together, since networks scale the slices that they see together.
            missing = {phase: list(slices) if new else [] for phase, new in missing.items()}
        missing = {phase: new for phase, new in missing.items() if new}
        if missing and self.transposed is None:
            self._choose_orientation()
            return self._segment_phases(phases, slices)
        inputs = (turned(self._read(p, new), bool(self.transposed)) for p, new in missing.items())
        results = self.segmenter.segment_all(inputs)
        hidden = len(missing) < 3
        for phase, new in progress(
            missing.items(), desc=f"segmenting {self.stack.name}", unit="phase", disable=hidden
        ):
            self._store(phase, new, next(results))

    def _store(self, phase: int, slices: Sequence[int], result: Segmentation) -> None:
        labels = _turn(result.labels, bool(self.transposed))
        if self.region is not None and self._is_doubtful(labels, result):
            log.info("%s, phase %d: segmented again without a region", self.stack.name, phase)
            self.region = None
            result = self.segmenter.segment(
                turned(self._read(phase, slices), bool(self.transposed))
            )
            labels = _turn(result.labels, bool(self.transposed))
        uses_region = self.segmenter.uses_region
        if uses_region and self.region is None and len(slices) == self.stack.slices:
            self._complete.add(phase)
            self.region = heart_region(labels)
            self._usual_confidence = mean_confidence(result.confidence)
        self._keep(phase, slices, result)

    def _keep(self, phase: int, slices: Sequence[int], result: Segmentation) -> None:
        labels = _turn(result.labels, bool(self.transposed))
        for i, one, confidence in zip(slices, labels, result.confidence, strict=True):
            self._done[phase, i] = one, float(confidence)

    def _is_doubtful(self, labels: np.ndarray, result: Segmentation) -> bool:
        """Check whether the heart reaches the edge of the region, or the confidence is low."""
        assert self.region is not None
        whole_stack = len(labels) == self.stack.slices
        low = mean_confidence(result.confidence) < self._usual_confidence - _MAX_LOSS
        return _touches_edge(labels, self.region) or (whole_stack and low)

    def _read(self, phase: int, slices: Sequence[int]) -> Slices:
        stack = self.stack
        images = np.stack([stack.image(phase, i) for i in slices])
        labels = stack.labels(phase)[list(slices)] if self.segmenter.needs_labels else None
        whole = len(slices) == stack.slices
        return Slices(images, stack.spacing, stack.distance if whole else None, labels, self.region)

    def _choose_orientation(self) -> None:
        """Segment the first phase in both orientations, and keep the more confident result."""
        slices = range(self.stack.slices)
        as_stored = self._read(0, slices)
        results = [self.segmenter.segment(turned(as_stored, t)) for t in (False, True)]
        means = [mean_confidence(result.confidence) for result in results]
        advantage = _ADVANTAGE if self.segmenter.expects_exchanged else 0.0
        self.transposed = means[1] + advantage > means[0]
        log.info(
            "%s: confidence %.3f as stored, %.3f with rows and columns exchanged; using %s",
            self.stack.name, *means, "exchanged" if self.transposed else "as stored",
        )  # fmt: skip
        self._store(0, slices, results[self.transposed])


def mean_confidence(confidence: np.ndarray) -> float:
    """Return the mean over the slices with a heart; 0 if none has one."""
    known = confidence[confidence > 0]
    return float(known.mean()) if len(known) else 0.0


def heart_region(labels: np.ndarray, margin: float = MARGIN) -> Region | None:
    """Return the rectangle around all structures with a margin; None if there are none.

    Args:
        labels: (N, H, W).
        margin: Fraction of the structures' extent that is added on each side.
    """
    found = np.argwhere((labels > 0).any(axis=0))
    if not len(found):
        return None
    low, high = found.min(axis=0), found.max(axis=0) + 1
    extra = np.maximum(_MIN_MARGIN, np.ceil(margin * (high - low))).astype(int)
    top, left = np.maximum(low - extra, 0).tolist()
    bottom, right = np.minimum(high + extra, labels.shape[1:]).tolist()
    return Region(top, left, bottom, right)


def _touches_edge(labels: np.ndarray, region: Region) -> bool:
    """Check whether structures reach an edge of the region that is not the image's edge."""
    height, width = labels.shape[1:]
    top, left, bottom, right = region
    edges = [
        (top > 0, labels[:, top, left:right]),
        (left > 0, labels[:, top:bottom, left]),
        (bottom < height, labels[:, bottom - 1, left:right]),
        (right < width, labels[:, top:bottom, right - 1]),
    ]
    return any(inside and edge.any() for inside, edge in edges)


def turned(slices: Slices, transposed: bool) -> Slices:
    """Return slices with rows and columns exchanged if `transposed`."""
    if not transposed:
        return slices
    region = slices.region
    return slices._replace(
        pixels=_turn(slices.pixels, True),
        spacing=None if slices.spacing is None else (slices.spacing[1], slices.spacing[0]),
        labels=None if slices.labels is None else _turn(slices.labels, True),
        region=None if region is None else Region(*(region[i] for i in (1, 0, 3, 2))),
    )


def _turn(images: np.ndarray, transposed: bool) -> np.ndarray:
    return np.ascontiguousarray(images.transpose(0, 2, 1)) if transposed else images
