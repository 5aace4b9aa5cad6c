"""HDF5 files, PNG slices and single DICOM files; what a path holds is decided by its content."""

from __future__ import annotations

import builtins
import importlib
from dataclasses import replace

import h5py
import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from tests.cardiac.conftest import write_frame
from tests.cardiac.test_intake_masks import measure
from tests.cardiac.volumes import heart_labels, values, write_hdf5, write_mask, write_volume
from xraygpt.cardiac.file_names import FileName, parse_name, parse_slice_name
from xraygpt.cardiac.intake import read_study
from xraygpt.common.errors import DataError, InputError
from xraygpt.measure.cardiac_function import MeasurementError
from xraygpt.segmentation.labels import LV


def write_png(file, value, size=(6, 8), mode="L"):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).convert(mode).save(file)
    return file


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("patient001_4d.nii.gz", FileName("patient001")),
        ("patient001_frame12_gt.nii.gz", FileName("patient001", "12", None, True)),
        ("A0S9V9_sa_gt.nii.gz", FileName("A0S9V9_sa", "", None, True)),
        ("001_SA_ES.nii.gz", FileName("001_SA", "ES")),
        ("CASE_0000.nii.gz", FileName("CASE")),
        ("t2_sax.nii.gz", FileName("t2_sax")),  # a sequence, not phase 2
        ("SC-HF-I-01-IM-0001-0048.dcm.png", FileName("SC-HF-I-01", "8", 3)),  # 48 = 2 · 20 + 8
        ("s03_t12.png", FileName("", "12", 3)),
    ],
)
def test_names(tmp_path, name, found):
    assert parse_name(tmp_path / name) == found
    assert parse_slice_name(tmp_path / "scan10.png") == FileName("scan", "", 10)


def test_two_hdf5_files_of_a_patient_are_two_phases(tmp_path):
    """Arrays lie (slice, row, column); without spacing there are no millilitres."""
    image = values(10, 12, 3, 1)[..., 0].transpose() / 300
    for frame, labels in (("01", heart_labels()), ("12", heart_labels() * 0 + 2)):
        write_hdf5(tmp_path / f"patient001_frame{frame}.h5", image=image, label=labels)
    write_hdf5(tmp_path / "patient0012_frame01.h5", image=image)
    study = read_study(tmp_path / "patient001")
    (stack,) = study.stacks
    assert (stack.role, stack.shape, stack.labelled_phases) == ("SAX", (2, 3, 12, 10), (0, 1))
    assert stack.image(0, 1)[2, 3] == pytest.approx((100 + 20 + 3) / 300)
    assert stack.warnings == (
        "there are only the phases 1, 12, so there is no curve",
        "the files have no pixel spacing, so there are no volumes in mL",
    )
    with pytest.raises(MeasurementError, match="cavity is empty in a phase"):
        measure(stack)  # the labels are the myocardium's
    with pytest.raises(DataError, match=r"files of 2 patients or series .* such as .*/patient001$"):
        read_study(tmp_path)


def test_hdf5_with_all_phases_and_with_one_slice_per_file(tmp_path):
    data = values(4, 5, 3, 6).transpose()
    labels = np.zeros(data.shape, np.uint8)
    labels[2, 1] = 3
    file = write_hdf5(tmp_path / "x.h5", image=data, label=labels)
    (stack,) = read_study(file, convention="acdc").stacks
    assert stack.shape == (6, 3, 5, 4) and stack.labelled_phases == (2,)
    assert stack.image(5, 2)[4, 3] == 5243
    for slice_ in (1, 2, 10):
        name = f"patient001_frame01_slice_{slice_}.h5"
        write_hdf5(tmp_path / "slices" / name, image=data[0, 0] + slice_)
    (stack,) = read_study(tmp_path / "slices").stacks
    assert [stack.image(0, s)[0, 0] for s in range(3)] == [1, 2, 10]


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"pixels": np.ones((3, 4, 5))}, "no data set called image or label, but pixels"),
        ({"image": np.ones((2, 2, 3, 4, 5))}, r"image has the shape \(2, 2, 3, 4, 5\); save it as"),
        ({"image": np.ones((3, 4, 5)), "label": np.ones((2, 4, 5))}, "the mask has 2 slices of 4"),
        ({"image": np.ones((3, 4, 5)), "label": np.full((3, 4, 5), 9)}, "the value 9, but acdc"),
    ],
)
def test_hdf5_files_that_cannot_be_used(tmp_path, sets, message):
    with pytest.raises(DataError, match=message):
        read_study(write_hdf5(tmp_path / "patient001_frame01.h5", **sets))


