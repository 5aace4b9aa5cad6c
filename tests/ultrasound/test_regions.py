"""The region table: what it says, and that it is checked against the size of the image."""

from __future__ import annotations

from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from tests.ultrasound.scans import a4c, region
from xraygpt.ultrasound.regions import RegionTable, read_regions


def table(*items: Dataset, rows: int = 240, columns: int = 320) -> RegionTable:
    header = Dataset()
    header.SequenceOfUltrasoundRegions = list(items)
    return read_regions(header, rows, columns)


def test_a_table_of_another_picture_size_is_refused_with_what_it_says():
    header = pydicom.dcmread(a4c(), stop_before_pixels=True)
    found = read_regions(header, header.Rows, header.Columns)
    assert found.regions == found.sectors == ()
    assert found.spacing_mm is None and found.depth_cm is None
    (reason,) = found.refused
    assert "2D tissue at x 84 to 595, y 31 to 414" in reason
    assert "320 columns and 240 rows" in reason


def test_scale_and_depth_of_a_region_that_fits():
    found = table(region((30, 20, 229, 219), PhysicalDeltaX=0.04, PhysicalDeltaY=0.05))
    assert found.refused == ()
    assert found.spacing_mm == (0.5, 0.4)  # mm, (row, column)
    assert found.depth_cm == pytest.approx(200 * 0.05)
    assert found.regions[0].box == (30, 20, 230, 220)


@pytest.mark.data
def test_depth_equals_that_in_the_header_of_a_real_image(real_data):
    header = pydicom.dcmread(real_data / "echo/dicom/gdcm-US-ALOKA-16.dcm", stop_before_pixels=True)
    found = read_regions(header, header.Rows, header.Columns)
    assert [str(r).split(" at ")[0] for r in found.regions] == [
        "2D tissue", "2D tissue", "none grey bar"
    ]  # fmt: skip
    assert len(found.sectors) == 2
    assert found.depth_cm == pytest.approx(float(header.DepthOfScanField) / 10)


@pytest.mark.parametrize(
    ("box", "fits"),
    [
        ((0, 0, 319, 239), True),
        ((0, 0, 320, 240), True),  # the size instead of the last pixel
        ((0, 0, 321, 239), False),
        ((0, 0, 319, 241), False),
        ((319, 0, 319, 239), False),
        ((200, 0, 100, 239), False),
    ],
)
def test_corners(box: tuple[int, ...], fits: bool):
    found = table(region(box))
    assert bool(found.regions) is fits and bool(found.refused) is not fits
    if fits:
        assert found.regions[0].box == (0, 0, 320, 240)


@pytest.mark.parametrize(
    "elements",
    [
        {"PhysicalUnitsXDirection": 4},  # seconds
        {"PhysicalDeltaX": 0.0},
        {"PhysicalDeltaX": 51.0},  # probably micrometres
        {"PhysicalDeltaY": None},
        {"RegionSpatialFormat": 3, "RegionDataType": 3},
    ],
)
def test_no_centimetres_without_a_plausible_scale(elements: dict[str, Any]):
    found = table(region(**elements))
    assert found.refused == () and len(found.regions) == 1
    assert found.spacing_mm is None and found.depth_cm is None


def test_a_region_without_a_corner_is_refused():
    found = table(region(RegionLocationMaxX1=None))
    assert "lacks RegionLocationMaxX1" in found.refused[0] and not found.regions


def test_one_region_that_does_not_fit_makes_all_of_them_doubtful():
    found = table(region((0, 0, 99, 99)), region((0, 0, 639, 479)))
    assert len(found.regions) == 1 and len(found.refused) == 1
    assert found.sectors == () and found.spacing_mm is None


def test_regions_of_different_scales_have_no_common_spacing():
    found = table(region((0, 0, 99, 99)), region((100, 0, 199, 99), PhysicalDeltaX=0.1))
    assert len(found.sectors) == 2 and found.spacing_mm is None


def test_a_reversed_axis_has_a_positive_spacing():
    assert table(region(PhysicalDeltaY=-0.05)).spacing_mm == (0.5, 0.5)
