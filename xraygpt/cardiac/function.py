"""Ventricular function of a segmented short-axis cine: areas, volumes, mass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels
from xraygpt.measure.cardiac_function import (
    MeasurementError,
    Ventricle,
    find_phases,
    mass,
    stack_volumes,
)
from xraygpt.segmentation.labels import INFARCT, LV, MYOCARDIUM, NO_REFLOW, RV

MUSCLE = (MYOCARDIUM, INFARCT, NO_REFLOW)
"""Labels of the left ventricular myocardium."""


@dataclass(frozen=True)
class Function:
    """Function of both ventricles.

    Attributes:
        phases: (T,) indices of the measured phases in the stack.
        left: The left ventricle; its indices of end diastole and systole are positions in `phases`.
        right: The right ventricle at the same phases; None if the segmenter does not find it.
        reasons: Why a value is missing, one sentence each.
        absolute: Whether volumes are in mL. If not, because the distances between pixels or slices
            are unknown, they are in pixels of slices that count alike, so that only ratios, such as
            the ejection fraction, have a meaning.
    """

    phases: np.ndarray
    left: Ventricle
    right: Ventricle | None
    reasons: tuple[str, ...] = ()
    absolute: bool = True


@dataclass(frozen=True)
class Conventions:
    """How outlines are read; laboratories differ, and reference ranges hold for one convention.

    Attributes:
        papillary_muscles: Whether papillary muscles and trabeculae belong to the cavity, as in most
            training data, or to the mass.
        basal_ring: A basal slice counts if at least this fraction of its cavity is surrounded by
            myocardium (half of it, according to Schulz-Menger et al. 2020, JCMR 22:19). 0 counts
            every slice.
    """

    papillary_muscles: Literal["cavity", "mass"] = "cavity"
    basal_ring: float = 0.5


def apply_conventions(stack: Stack, labelled: StackLabels, conventions: Conventions) -> StackLabels:
    """Return label maps according to the conventions.

    Raises:
        DataError: An image cannot be read.
    """
    labels = labelled.labels.copy()
    if conventions.papillary_muscles == "mass":
        for t, phase in enumerate(labelled.phases):
            for i in range(stack.slices):
                if (labels[t, i] == LV).any():
                    image = stack.image(int(phase), i)
                    labels[t, i] = move_papillary_muscles(labels[t, i], image)
    if np.isin(labels, MUSCLE).any():  # outlines of the cavity alone have no rings
        _remove_open_base(labels, conventions.basal_ring)
    return replace(labelled, labels=labels)


def _remove_open_base(labels: np.ndarray, basal_ring: float) -> None:
    """Remove the left ventricle from the basal slices, down to the first with enough myocardium.

    A phase without such a slice stays as it is.

    Args:
        labels: (T, S, H, W), changed in place.
        basal_ring: As in `Conventions`.
    """
    closed = ring_fractions(labels) >= basal_ring
    areas = (labels == LV).sum(axis=(2, 3))
    from_base = range(labels.shape[1])
    if base_is_last(areas[areas.sum(axis=1).argmax()]):
        from_base = from_base[::-1]
    for t in range(len(labels)):
        if not closed[t].any():
            continue
        for i in from_base:
            if closed[t, i]:
                break
            labels[t, i][np.isin(labels[t, i], (LV, *MUSCLE))] = 0


def leave_out_empty_phases(labelled: StackLabels) -> tuple[StackLabels, list[str]]:
    """Leave out phases without a cavity, whose volume of 0 would be taken for end systole.

    Returns:
        The other phases, and a sentence about those that are left out.

    Raises:
        MeasurementError: Fewer than two phases have a cavity.
    """
    filled = (labelled.labels == LV).any(axis=(1, 2, 3))
    if filled.all() and len(filled) > 1:
        return labelled, []
    empty = [str(phase + 1) for phase in labelled.phases[~filled]]
    if filled.sum() < 2:
        found = [str(phase + 1) for phase in labelled.phases[filled]]
        which = f"only phase {found[0]}" if found else "no phase"
        raise MeasurementError(
            f"{which} has a left ventricular cavity, but end diastole and end systole are needed: "
            "are the masks complete, and is their convention right?"
        )
    chosen = replace(
        labelled,
        phases=labelled.phases[filled],
        labels=labelled.labels[filled],
        confidence=labelled.confidence[filled],
    )
    subject = f"phase {empty[0]} is" if len(empty) == 1 else f"phases {', '.join(empty)} are"
    return chosen, [f"{subject} left out: there is no left ventricular cavity in any slice"]


def base_is_last(areas: np.ndarray) -> bool:
    """Tell from end-diastolic areas (S,) whether slices are ordered from the apex to the base."""
    found = areas[areas > 0]
    third = max(1, len(found) // 3)
    return not len(found) or bool(found[:third].mean() < found[-third:].mean())


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


def ring_fractions(labels: np.ndarray) -> np.ndarray:
    """Return (T, S) fractions of the edge of the left ventricular cavity with myocardium beside it.

    Args:
        labels: (T, S, H, W).

    Returns:
        Values in [0, 1]; 0 for a slice without a cavity.
    """
    from scipy import ndimage

    fractions = np.zeros(labels.shape[:2])
    for index in np.ndindex(*fractions.shape):
        cavity = labels[index] == LV
        edge = ndimage.binary_dilation(cavity, iterations=2) & ~cavity
        if edge.any():
            fractions[index] = np.isin(labels[index][edge], MUSCLE).mean()
    return fractions


def move_papillary_muscles(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Turn dark pixels of the cavity into myocardium.

    Papillary muscles and trabeculae are darker than the midpoint between the median intensities of
    cavity and myocardium. Networks and people who outline the cavity as a whole include them in it.

    Args:
        labels: (H, W).
        image: (H, W) of a cine in which blood is bright.

    Returns:
        (H, W) labels; unchanged if the slice has no cavity or no myocardium.
    """
    cavity, muscle = labels == LV, np.isin(labels, MUSCLE)
    if not cavity.any() or not muscle.any():
        return labels
    limit = (np.median(image[cavity]) + np.median(image[muscle])) / 2
    moved = labels.copy()
    moved[cavity & (image < limit)] = MYOCARDIUM
    return moved


