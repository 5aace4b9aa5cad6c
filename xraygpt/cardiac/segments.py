"""Wall thickness and infarct by segment of the left ventricle."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from xraygpt.cardiac.function import MUSCLE, base_is_last
from xraygpt.cardiac.stack import Stack
from xraygpt.measure.aha_segments import segments_at, slice_levels
from xraygpt.measure.cardiac_function import MeasurementError, mass
from xraygpt.segmentation.labels import INFARCT, LV, NO_REFLOW, RV

_ANTERIOR = np.array([0.0, -1.0, 1.0])  # towards the chest and the head, where the anterior wall is


@dataclass(frozen=True)
class Infarct:
    """Infarcted myocardium.

    Attributes:
        mass: Of infarct and no-reflow zone in g.
        percent: The same in percent of the mass of the left ventricle.
        no_reflow_percent: The no-reflow zone in percent of the mass of the left ventricle.
        by_segment: (17,) percent of each segment; NaN for a segment without pixels.
    """

    mass: float
    percent: float
    no_reflow_percent: float
    by_segment: np.ndarray


def right_ventricle_centre(stack: Stack, labels: np.ndarray) -> np.ndarray:
    """Return the centre of the right ventricle as (3,) patient coordinates in mm.

    Args:
        stack: A stack with positions.
        labels: (S, H, W) label maps of one phase.

    Raises:
        MeasurementError: The labels have no right ventricle, or the stack has no positions.
    """
    if stack.origins is None:
        raise MeasurementError("the slices have no position in the patient")
    points = [stack.to_patient(i, *np.nonzero(one == RV)) for i, one in enumerate(labels)]
    found = np.concatenate(points)
    if not len(found):
        raise MeasurementError("the masks have no right ventricle, which shows where the septum is")
    centre: np.ndarray = found.mean(axis=0)
    return centre


def segment_map(stack: Stack, labels: np.ndarray, septum: np.ndarray) -> np.ndarray:
    """Return the segment of each pixel of the myocardium, 1 to 17, as (S, H, W) uint8; 0 elsewhere.

    Args:
        stack: A short-axis stack with positions.
        labels: (S, H, W) label maps of one phase.
        septum: (3,) point in the direction of the septum from the left ventricle, such as the
            centre of the right ventricle, in patient coordinates.

    Raises:
        MeasurementError: The stack has no positions, or no slice has a cavity.
    """
    if stack.origins is None or stack.positions is None or stack.axes is None:
        raise MeasurementError("the slices have no position in the patient")
    cavity = labels == LV
    areas = cavity.sum(axis=(1, 2))
    if not areas.any():
        raise MeasurementError("no slice has a cavity of the left ventricle")
    positions, has_cavity = stack.positions, areas > 0
    if base_is_last(areas):
        levels = slice_levels(positions.tolist(), has_cavity.tolist())
    else:
        levels = slice_levels((-positions[::-1]).tolist(), has_cavity[::-1].tolist())[::-1]
    segments = np.zeros(labels.shape, dtype=np.uint8)
    for i, one in enumerate(labels):
        rows, columns = np.nonzero(np.isin(one, MUSCLE))
        if not len(rows):
            continue
        around = np.nonzero(cavity[i] if has_cavity[i] else np.isin(one, MUSCLE))
        centre = stack.to_patient(i, *around).mean(axis=0)
        angles = _angles(stack.to_patient(i, rows, columns) - centre, septum - centre, stack.axes)
        segments[i, rows, columns] = segments_at(angles, int(levels[i]))
    return segments


def _angles(offsets: np.ndarray, septum: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return (N,) angles in degrees from the direction of the septum towards anterior."""
    normal = np.cross(axes[0], axes[1])
    towards = septum - (septum @ normal) * normal
    towards = towards / np.linalg.norm(towards)
    side = np.cross(normal, towards)
    if side @ _ANTERIOR < 0:
        side = -side
    angles: np.ndarray = np.degrees(np.arctan2(offsets @ side, offsets @ towards))
    return angles


def wall_thickness(
    labels: np.ndarray, segments: np.ndarray, spacing: tuple[float, float]
) -> np.ndarray:
    """Return the mean wall thickness of segments 1 to 16 in mm, as (17,); NaN where unknown.

    The thickness at a pixel of the outer edge of the myocardium is its distance from the nearest
    pixel of the cavity. The apex has no cavity, hence no thickness.

    Args:
        labels: (S, H, W) label maps of one phase.
        segments: (S, H, W) as from `segment_map`.
        spacing: Distances between rows and between columns in mm.
    """
    sums, counts = np.zeros(18), np.zeros(18)
    for one, segment in zip(labels, segments, strict=True):
        cavity, muscle = one == LV, np.isin(one, MUSCLE)
        if not cavity.any() or not muscle.any():
            continue
        distances = ndimage.distance_transform_edt(~cavity, sampling=spacing)
        outer = muscle & ~ndimage.binary_erosion(muscle | cavity)
        np.add.at(sums, segment[outer], distances[outer])
        np.add.at(counts, segment[outer], 1)
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)[1:]
    means[16] = np.nan
    return means


def measure_infarct(stack: Stack, labels: np.ndarray, segments: np.ndarray | None) -> Infarct:
    """Measure infarct and no-reflow zone in a stack with late gadolinium enhancement.

    Args:
        stack: The stack.
        labels: (S, H, W) label maps.
        segments: (S, H, W) as from `segment_map`; None if the segments are unknown.

    Raises:
        MeasurementError: There is no myocardium, or the distances are unknown.
    """
    widths, spacing = stack.slice_widths, stack.spacing
    if widths is None or spacing is None:
        raise MeasurementError("the distances between pixels and slices are unknown")
    weights = widths * spacing[0] * spacing[1] / 1000

    def volume(values: tuple[int, ...]) -> float:
        return float(np.isin(labels, values).sum(axis=(1, 2)) @ weights)

    whole, dead = volume(MUSCLE), volume((INFARCT, NO_REFLOW))
    if not whole:
        raise MeasurementError("the mask has no myocardium")
    by_segment = np.full(17, np.nan)
    for number in range(1, 18) if segments is not None else ():
        inside: np.ndarray = np.asarray(segments == number)
        parts = inside.sum(axis=(1, 2)) @ weights
        if parts:
            scar = (inside & np.isin(labels, (INFARCT, NO_REFLOW))).sum(axis=(1, 2)) @ weights
            by_segment[number - 1] = 100 * scar / parts
    return Infarct(mass(dead), 100 * dead / whole, 100 * volume((NO_REFLOW,)) / whole, by_segment)
