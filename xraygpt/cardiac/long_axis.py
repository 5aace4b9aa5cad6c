"""Apex and mitral plane from long-axis views, and volumes bounded by them.

A short-axis stack does not show where between two slices the ventricle begins and ends. With thick
or distant slices, that is the largest error of its volume. Long-axis views show it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from xraygpt.cardiac.function import base_is_last, ring_fractions, structure_areas
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels, segment_stack
from xraygpt.common.errors import DataError, InputError
from xraygpt.measure.cardiac_function import MeasurementError, bounded_volumes
from xraygpt.segmentation.base import Segmenter
from xraygpt.segmentation.labels import LV

log = logging.getLogger(__name__)

VIEWS = ("4CH", "2CH", "3CH")
MIN_CONFIDENCE = 0.8
MIN_AGREEMENT = 0.85
"""Lowest Dice coefficient of the cavities of a view and of the stack where the planes intersect."""
_TOLERANCE = 3  # mm by which a cavity may differ between breath-holds
_FULL_WIDTH = 0.9  # of the largest width of the cavity, where the base begins
CLOSED_RING = 0.75
"""Fraction of a cavity's edge with myocardium from which a slice surely lies in the ventricle."""


@dataclass(frozen=True)
class Bounds:
    """Ends of the left ventricle at end diastole and end systole.

    Attributes:
        phases: The phases of the short-axis stack.
        positions: (2, 2) positions of the apex and the mitral plane along the normal of the
            short-axis stack in mm, for each phase.
        views: Names of the views they were measured in.
    """

    phases: tuple[int, int]
    positions: np.ndarray
    views: tuple[str, ...]


@dataclass(frozen=True)
class LongAxis:
    """Left ventricular volumes between apex and mitral plane.

    Attributes:
        bounds: Where the ventricle ends.
        volumes: (2,) end-diastolic and end-systolic volume in mL.
    """

    bounds: Bounds
    volumes: np.ndarray


def correct_volumes(
    stack: Stack,
    labelled: StackLabels,
    phases: tuple[int, int],
    views: Sequence[Stack],
    segmenter: Segmenter,
) -> LongAxis:
    """Measure the left ventricle with the ends that long-axis views show.

    A slice in which myocardium surrounds the cavity lies in the ventricle, even if a view ends
    before it: views often miss the apex.

    Args:
        stack: A short-axis cine.
        labelled: Its label maps.
        phases: End diastole and end systole, indices of `stack`'s phases.
        views: Long-axis cines of the same study.
        segmenter: Segmenter for the views.

    Raises:
        MeasurementError: No view shows the left ventricle reliably; the message gives the reasons.
        DataError: The geometry of the stack is unknown.
    """
    if stack.positions is None or stack.origins is None or stack.spacing is None:
        raise DataError(f"{stack.name}: the slices have no position in the patient")
    bounds = find_bounds(stack, labelled, phases, views, segmenter)
    index = [int(np.flatnonzero(labelled.phases == phase)[0]) for phase in phases]
    areas = structure_areas(labelled.labels[index], (LV,), stack.spacing)
    closed = ring_fractions(labelled.labels[index]) >= CLOSED_RING
    positions, ends = stack.positions, bounds.positions
    if not base_is_last(areas[0]):
        positions, ends = -positions[::-1], -ends
        areas, closed = areas[:, ::-1], closed[:, ::-1]
    for k, row in enumerate(closed):
        inside = positions[row]
        ends[k] = min([ends[k, 0], *inside]), max([ends[k, 1], *inside])
    return LongAxis(bounds, bounded_volumes(areas, positions.tolist(), ends))


def find_bounds(
    stack: Stack,
    labelled: StackLabels,
    phases: tuple[int, int],
    views: Sequence[Stack],
    segmenter: Segmenter,
) -> Bounds:
    """Find the apex and the mitral plane in long-axis views; see `correct_volumes`."""
    found, reasons = dict[str, np.ndarray](), list[str]()
    for view in views:
        name = f"{view.role} ({view.name})"
        try:
            own = tuple(_same_time(stack, phase, view) for phase in phases)
            cavities = _Cavities(stack, labelled, view, segment_stack(view, segmenter, own))
            ends = [cavities.ends(*pair) for pair in zip(phases, own, strict=True)]
            found[name] = np.array(ends)
        except InputError as error:  # of the segmenter, the geometry, or an image
            reasons.append(f"{name}: {error}")
    for reason in reasons:
        log.info("long axis: %s", reason)
    if not found:
        text = "; ".join(reasons) or "there are no long-axis cines"
        raise MeasurementError(f"no volume corrected with long-axis views: {text}")
    positions = np.median(np.stack(list(found.values())), axis=0)
    return Bounds(phases, positions, tuple(found))


def _same_time(stack: Stack, phase: int, view: Stack) -> int:
    """Return the phase of a view at the same fraction of the heartbeat."""
    if view.phases < 2:
        raise MeasurementError("it is not a cine")
    own, others = _fractions(stack), _fractions(view)
    if own is not None and others is not None:
        distances = np.abs(others - own[phase]) % 1
        return int(np.minimum(distances, 1 - distances).argmin())
    if view.phases == stack.phases:
        return phase
    return round(phase / stack.phases * view.phases) % view.phases


def _fractions(stack: Stack) -> np.ndarray | None:
    """Return the (T,) times as fractions of the heartbeat; None if they are unknown."""
    if stack.times is None or stack.rr_intervals is None:
        return None
    fractions: np.ndarray = stack.times / stack.rr_intervals.mean()
    return fractions


