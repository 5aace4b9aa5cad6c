"""Sentences about label maps that are probably wrong, although they can be measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from xraygpt.cardiac.function import MUSCLE, Function, base_is_last
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.stack_segmentation import StackLabels
from xraygpt.segmentation.labels import LV, RV

VOLUMES = (5.0, 1000.0)
"""Plausible left ventricular end-diastolic volumes in mL, from newborns to the largest hearts."""
FRACTIONS = (5.0, 90.0)
"""Plausible ejection fractions in percent."""
_MIRRORED = 0.25  # part of the cross product along the body, in the wrong direction
_CLEARER = 2.0  # ratio of differences for which slices are said to be in the reverse order
_ENDS = ("end diastole", "end systole")


def find_oddities(stack: Stack, labelled: StackLabels, function: Function) -> list[str]:
    """Return a sentence for each sign of wrong masks, images or headers.

    Raises:
        DataError: An image cannot be read.
    """
    ends = [labelled.labels[i] for i in function.left.phases]
    found = [*_odd_values(function), *_exchanged_names(stack, function), *_reversed(ends)]
    found += _holes(labelled, *function.left.phases)
    for name, phase, labels in zip(_ENDS, function.left.phases, ends, strict=True):
        found += _at_edge(labels, name)
        found += _dark_blood(stack, int(labelled.phases[phase]), labels, name)
    return [*found, *_mirrored(stack, ends[0])]


def _odd_values(function: Function) -> Iterator[str]:
    left, right = function.left, function.right
    volume = left.end_diastolic_volume
    if function.absolute and not VOLUMES[0] <= volume <= VOLUMES[1]:
        yield (
            f"a left ventricular end-diastolic volume of {volume:.3g} mL is implausible: check the "
            "distances between pixels and slices, and the masks"
        )
    for name, ventricle in (("left", left), ("right", right)):
        if ventricle is None:
            continue
        large, small = ventricle.end_diastolic_volume, ventricle.end_systolic_volume
        if small > large:
            yield (
                f"the {name} ventricle is larger at end systole than at end diastole of the left "
                "ventricle, so that there is no ejection fraction: check its masks"
            )
        elif not FRACTIONS[0] <= 100 * (large - small) / large <= FRACTIONS[1]:
            yield (
                f"a {name} ventricular ejection fraction of {100 * (large - small) / large:.0f} % "
                "is implausible: check the contours at end diastole and end systole"
            )


def _exchanged_names(stack: Stack, function: Function) -> Iterator[str]:
    volumes = dict(zip(function.phases.tolist(), function.left.volumes.tolist(), strict=True))
    phases = [stack.extremes.get(name) for name in ("ED", "ES")]
    diastole, systole = (None if phase is None else volumes.get(phase) for phase in phases)
    if diastole is not None and systole is not None and diastole < systole:
        yield (
            "the left ventricle is smaller in the phase that the files call ED than in the one "
            "they call ES: the phase with the larger volume is taken as end diastole"
        )


def _reversed(ends: Sequence[np.ndarray]) -> Iterator[str]:
    """Compare the areas of the slices at end diastole with those at end systole."""
    areas = [(labels == LV).sum(axis=(1, 2)) for labels in ends]
    first, second = (area / area.sum() for area in areas)
    straight, other = (np.abs(first - one).sum() for one in (second, second[::-1]))
    if straight > _CLEARER * other:
        yield (
            "the slices seem to be in the reverse order at end systole: the volumes do not depend "
            "on the order, but the wall thickness of a segment may be another one's"
        )


def _holes(labelled: StackLabels, end_diastole: int, end_systole: int) -> Iterator[str]:
    """Find slices without a structure that the slices on both sides have, in any phase."""
    found = defaultdict[tuple[int, str], list[str]](list)  # structures by slice and phases
    for structure, values in (("left ventricular cavity", (LV,)), ("myocardium", MUSCLE)):
        present = np.asarray(np.isin(labelled.labels, values).any(axis=(2, 3)))
        before = np.logical_or.accumulate(present, axis=1)
        after = np.logical_or.accumulate(present[:, ::-1], axis=1)[:, ::-1]
        holes = np.asarray(before & after & ~present)
        for i in np.flatnonzero(holes.any(axis=0)).tolist():
            phases = (labelled.phases[holes[:, i]] + 1).tolist()
            named = ("phases " if len(phases) > 1 else "phase ") + ", ".join(map(str, phases))
            found[i + 1, named].append(structure)
    for (slice_, named), structures in found.items():
        yield (
            f"slice {slice_} has no {' and no '.join(structures)} in {named}, although the slices "
            "on both sides do: check its contours"
        )
    counts = (labelled.labels == LV).any(axis=(2, 3)).sum(axis=1)
    if counts[end_systole] > counts[end_diastole]:
        yield (
            f"the left ventricular cavity is in {counts[end_systole]} slices at end systole, but "
            f"only in {counts[end_diastole]} at end diastole: are contours missing?"
        )


def _at_edge(labels: np.ndarray, name: str) -> Iterator[str]:
    inside = np.isin(labels, (LV, *MUSCLE))
    edges = [inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1]]
    if any(edge.any() for edge in edges):
        yield f"the left ventricle reaches the edge of the image at {name}: it may be cut off"


def _dark_blood(stack: Stack, phase: int, labels: np.ndarray, name: str) -> Iterator[str]:
    """Check that blood is brighter than the myocardium, as it is in a cine."""
    cavity, muscle = list[np.ndarray](), list[np.ndarray]()
    for i, one in enumerate(labels):
        image = stack.image(phase, i)
        cavity.append(image[one == LV])
        muscle.append(image[np.isin(one, MUSCLE)])
    blood, wall = np.concatenate(cavity), np.concatenate(muscle)
    if len(blood) and len(wall) and np.median(blood) <= np.median(wall):
        yield (
            f"the left ventricular cavity is not brighter than the myocardium at {name}: are the "
            "masks those of these images, and is the contrast that of a cine?"
        )


def _mirrored(stack: Stack, labels: np.ndarray) -> Iterator[str]:
    """Check on which side of the left ventricle the right one lies.

    The cross product of the axis from base to apex and the direction of the right ventricle points
    to the feet. That changes if the header has a wrong direction of pixels or slices.
    """
    cavity = labels == LV
    areas = cavity.sum(axis=(1, 2))
    left, right = _centre(stack, cavity), _centre(stack, labels == RV)
    if left is None or right is None or stack.normal is None:
        return
    if len(set(areas[areas > 0].tolist())) < 2:  # base and apex cannot be told apart
        return
    axis = -stack.normal if base_is_last(areas) else stack.normal
    side = (right - left) - ((right - left) @ axis) * axis
    length = float(np.linalg.norm(side))
    if length and float(np.cross(axis, side / length)[2]) > _MIRRORED:
        yield (
            "the right ventricle lies on the wrong side of the left one: unless the heart itself "
            "is mirrored, the images are, or their slices are in the reverse order, and the names "
            "of the segments are wrong"
        )


def _centre(stack: Stack, mask: np.ndarray) -> np.ndarray | None:
    """Return the centre of (S, H, W) pixels in patient coordinates; None if it is unknown."""
    if stack.origins is None or stack.spacing is None or not mask.any():
        return None
    points = [stack.to_patient(i, *np.nonzero(one)) for i, one in enumerate(mask)]
    centre: np.ndarray = np.concatenate(points).mean(axis=0)
    return centre
