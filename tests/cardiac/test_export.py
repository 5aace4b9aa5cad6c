"""Stacks as NIfTI and PNG: what is written comes back with the same pixels, places and times."""

from __future__ import annotations

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from tests.cardiac.test_intake_masks import measure
from tests.cardiac.volumes import heart_labels, write_volume
from xraygpt.cardiac.dicom_intake import read_dicom_study
from xraygpt.cardiac.export import write_label_maps, write_nifti, write_pngs
from xraygpt.cardiac.intake import read_study
from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError

SAGITTAL = [0, 1, 0, 0, 0, -1]


def assert_same(stack, other, places=1e-3):
    assert stack.shape == other.shape
    for phase in range(stack.phases):
        for slice_ in range(stack.slices):
            assert np.array_equal(stack.image(phase, slice_), other.image(phase, slice_))
    assert other.spacing == pytest.approx(stack.spacing, abs=1e-5)
    assert other.origins == pytest.approx(stack.origins, abs=places)
    assert other.axes == pytest.approx(stack.axes, abs=1e-6)
    assert other.times == pytest.approx(stack.times, abs=1e-6)
    assert other.heart_rate == pytest.approx(stack.heart_rate, rel=1e-3)


@pytest.mark.parametrize("axes", [[1, 0, 0, 0, 1, 0], SAGITTAL, [0.6, 0.8, 0, 0, 0, -1]])
def test_from_dicom_to_nifti_and_back(tmp_path, cine, axes):
    normal = np.cross(axes[:3], axes[3:])
    places = {s: (5.0, 6.0, 7.0) + 10 * s * normal for s in range(4)}
    folder = cine(
        change=lambda s, _: {
            "ImageOrientationPatient": axes, "ImagePositionPatient": places[s].tolist(),
        }
    )  # fmt: skip
    (stack,) = read_dicom_study(folder).stacks
    write_nifti(stack, tmp_path / "out" / "cine_sax.nii.gz")
    (other,) = read_study(tmp_path / "out" / "cine_sax.nii.gz").stacks
    assert other.warnings == ()
    assert_same(stack, other)
    assert other.slice_widths == pytest.approx(stack.slice_widths)


def test_the_header_for_other_programs(tmp_path, cine):
    """Pixels of 1.5 mm, slices 10 mm apart, 5 phases in 0.8 s; DICOM's left is NIfTI's −x."""
    (stack,) = read_dicom_study(cine()).stacks
    write_nifti(stack, tmp_path / "a.nii.gz")
    image = nib.load(tmp_path / "a.nii.gz")
    header = image.header
    assert (image.shape, header.get_data_dtype()) == ((12, 16, 4, 5), np.int16)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert header.get_zooms() == pytest.approx((1.5, 1.5, 10, 0.16))
    assert (int(header["sform_code"]), int(header["qform_code"])) == (1, 1)
    assert image.affine == pytest.approx(np.diag([-1.5, -1.5, 10, 1]))
    assert image.get_qform() == pytest.approx(image.affine)


def test_label_maps_lie_on_the_images(tmp_path, cine):
    """The volumes measured from the written files are those of the label maps."""
    (stack,) = read_dicom_study(cine()).stacks
    full, small = heart_labels(4, 16, 12), heart_labels(4, 16, 12)
    small[:, 3, 2:4] = 2
    write_nifti(stack, tmp_path / "out" / "sax.nii.gz")
    write_label_maps(stack, [1, 3], np.stack([full, small]), tmp_path / "out" / "sax_gt.nii.gz")
    assert nib.load(tmp_path / "out" / "sax_gt.nii.gz").get_data_dtype() == np.uint8
    (other,) = read_study(tmp_path / "out", convention="acdc").stacks
    assert other.labelled_phases == (1, 3)
    assert np.array_equal(other.labels(1), full) and np.array_equal(other.labels(3), small)
    # 4 and 2 pixels of 2.25 mm² in 4 slices 10 mm apart: 0.36 and 0.18 mL.
    assert measure(other).left.volumes == pytest.approx([0.36, 0.18])
    (again,) = read_study(tmp_path / "out" / "sax.nii.gz").stacks
    assert again.labelled_phases == ()


