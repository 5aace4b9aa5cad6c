"""The 17 segments of the left ventricle.

Names and borders are those of the American Heart Association (Cerqueira et al. 2002, Circulation
105:539): six segments of 60° in the basal and in the middle third, four of 90° in the apical third,
and the apex.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SEGMENTS = (
    "basal anterior", "basal anteroseptal", "basal inferoseptal", "basal inferior",
    "basal inferolateral", "basal anterolateral", "mid anterior", "mid anteroseptal",
    "mid inferoseptal", "mid inferior", "mid inferolateral", "mid anterolateral",
    "apical anterior", "apical septal", "apical inferior", "apical lateral", "apex",
)  # fmt: skip
"""Names of segments 1 to 17."""
BASAL, MID, APICAL, APEX = range(4)
_SIX = (2, 1, 6, 5, 4, 3)  # counted from the middle of the septum towards anterior, by 60°
_FOUR = (14, 13, 16, 15)  # the same, by 90°, the first one centred on the middle of the septum


class Place(NamedTuple):
    """A segment on the polar plot (bull's-eye).

    Attributes:
        inner: Inner radius, where the plot's radius is 1.
        outer: Outer radius.
        start: First angle in degrees, counterclockwise from the right; anterior is at the top.
        stop: Last angle.
    """

    inner: float
    outer: float
    start: float
    stop: float


def segments_at(angles: np.ndarray, level: int) -> np.ndarray:
    """Return the segments, 1 to 17, at angles around the long axis, as uint8.

    Args:
        angles: In degrees, from the middle of the septum towards the anterior wall.
        level: `BASAL`, `MID`, `APICAL` or `APEX`.
    """
    turned = np.asarray(angles) % 360
    if level == APEX:
        return np.full(turned.shape, 17, dtype=np.uint8)
    if level == APICAL:
        return np.array(_FOUR, dtype=np.uint8)[((turned + 45) // 90).astype(int) % 4]
    shift = 6 if level == MID else 0
    return np.array(_SIX, dtype=np.uint8)[(turned // 60).astype(int) % 6] + np.uint8(shift)


def slice_levels(positions: Sequence[float], has_cavity: Sequence[bool]) -> np.ndarray:
    """Divide slices with myocardium among the thirds of the cavity's length, as (S,) int.

    Args:
        positions: (S,) positions in mm along the long axis, ascending from the apex.
        has_cavity: (S,) whether the slice has a cavity; slices apical of it are the apex.
    """
    places, inside = np.asarray(positions, dtype=np.float64), np.asarray(has_cavity, dtype=bool)
    if not inside.any():
        return np.full(len(places), APEX)
    low, high = places[inside][0], places[inside][-1]
    step = (high - low) / max(1, int(inside.sum()) - 1) or 1.0
    # Slices have a width: the cavity reaches half a step beyond the first and the last one.
    fraction = (places - (low - step / 2)) / (high - low + step)
    levels = np.where(fraction < 1 / 3, APICAL, np.where(fraction < 2 / 3, MID, BASAL))
    levels[places < low] = APEX
    return levels


def polar_place(segment: int) -> Place:
    """Return the place of a segment, 1 to 17, on the polar plot, with the septum on the left."""
    if segment == 17:
        return Place(0, 0.25, 0, 360)
    if segment >= 13:
        middle = {13: 90, 14: 180, 15: 270, 16: 0}[segment]
        return Place(0.25, 0.5, middle - 45, middle + 45)
    ring = (0.75, 1.0) if segment <= 6 else (0.5, 0.75)
    start = 60 + 60 * ((segment - 1) % 6)
    return Place(*ring, start, start + 60)
