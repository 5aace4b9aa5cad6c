"""Label maps that come with images: collections, conventions, and masks that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cardiac.volumes import (
    RIGHT_FRONT_HEAD,
    heart_labels,
    values,
    write_acdc,
    write_mask,
    write_volume,
)
from xraygpt.cardiac.function import measure_function
from xraygpt.cardiac.intake import read_study
from xraygpt.cardiac.stack_segmentation import segment_stack
from xraygpt.cardiac.study import Patient
from xraygpt.common.errors import DataError
from xraygpt.segmentation.labels import LV, RV
from xraygpt.segmentation.masks import GivenMasks

TABLE = (
    ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight\n"
    "0,A0S9V9,Siemens,A,1,0,2,46,NOR,F,168.0,61.5\n"
    "1,A1B2C3,Siemens,A,1,0,2,46,NOR,M,,\n"
)


def measure(stack):
    return measure_function(stack, segment_stack(stack, GivenMasks.Config().build()))


def test_an_acdc_patient(tmp_path):
    """4 and 1 pixels of 1.5 × 1.25 mm in 3 slices 8 mm apart: 0.18 and 0.045 mL, EF 75 %."""
    study = read_study(write_acdc(tmp_path / "patient001"))
    (stack,) = study.stacks
    assert study.patient == Patient("", 184, 95) and study.warnings == []
    assert (stack.name, stack.role, stack.shape) == ("patient001", "SAX", (6, 3, 12, 10))
    assert stack.labelled_phases == (0, 2) and stack.warnings == ()
    result = measure(stack)
    assert result.phases.tolist() == [0, 2]
    assert result.left.volumes == pytest.approx([0.18, 0.045])
    assert result.left.ejection_fraction == pytest.approx(75)
    assert result.right.volumes == pytest.approx([0.36, 0.36])  # 8 pixels


def test_acdc_frames_alone(tmp_path):
    folder = write_acdc(tmp_path / "patient001")
    (folder / "patient001_4d.nii.gz").unlink()
    (stack,) = read_study(folder).stacks
    assert (stack.shape[0], stack.labelled_phases) == (2, (0, 1))
    assert [stack.image(p, 0)[0, 0] for p in (0, 1)] == [0, 2000]
    assert stack.warnings == ("there are only the phases 1, 3, so there is no curve",)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ("ED: 1\nES: 9\n", r"phase ES = 9 is outside the images' 1 to 6"),
        ("ED: 1\nES: 1\n", "ED and ES are the same phase"),
        ("ED: 2\nES: 3\n", "masks are of phases 1 and 3, but Info.cfg says ED = 2 and ES = 3"),
        ("ED: 1\nES: 3\nNbFrame: 30\n", "Info.cfg says 30 phases, but the images have 6"),
        ("ED: 1\n", "does not say which phase is ES"),
        ("ED 1\nES: 3\n", "line 1 has no key and value: 'ED 1'"),
        ("ED: 1\nES: 3\nHeight: tall\n", "Height is 'tall', which is not a number"),
        ("ED: 1\nES: 3\nHeight: 1840\n", "a height of 1840 cm is implausible"),
        ("ED: 1\nES: 3\nWeight: 95000\n", "a weight of 95000 kg is implausible"),
    ],
)
def test_what_is_odd_in_info_cfg_is_reported(tmp_path, info, message):
    study = read_study(write_acdc(tmp_path / "patient001", info))
    assert any(message in text for text in study.warnings), study.warnings


def test_a_height_in_metres(tmp_path):
    info = "ED: 1\nES: 3\nHeight: 1.84\nWeight: 95\n"
    study = read_study(write_acdc(tmp_path / "patient001", info))
    assert study.patient.height == pytest.approx(184)
    assert study.warnings == ["Info.cfg: the height 1.84 is taken as metres, not cm"]


def write_mnms(root, code="A0S9V9"):
    folder = root / "Training" / "Labeled" / code
    labels = np.zeros((6, 3, 12, 10), np.uint8)
    for phase in (0, 2):  # M&Ms: LV is 1, RV is 3
        labels[phase] = np.array([0, 3, 2, 1], np.uint8)[heart_labels()]
    write_volume(folder / f"{code}_sa.nii.gz", values(10, 12, 3, 6))
    write_mask(folder / f"{code}_sa_gt.nii.gz", labels)
    return folder


def test_an_mnms_patient(tmp_path):
    """The table lies three folders above, its phases count from 0, and LV is 1 in its masks."""
    (tmp_path / "info.csv").write_text(TABLE)
    study = read_study(write_mnms(tmp_path))
    (stack,) = study.stacks
    assert study.patient == Patient("female", 168, 61.5) and study.warnings == []
    assert stack.labelled_phases == (0, 2)  # the other phases of the file are empty
    assert (stack.labels(0) == LV).sum() == 12 and (stack.labels(0) == RV).sum() == 24
    assert read_study(write_mnms(tmp_path, "A1B2C3")).patient == Patient("male")
    (missing,) = read_study(write_mnms(tmp_path, "Z9Z9Z9")).warnings
    assert missing.startswith("info.csv has no row for Z9Z9Z9")


def test_a_wrong_convention_is_noticed(tmp_path):
    folder = write_acdc(tmp_path / "patient001")
    (stack,) = read_study(folder, convention="mnms").stacks
    assert "the myocardium surrounds the right ventricle" in stack.warnings[-1]


def test_masks_beside_and_elsewhere(tmp_path):
    image = write_volume(tmp_path / "a" / "sax.nii.gz", values(10, 12, 3, 1)[..., 0])
    mask = write_mask(tmp_path / "b" / "drawn.nii.gz", heart_labels().astype(np.float32))
    (stack,) = read_study(image, mask, "acdc").stacks
    assert np.array_equal(stack.labels(0), heart_labels())
    assert stack.labels(0).dtype == np.uint8
    with pytest.raises(DataError, match=r"drawn.nii.gz: which structures .* give the convention"):
        read_study(image, mask)
    with pytest.raises(DataError, match="unknown label convention 'acd': use acdc, mnms"):
        read_study(image, mask, "acd")


def test_labels_are_reordered_with_the_images(tmp_path):
    affine = RIGHT_FRONT_HEAD.copy()
    affine[2, 2] = -8
    labels = heart_labels()
    labels[0] = 0
    image = write_volume(tmp_path / "sax.nii", values(10, 12, 3, 1)[..., 0], affine)
    mask = write_mask(tmp_path / "m" / "sax.nii", labels, affine=affine)
    (stack,) = read_study(image, mask, "acdc").stacks
    assert [stack.labels(0)[s].any() for s in range(3)] == [True, True, False]
    assert [stack.image(0, s)[0, 0] for s in range(3)] == [200, 100, 0]


def test_a_mask_with_other_directions_fits_if_its_pixels_lie_in_the_same_places(tmp_path):
    """Columns and slices from the other end, and rows and columns exchanged."""
    image = write_volume(tmp_path / "sax.nii", values(10, 12, 3, 1)[..., 0])
    labels = heart_labels()
    labels[0, 0, 0] = 1
    stored = labels.transpose()[::-1, :, ::-1].transpose(1, 0, 2)  # (y, x, z)
    affine = np.zeros((4, 4))
    affine[:, 0], affine[:, 1], affine[:, 2] = (
        RIGHT_FRONT_HEAD[:, 1], -RIGHT_FRONT_HEAD[:, 0], -RIGHT_FRONT_HEAD[:, 2],
    )  # fmt: skip
    affine[:, 3] = RIGHT_FRONT_HEAD @ [9, 0, 2, 1]
    mask = write_volume(tmp_path / "m" / "sax.nii", stored, affine)
    (stack,) = read_study(image, mask, "acdc").stacks
    assert np.array_equal(stack.labels(0), labels)


def moved(millimetres):
    affine = RIGHT_FRONT_HEAD.copy()
    affine[1, 3] += millimetres
    return {"affine": affine}


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (heart_labels(slices=2), {}, "the mask has 2 slices of 12 × 10 pixels of 1.25 mm, but"),
        (heart_labels(rows=11), {}, "give the mask of these images"),
        (heart_labels(), {"affine": np.diag([-1.0, -1, 8, 1])}, "12 × 10 pixels of 1 mm, but sax"),
        (heart_labels(), moved(3), "the mask lies up to 3.0 mm away from the images of sax"),
        (heart_labels() * 0.5, {}, "values that are not whole"),
        (heart_labels() * np.float32(np.nan), {}, "values that are not numbers"),
        (heart_labels() + 7, {}, "the value 7, but acdc has only 0 to 3"),
        (np.stack([heart_labels()] * 2), {"step": 0.4}, "mask has 2 phases, the images 1; put its"),
    ],
)
def test_masks_that_do_not_fit(tmp_path, labels, settings, message):
    image = write_volume(tmp_path / "sax.nii", values(10, 12, 3, 1)[..., 0])
    mask = write_mask(tmp_path / "m" / "sax.nii", labels, **settings)
    with pytest.raises(DataError, match=message):
        read_study(image, mask, "acdc")


def test_masks_of_other_phases_and_names(tmp_path):
    folder = write_acdc(tmp_path / "patient001")
    write_mask(folder / "patient001_frame09_gt.nii.gz", heart_labels())
    with pytest.raises(DataError, match="the mask is of phase 9, but patient001 has phases 1 to 6"):
        read_study(folder)
    (folder / "patient001_frame09_gt.nii.gz").unlink()
    write_mask(folder / "patient001_gt.nii.gz", heart_labels())
    with pytest.raises(DataError, match="put its phase into its name, counted from 1"):
        read_study(folder)
    (folder / "patient001_gt.nii.gz").unlink()
    write_volume(folder / "lax_4ch.nii.gz", values(10, 12, 1, 1)[..., 0])
    write_mask(folder / "other_gt.nii.gz", heart_labels())
    with pytest.raises(DataError, match="no images have this name; name the masks as the images"):
        read_study(folder)


def test_empty_masks_and_masks_alone(tmp_path):
    image = write_volume(tmp_path / "sax.nii", values(10, 12, 3, 1)[..., 0])
    mask = write_mask(tmp_path / "m" / "sax_gt.nii", heart_labels() * 0)
    (stack,) = read_study(image, mask, "acdc").stacks
    assert stack.warnings == ("the masks are empty",) and stack.labelled_phases == (0,)
    with pytest.raises(DataError, match="there are masks, but no images"):
        read_study(mask)


def test_masks_of_end_diastole_and_systole_beside_a_cine(tmp_path):
    """In M&Ms-2, nothing says which phases of the cine the two frames are: they are used alone."""
    write_volume(tmp_path / "001_SA_CINE.nii.gz", values(10, 12, 3, 6))
    for phase in ("ED", "ES"):
        write_volume(tmp_path / f"001_SA_{phase}.nii.gz", values(10, 12, 3, 1)[..., 0])
        write_mask(tmp_path / f"001_SA_{phase}_gt.nii.gz", heart_labels())
    (stack,) = read_study(tmp_path, convention="acdc").stacks
    assert (stack.phases, stack.labelled_phases) == (2, (0, 1))


@pytest.mark.parametrize("code", [0, 2])
def test_masks_of_images_without_positions_keep_the_order_of_the_file(tmp_path, code):
    """nibabel gives the copy of such an affine the code 2, and the affine runs downwards."""
    affine = np.diag([1.5, 1.25, -8.0, 1])
    write_volume(tmp_path / "sax_4d.nii.gz", affine=affine, code=0)
    labels = np.zeros((3, 5, 4), np.uint8)
    labels[0, 2, 1] = 3  # in the first slice of the file
    write_mask(tmp_path / "sax_frame01_gt.nii.gz", labels, affine=affine, code=code)
    (stack,) = read_study(tmp_path, convention="acdc").stacks
    assert stack.positions is None or stack.origins is None
    assert stack.labels(0)[:, 2, 1].tolist() == [3, 0, 0]
    assert stack.image(0, 0)[2, 1] == 21  # 100 z + 10 y + x


def test_masks_without_positions_are_refused_for_images_with_positions(tmp_path):
    write_volume(tmp_path / "sax_4d.nii.gz")
    mask = write_mask(tmp_path / "m" / "m.nii.gz", np.zeros((3, 5, 4), np.uint8), code=0)
    with pytest.raises(DataError, match="the order of its slices is unknown"):
        read_study(tmp_path / "sax_4d.nii.gz", mask, "acdc")


def test_two_short_axis_series_in_a_folder_may_be_two_patients(tmp_path):
    for name in ("sax_p1_4d.nii.gz", "sax_p2_4d.nii.gz"):
        write_volume(tmp_path / name)
    with pytest.raises(DataError, match="there are 2 short-axis series"):
        read_study(tmp_path)
