"""Cardiac function against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.measure import cardiac_function as function
from xraygpt.measure.cardiac_function import MeasurementError, Phases, Ventricle


def test_volumes_are_sums_of_areas_times_widths():
    areas = np.array([[100.0, 200.0, 300.0], [50.0, 100.0, 0.0]])
    volumes = function.stack_volumes(areas, np.full(3, 10.0))
    assert volumes.tolist() == [6.0, 1.5]
    uneven = function.stack_volumes(areas, np.array([10.0, 15.0, 20.0]))
    assert uneven.tolist() == [10.0, 2.0]
    with pytest.raises(MeasurementError, match="0 mm"):
        function.stack_volumes(areas, np.array([10.0, 0.0, 10.0]))


def test_bounded_volumes_of_a_half_ellipsoid():
    """For a half ellipsoid of 90 mm in slices 18 mm apart, sums are up to 9 % too large."""
    length, radius, gap = 90.0, 25.0, 18.0
    true_volume = 2 / 3 * np.pi * radius**2 * length / 1000
    errors = {}
    for offset in (1.0, 5.0, 9.0, 13.0, 17.0):
        z = np.arange(offset, length, gap)  # from the apex; the base is at 90 mm
        areas = np.pi * radius**2 * (1 - ((length - z) / length) ** 2)
        summed = function.stack_volumes(areas[None], np.full(len(z), gap))[0]
        bounded = function.bounded_volumes(areas[None], z, np.array([[0.0, length]]))[0]
        errors[offset] = abs(summed / true_volume - 1), abs(bounded / true_volume - 1)
    assert max(bounded for _, bounded in errors.values()) < 0.02
    assert max(summed for summed, _ in errors.values()) > 0.08
    with pytest.raises(MeasurementError, match="phase 0: no slice"):
        function.bounded_volumes(np.zeros((1, 3)), [0, 1, 2], np.array([[0.0, 3.0]]))


def test_phases_are_the_largest_and_the_smallest_volume():
    assert function.find_phases(np.array([100.0, 120.0, 60.0, 50.0, 90.0])) == (1, 3)
    for volumes, reason in (
        ([100.0], "at least two"),
        ([0.0, 0.0], "empty in every phase"),
        ([80.0, 80.0], "same volume"),
        ([80.0, np.nan], "no volume"),
    ):
        with pytest.raises(MeasurementError, match=reason):
            function.find_phases(np.array(volumes))


def test_ejection_fraction_mass_and_output():
    ventricle = Ventricle(np.array([150.0, 60.0, 140.0]), Phases(0, 1))
    assert (ventricle.stroke_volume, ventricle.ejection_fraction) == (90.0, 60.0)
    assert function.mass(100) == pytest.approx(105)
    assert function.cardiac_output(90, 70) == pytest.approx(6.3)
    with pytest.raises(MeasurementError, match="exchanged"):
        function.ejection_fraction(60, 150)
    with pytest.raises(MeasurementError, match="empty"):
        function.ejection_fraction(0, 0)
    with pytest.raises(MeasurementError, match="implausible"):
        function.cardiac_output(90, 0.07)


def test_body_surface_area():
    """180 cm and 80 kg: 2.00 m² by both formulas (Mosteller 2.0000, Du Bois 1.9964)."""
    assert function.body_surface_area(180, 80) == pytest.approx(2.0)
    assert function.body_surface_area(180, 80, "du_bois") == pytest.approx(1.9964, abs=1e-4)
    for height, weight, hint in ((1.8, 80, "metres"), (180, 80_000, "grams")):
        with pytest.raises(MeasurementError, match=hint):
            function.body_surface_area(height, weight)


def test_reference_ranges_name_their_source_and_depend_on_sex():
    assert function.compare_with_range("lv_ef", 49, "male") == "normal"
    assert function.compare_with_range("lv_ef", 49, "female") == "low"
    assert function.compare_with_range("lv_edv", 230, "male") == "high"
    assert function.compare_with_range("rv_mass", 30, "male") == ""
    for ranges in function.REFERENCE_RANGES.values():
        assert all("J Cardiovasc Magn Reson" in limits.source for limits in ranges.values())