def test_a_damaged_hdf5_file(tmp_path):
    file = write_hdf5(tmp_path / "x.h5", image=np.ones((3, 4, 5)))
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(DataError, match=r"x.h5: it cannot be read .*; copy or download it again"):
        read_study(file)


def test_png_slices_are_ordered_by_their_numbers(tmp_path):
    for slice_ in (1, 2, 10):
        for phase in (1, 2):
            file = tmp_path / f"sax_slice{slice_}_frame{phase}.png"
            write_png(file, 10 * slice_ + phase, mode="RGB" if phase == 1 else "L")
    (stack,) = read_study(tmp_path).stacks
    assert (stack.role, stack.shape) == ("SAX", (2, 3, 6, 8))
    grid = [[stack.image(p, s)[0, 0] for s in range(3)] for p in range(2)]
    assert grid == [[11, 21, 101], [12, 22, 102]]
    assert any("no pixel spacing" in text for text in stack.warnings)


def test_png_masks_and_missing_images(tmp_path):
    for number in (28, 40, 48):  # phases 8 and 20 of slice 2, phase 8 of slice 3
        name = f"SC-N-02-IM-0001-00{number}.dcm.png"
        write_png(tmp_path / "images" / name, number)
        write_png(tmp_path / "masks" / name, 255, mode="RGB")
    (stack,) = read_study(tmp_path / "images", tmp_path / "masks").stacks
    assert stack.shape == (2, 2, 6, 8) and stack.labelled_phases == (0, 1)
    assert (stack.labels(0) == LV).sum() == 96 and (stack.labels(1) == LV).sum() == 48
    assert stack.image(1, 1).max() == 0
    assert stack.warnings[0] == (
        "an image is missing (first: phase 20 of slice 3) and replaced by black, without a heart"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a1.png": {"size": (6, 8)}, "a2.png": {"size": (6, 9)}}, "6 × 8 and 6 × 9 pixels"),
        ({"s1_t01_x.png": {}, "s01_t01_x.png": {}}, "have the same slice and phase"),
        ({"a1.png": {}, "b1.png": {}}, "files of 2 patients or series"),
    ],
)
def test_png_files_that_do_not_fit_together(tmp_path, files, message):
    for name, settings in files.items():
        write_png(tmp_path / name, 5, **settings)
    with pytest.raises(DataError, match=message):
        read_study(tmp_path)


def test_pictures_with_colours_or_damage(tmp_path):
    Image.fromarray(np.eye(6, dtype=np.uint8)[..., None] * np.uint8([255, 0, 0])).save(
        tmp_path / "a1.png"
    )
    (stack,) = read_study(tmp_path).stacks
    with pytest.raises(DataError, match=r"a1.png: the picture has colours; export it in grey"):
        stack.image(0, 0)
    (tmp_path / "a1.png").write_bytes((tmp_path / "a1.png").read_bytes()[:20])
    with pytest.raises(DataError, match=r"a1.png: it cannot be read"):
        read_study(tmp_path)


def test_a_missing_slice_number_is_reported(tmp_path):
    for number in (1, 2, 4):
        write_png(tmp_path / f"sax{number}.png", number)
    (stack,) = read_study(tmp_path).stacks
    assert stack.warnings[0].startswith("slice 3 is missing")


def test_content_decides_what_a_path_is(tmp_path, cine):
    cine()
    write_volume(tmp_path / "extra.nii.gz")
    study = read_study(tmp_path)
    assert study.stacks[0].shape == (5, 4, 16, 12)
    assert "left out 1 NIfTI files" in study.warnings
    assert read_study(tmp_path.parent / tmp_path.name / "000.dcm").stacks[0].shape[:2] == (1, 1)
    renamed = write_volume(tmp_path / "x" / "sax.nii").rename(tmp_path / "x" / "sax.data")
    with pytest.raises(DataError, match=r"sax.data: .* rename it to end in .nii or .nii.gz"):
        read_study(renamed)


