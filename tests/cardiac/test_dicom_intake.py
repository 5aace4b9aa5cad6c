"""DICOM folders become stacks by geometry and time; what is missing or odd is reported."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.cardiac.conftest import write_frame
from xraygpt.cardiac.dicom_intake import read_dicom_study
from xraygpt.common.errors import DataError


def test_slices_are_ordered_by_position_and_phases_by_time(cine):
    (stack,) = read_dicom_study(cine()).stacks
    assert (stack.role, stack.shape, stack.warnings) == ("SAX", (5, 4, 16, 12), ())
    for slice_ in range(4):
        for phase in range(5):
            assert stack.image(phase, slice_)[3, 4] == 100 * slice_ + phase + 1
    assert stack.times == pytest.approx([0, 0.16, 0.32, 0.48, 0.64])
    assert stack.heart_rate == pytest.approx(75)


def test_slices_are_as_wide_as_their_distance_not_as_their_thickness(cine):
    (stack,) = read_dicom_study(cine()).stacks  # 10 mm apart, 6 mm thick
    assert stack.slice_widths.tolist() == [10, 10, 10, 10]
    points = stack.to_patient(2, np.array([2.0]), np.array([4.0]))
    assert points.tolist() == [[6.0, 3.0, 20.0]]


def test_a_missing_slice_is_reported_and_shared_by_its_neighbours(cine):
    (stack,) = read_dicom_study(cine(skip=lambda s, _: s == 2, slices=6)).stacks
    assert stack.warnings == ("a slice is missing between slices 2 and 3",)
    assert stack.slice_widths.tolist() == [10, 15, 15, 10, 10]


def change(**by_slice):
    """Return elements for slices named `s0`, `s1` and so on."""
    return lambda s, _: by_slice.get(f"s{s}", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"change": change(s3={"gap": 11.0})}, "slices 3 and 4 are 13.0 mm apart"),
        ({"skip": lambda s, p: s == 1 and p == 2}, "slice 2 has 4 phases, the others 5"),
        ({"change": change(s1={"NominalInterval": 1100})}, "heart rate differs .*55 to 75"),
        ({"change": lambda s, p: {"TriggerTime": 0 if p < 2 else 100 * p}}, "at the same time"),
        ({"change": lambda s, p: {"PixelSpacing": None}}, "no pixel spacing"),
        ({"change": lambda s, p: {"ImagePositionPatient": None}}, "have no position"),
    ],
)
def test_what_is_unusual_is_reported(cine, options, message):
    (stack,) = read_dicom_study(cine(**options)).stacks
    assert any(re.search(message, text) for text in stack.warnings), stack.warnings


@pytest.mark.parametrize(("lost", "used"), [(0, 1), (2, 1), (4, 3)])
def test_a_lost_phase_is_replaced_by_the_nearest_and_shifts_no_other(cine, lost, used):
    (stack,) = read_dicom_study(cine(skip=lambda s, p: s == 1 and p == lost)).stacks
    phases = [int(stack.image(p, 1)[0, 0]) - 101 for p in range(5)]
    assert phases == [used if p == lost else p for p in range(5)]


def test_a_repeated_slice_is_replaced_by_the_last_acquisition(cine):
    folder = cine()
    for phase in range(5):
        write_frame(folder, slice_=1, phase=phase, series="again", value=7, SeriesNumber=9)
    (stack,) = read_dicom_study(folder).stacks
    assert stack.warnings == ("slice 2 was acquired 2 times; the last one is used",)
    assert [stack.image(0, s)[0, 0] for s in range(4)] == [1, 7, 201, 301]


def test_other_series_are_stacks_of_their_own(cine):
    folder = cine()
    for phase in range(5):
        axes = [0, 1, 0, 0, 0, -1]
        write_frame(folder, phase=phase, name="cine 4CH", ImageOrientationPatient=axes)
    write_frame(folder, name="PSIR_late_Gad", TriggerTime=None)
    write_frame(folder, name="localizer", TriggerTime=None)
    (folder / "notes.txt").write_text("not an image")
    study = read_dicom_study(folder)
    assert [stack.role for stack in study.stacks] == ["SAX", "4CH", "LGE", ""]
    assert "left out notes.txt" in study.warnings[0]


def test_without_times_a_series_is_left_out_not_guessed(cine):
    folder = cine()
    for phase in range(3):
        write_frame(folder, phase=phase, name="cine 2CH", TriggerTime=None)
    study = read_dicom_study(folder)
    assert [stack.role for stack in study.stacks] == ["SAX"]
    assert "cine 2CH: 3 images of one slice have no TriggerTime" in study.warnings[0]


def test_folders_that_are_not_one_study_are_refused(tmp_path, cine):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no DICOM image"):
        read_dicom_study(tmp_path / "empty")
    folder = cine()
    write_frame(folder, StudyInstanceUID="1.2.3")
    with pytest.raises(DataError, match="images of 2 studies"):
        read_dicom_study(folder)


def test_a_real_study(real_data):
    """Its slices lie 17.7 mm apart and are 6 mm thick; the long-axis views have names."""
    study = read_dicom_study(real_data / "cmr" / "biv_me" / "dicoms")
    assert [stack.role for stack in study.stacks] == ["SAX", "4CH", "4CH", "2CH", "2CH"]
    stack = study.with_role("SAX")[0]
    assert stack.shape == (25, 6, 208, 256)
    assert stack.slice_widths == pytest.approx([17.7] * 6, abs=0.01)
    assert stack.times[1] == pytest.approx(0.0332, abs=1e-3)
    assert "70 to 77 beats per minute" in stack.warnings[0]


def test_a_cine_in_one_file(tmp_path, real_data):
    (tmp_path / "a.dcm").write_bytes((real_data / "cmr/dicom/cine_16_frames.dcm").read_bytes())
    (stack,) = read_dicom_study(tmp_path).stacks
    assert stack.shape == (16, 1, 256, 256)
    assert stack.times == pytest.approx(np.arange(16) * 0.06947)
    assert stack.slice_widths is None and len(stack.warnings) == 2
