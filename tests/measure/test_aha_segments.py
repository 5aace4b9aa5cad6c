"""The 17 segments: borders by hand, from Cerqueira et al. 2002."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.measure.aha_segments import (
    APEX,
    APICAL,
    BASAL,
    MID,
    SEGMENTS,
    polar_place,
    segments_at,
    slice_levels,
)


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (BASAL, [2, 1, 6, 5, 4, 3]),
        (MID, [8, 7, 12, 11, 10, 9]),
        (APICAL, [14, 13, 16, 16, 15, 14]),
        (APEX, [17] * 6),
    ],
)
def test_segments_follow_the_septum_anterior_lateral_inferior(level, expected):
    """Angles from the middle of the septum: 0–60° anteroseptal, 60–120° anterior, and so on."""
    assert segments_at(np.array([30, 90, 150, 210, 270, 330]), level).tolist() == expected


def test_borders_and_turns():
    assert segments_at(np.array([59.9, 60.0, -0.1, 360.0]), BASAL).tolist() == [2, 1, 3, 2]
    assert segments_at(np.array([44.9, 45.0, -44.9, -45.1]), APICAL).tolist() == [14, 13, 14, 15]


def test_slices_are_divided_by_the_length_of_the_cavity():
    """Six slices with a cavity: two for each third; the slice apical of them is the apex."""
    levels = slice_levels([0, 10, 20, 30, 40, 50, 60], [False] + [True] * 6)
    assert levels.tolist() == [APEX, APICAL, APICAL, MID, MID, BASAL, BASAL]
    # A missing slice does not shift the borders.
    assert slice_levels([0, 10, 30, 40, 50], [True] * 5).tolist()[-1] == BASAL
    assert slice_levels([0], [True]).tolist() == [MID]
    assert slice_levels([0, 10], [False, False]).tolist() == [APEX, APEX]


def test_the_polar_plot_has_the_septum_on_the_left():
    middle = {n: (polar_place(n).start + polar_place(n).stop) / 2 for n in range(1, 18)}
    assert middle[1] == 90 and middle[4] == 270  # anterior above, inferior below
    assert 90 < middle[2] < 180 < middle[3] < 270  # septal on the left
    assert middle[16] == 0 and middle[14] == 180
    area = sum(
        (p.outer**2 - p.inner**2) * (p.stop - p.start) / 360 for p in map(polar_place, range(1, 18))
    )
    assert area == pytest.approx(1) and len(SEGMENTS) == 17