class _Cavities:
    """Cavities of a long-axis view, compared with those of the short-axis stack."""

    def __init__(
        self, stack: Stack, labelled: StackLabels, view: Stack, view_labels: StackLabels
    ) -> None:
        self.stack, self.labelled = stack, labelled
        self.view, self.view_labels = view, view_labels
        end_diastole = (labelled.labels == LV).sum(axis=(2, 3))
        largest = end_diastole[end_diastole.sum(axis=1).argmax()]
        self.sign = 1 if base_is_last(largest) else -1

    def ends(self, phase: int, view_phase: int) -> tuple[float, float]:
        """Return the positions of the apex and the mitral plane in mm along the stack's normal.

        Raises:
            MeasurementError: The segmentation of the view is not reliable.
        """
        k = int(np.flatnonzero(self.view_labels.phases == view_phase)[0])
        for slice_ in range(self.view.slices):
            confidence = float(self.view_labels.confidence[k, slice_])
            if confidence < MIN_CONFIDENCE:
                raise MeasurementError(
                    f"the segmenter's confidence is {confidence:.2f}, below {MIN_CONFIDENCE}"
                )
            labels = self.view_labels.labels[k, slice_]
            cavity = _largest(labels == LV)
            positions = self._positions(slice_, cavity)
            agreement = self._agreement(slice_, cavity, phase)
            log.debug("%s, phase %d: agreement %.2f", self.view.name, view_phase, agreement)
            if agreement < MIN_AGREEMENT:
                raise MeasurementError(
                    f"its cavity and that of the short-axis slices agree by only {agreement:.2f} "
                    f"(Dice, at least {MIN_AGREEMENT})"
                )
            along = self.sign * positions  # ascending from the apex
            return self.sign * float(along.min()), self.sign * equivalent_end(along)
        raise MeasurementError("it has no slices")

    def _points(self, slice_: int, mask: np.ndarray) -> np.ndarray:
        rows, columns = np.nonzero(mask)
        return self.view.to_patient(slice_, rows, columns)

    def _positions(self, slice_: int, mask: np.ndarray) -> np.ndarray:
        normal = self.stack.normal
        assert normal is not None
        positions: np.ndarray = self._points(slice_, mask) @ normal
        return positions

    def _agreement(self, slice_: int, cavity: np.ndarray, phase: int) -> float:
        """Return the Dice coefficient of both cavities where the planes intersect."""
        stack, view = self.stack, self.view
        assert stack.origins is not None
        k = int(np.flatnonzero(self.labelled.phases == phase)[0])
        both, sizes = 0, 0
        points = self._points(slice_, cavity)
        for i in range(stack.slices):
            short = self.labelled.labels[k, i] == LV
            near = points[np.abs((points - stack.origins[i]) @ _normal(stack)) < _TOLERANCE]
            rows, columns = np.nonzero(short)
            others = stack.to_patient(i, rows, columns)
            assert view.origins is not None
            distances = (others - view.origins[slice_]) @ _normal(view)
            others = others[np.abs(distances) < _TOLERANCE]
            both += _count_inside(stack, i, short, near)
            both += _count_inside(view, slice_, cavity, others)
            sizes += len(near) + len(others)
        return both / sizes if sizes else 0.0


def equivalent_end(positions: np.ndarray) -> float:
    """Return where a cavity would end if it kept its area up to there, as a cylinder does.

    A mitral plane that is oblique to the slices cuts off only a part of a slice. The area is taken
    to be proportional to the square of the cavity's width in the view.

    Args:
        positions: (N,) positions of the cavity's pixels along the long axis in mm, ascending
            towards the base.
    """
    counts, edges = np.histogram(positions, bins=np.arange(positions.min(), positions.max() + 2, 2))
    widths, middles = counts / counts.max(), (edges[1:] + edges[:-1]) / 2
    last = int(np.flatnonzero(widths >= _FULL_WIDTH)[-1])
    return float(middles[last] + 2 * ((widths[last + 1 :] / widths[last]) ** 2).sum() + 1)


def _normal(stack: Stack) -> np.ndarray:
    normal = stack.normal
    assert normal is not None
    return normal


def _count_inside(stack: Stack, slice_: int, mask: np.ndarray, points: np.ndarray) -> int:
    """Count the points (N, 3) in patient coordinates that lie in a mask, within the tolerance."""
    assert stack.origins is not None and stack.axes is not None and stack.spacing is not None
    offsets = points - stack.origins[slice_]
    columns = np.rint(offsets @ stack.axes[0] / stack.spacing[1]).astype(int)
    rows = np.rint(offsets @ stack.axes[1] / stack.spacing[0]).astype(int)
    valid = (rows >= 0) & (rows < mask.shape[0]) & (columns >= 0) & (columns < mask.shape[1])
    pixels = max(1, round(_TOLERANCE / min(stack.spacing)))
    grown = ndimage.binary_dilation(mask, iterations=pixels)
    return int(grown[rows[valid], columns[valid]].sum())


def _largest(mask: np.ndarray) -> np.ndarray:
    """Return the largest connected part of a mask.

    Raises:
        MeasurementError: The mask is empty.
    """
    parts, count = ndimage.label(mask)
    if not count:
        raise MeasurementError("it shows no cavity of the left ventricle")
    largest: np.ndarray = parts == 1 + np.bincount(parts.ravel())[1:].argmax()
    return largest