def test_masks_of_a_dicom_study_go_to_the_stack_in_the_same_place(tmp_path, cine):
    """The DICOM slices lie at z = 0, 10, 20, 30; pixels of 1.5 mm start at (0, 0)."""
    folder = cine()
    for phase in range(5):
        write_frame(folder, phase=phase, name="4CH", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    labels = heart_labels(4, 16, 12)
    mask = write_mask(
        tmp_path / "masks" / "sax_frame03.nii.gz", labels, affine=np.diag([-1.5, -1.5, 10, 1])
    )
    sax, long_axis = read_study(folder, mask, "acdc").stacks
    assert sax.labelled_phases == (2,) and long_axis.labelled_phases == ()
    assert np.array_equal(sax.labels(2), labels)
    far = write_mask(tmp_path / "masks" / "b_frame03.nii.gz", labels, affine=np.eye(4))
    with pytest.raises(DataError, match="the mask has 4 slices of 16 × 12 pixels of 1 mm, but"):
        read_study(folder, far, "acdc")


def test_unknown_content(tmp_path):
    (tmp_path / "notes.txt").write_text("notes")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="a NIfTI file or a folder of them"):
            read_study(path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        read_study(tmp_path / "none")


@pytest.mark.parametrize(("package", "name"), [("nibabel", "x.nii"), ("h5py", "x.h5")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, name):
    writer = write_volume if package == "nibabel" else write_hdf5
    file = writer(tmp_path / name)
    real = builtins.__import__

    def refuse(module, *arguments, **settings):
        if module == package:
            raise ImportError(module)
        return real(module, *arguments, **settings)

    importlib.import_module("xraygpt.cardiac.array_intake")
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(InputError, match=rf"need {package}: type make install-cmr"):
        read_study(file)


@pytest.mark.parametrize("patient", ["patient001", "patient041", "patient081"])
def test_real_acdc_ejection_fractions(real_data, patient):
    """100 (ED − ES) / ED of the pixels of the cavities, which need no spacing."""
    (stack,) = read_study(real_data / "acdc" / patient).stacks
    files = sorted((real_data / "acdc").glob(f"{patient}_*.h5"))
    pixels = []
    for file in files:
        with h5py.File(file) as content:
            label = content["label"][()]
        pixels.append([(label == 3).sum(), (label == 1).sum()])
    (left, right), (left_end, right_end) = pixels
    result = measure(replace(stack, spacing=(1.0, 1.0), gap=1.0))
    assert result.left.ejection_fraction == pytest.approx(100 * (left - left_end) / left)
    assert result.right.ejection_fraction == pytest.approx(100 * (right - right_end) / right)


def test_hdf5_lies_as_the_transposed_nifti(real_data):
    """Patient 1 in HDF5 and in CineMA's NIfTI, resampled there from 1.5625 to 1 mm and cropped."""
    (stack,) = read_study(real_data / "acdc" / "patient001_frame01.h5").stacks
    nifti = np.asarray(nib.load(real_data / "cmr/nifti/acdc/sax_ed.nii.gz").dataobj)
    enlarged = ndimage.zoom(stack.image(0, 4), 1.5625, order=1)
    part = enlarged[106 : 106 + 192, 66 : 66 + 192]  # where the crop lies
    rows, columns = nifti[:, :, 4].T[: part.shape[0]], nifti[:, :, 4][: part.shape[0]]
    assert np.corrcoef(part.ravel(), rows.ravel())[0, 1] > 0.95
    assert np.corrcoef(part.ravel(), columns.ravel())[0, 1] < 0.6


@pytest.mark.slow
def test_real_sunnybrook_patients(real_data):
    """Ejection fractions from all endocardial pixels; images are numbered 20 per slice."""
    folder = real_data / "cmr" / "sunnybrook"
    for part, patient, shape in (
        ("Sunnybrook_Part1", "SC-HF-I-01", (2, 9, 256, 256)),
        ("Sunnybrook_Part2", "SC-N-05", (2, 8, 256, 256)),
    ):
        images, masks = folder / "Images" / part, folder / "Labels" / part
        (stack,) = read_study(images / patient, masks / patient).stacks
        assert (stack.shape, stack.labelled_phases) == (shape, (0, 1))
        areas = {}
        for file in masks.glob(f"{patient}-*.png"):
            phase = (int(file.name[-12:-8]) - 1) % 20
            white = (np.asarray(Image.open(file))[..., 0] == 255).sum()
            areas[phase] = areas.get(phase, 0) + int(white)
        high, low = max(areas.values()), min(areas.values())
        result = measure(replace(stack, spacing=(1.0, 1.0), gap=1.0))
        assert result.left.ejection_fraction == pytest.approx(100 * (high - low) / high)
    with pytest.raises(DataError, match=r"files of 15 patients or series .*/SC-HF-I-01$"):
        read_study(folder / "Images" / "Sunnybrook_Part1")


def test_real_dicom_files(real_data):
    """FrameTime 69.47 ms, 16 frames, no PixelSpacing; the other has 10 frames without geometry."""
    (stack,) = read_study(real_data / "cmr" / "dicom" / "cine_16_frames.dcm").stacks
    assert stack.shape == (16, 1, 256, 256)
    assert stack.times == pytest.approx(np.arange(16) * 0.06947)
    assert stack.spacing is None and stack.positions is None
    with pytest.raises(DataError, match="10 images without position have no TriggerTime"):
        read_study(real_data / "cmr" / "dicom" / "emri_small.dcm")