def measure_function(stack: Stack, labelled: StackLabels) -> Function:
    """Measure volumes, ejection fraction and mass from the label maps of a short-axis cine.

    Raises:
        MeasurementError: The masks allow no measurement; the message says why.
    """
    reasons, spacing, widths = list[str](), stack.spacing, stack.slice_widths
    if spacing is None:
        reasons.append("there are no volumes in mL: the pixel spacing is unknown")
    if widths is None:
        reasons.append("there are no volumes in mL: the distance between slices is unknown")
    absolute = spacing is not None and widths is not None
    if spacing is None or widths is None:  # all slices count alike
        spacing, widths = (1.0, 1.0), np.full(stack.slices, 1000.0)
    cavity, muscle, right = (
        stack_volumes(structure_areas(labelled.labels, values, spacing), widths)
        for values in ((LV,), MUSCLE, (RV,))
    )
    phases = find_phases(cavity)
    muscle_volume = float(muscle[phases.end_diastole])
    left = Ventricle(cavity, phases, mass(muscle_volume) if absolute and muscle_volume else None)
    if not muscle_volume:
        reasons.append("there is no mass: the mask has no myocardium at end diastole")
    if not right[list(phases)].all():
        end = "diastole" if right[phases.end_systole] else "systole"
        where = f" at end {end}" if right[list(phases)].any() else ""
        reasons.append(
            f"there are no values of the right ventricle: the masks do not have it{where}"
        )
        return Function(labelled.phases, left, None, tuple(reasons), absolute)
    right_ventricle = Ventricle(right, phases)
    return Function(labelled.phases, left, right_ventricle, tuple(reasons), absolute)