def test_sheared_stacks_and_stacks_without_positions(tmp_path):
    sheared = np.diag([-1.5, -1.25, 8, 1.0])
    sheared[0, 2] = 2
    (stack,) = read_study(write_volume(tmp_path / "a_sax.nii", affine=sheared)).stacks
    write_nifti(stack, tmp_path / "b_sax.nii")
    assert int(nib.load(tmp_path / "b_sax.nii").header["qform_code"]) == 0
    (other,) = read_study(tmp_path / "b_sax.nii").stacks
    assert_same(stack, other)
    nowhere = replace(stack, origins=None, axes=None, gap=8.0, times=None)
    write_nifti(nowhere, tmp_path / "c_sax.nii")
    (other,) = read_study(tmp_path / "c_sax.nii").stacks
    assert (other.spacing, other.distance, other.origins) == ((1.25, 1.5), 8, None)
    assert other.times is None


def stack_of(**settings):
    return Stack("x", "SAX", (2, 3, 4, 5), lambda t, s: np.full((4, 5), t + s / 2), **settings)


PLACED = {"spacing": (1.0, 1.0), "axes": np.eye(3)[:2]}
UNEVEN = np.array([[0, 0, 0], [0, 0, 10], [0, 0, 30]])


@pytest.mark.parametrize(
    ("settings", "name", "message"),
    [
        ({}, "a.nii", r"needs them; set them with dataclasses.replace"),
        ({**PLACED, "origins": UNEVEN}, "a.nii", "the slices are not at equal distances"),
        ({"spacing": (1.0, 1.0), "gap": 8.0}, "a.dcm", "must end in .nii.gz or .nii"),
    ],
)
def test_what_a_nifti_file_cannot_hold(tmp_path, settings, name, message):
    with pytest.raises(DataError, match=message):
        write_nifti(stack_of(**settings), tmp_path / name)


def test_unequal_times_are_reported_and_fractions_kept(tmp_path, caplog):
    stack = stack_of(spacing=(1.0, 1.0), gap=8.0, times=np.array([0.0, 0.4]))
    write_nifti(stack, tmp_path / "sax.nii")
    (other,) = read_study(tmp_path / "sax.nii").stacks
    assert other.image(1, 1)[0, 0] == 1.5 and not caplog.records
    uneven = Stack("x", "SAX", (3, 1, 4, 5), lambda t, s: np.zeros((4, 5)), (1, 1), gap=8.0)
    write_nifti(replace(uneven, times=np.array([0, 0.1, 0.5])), tmp_path / "b.nii")
    assert "not at equal times" in caplog.text


def test_pngs_come_back_in_order(tmp_path, cine):
    (stack,) = read_dicom_study(cine()).stacks
    files = write_pngs(stack, tmp_path / "out")
    assert len(files) == 20 and files[-1].name == "slice04_frame05.png"
    (other,) = read_study(tmp_path / "out").stacks
    assert other.shape == stack.shape
    # The first phase has 1, 101, 201 and 301 in equal parts, and thus a range of 1 to 301.
    for slice_, grey in enumerate((0, 85, 170, 255)):
        assert np.asarray(Image.open(files[5 * slice_]))[0, 0] == grey
        assert other.image(0, slice_)[3, 3] == grey


@pytest.mark.slow
def test_a_real_study_comes_back(tmp_path, real_data):
    """Its slices lie within 0.001 mm of a line."""
    study = read_dicom_study(real_data / "cmr" / "biv_me" / "dicoms")
    stack = study.with_role("SAX")[0]
    file = tmp_path / "study_sax.nii.gz"
    write_nifti(stack, file)
    (other,) = read_study(file).stacks
    assert_same(stack, other)
    assert other.slice_widths == pytest.approx(stack.slice_widths, abs=1e-3)


def test_simpleitk_reads_the_same_places(tmp_path, cine):
    sitk = pytest.importorskip("SimpleITK")
    (stack,) = read_dicom_study(cine()).stacks
    file = tmp_path / "sax.nii.gz"
    write_nifti(stack, file)
    image = sitk.ReadImage(str(file))
    assert image.GetOrigin()[:3] == pytest.approx(stack.origins[0], abs=1e-2)
    assert image.GetSpacing() == pytest.approx((1.5, 1.5, 10, 0.16))
