"""Training data for nnU-Net: files, labels, folds by patient, and faults of the corpora."""

from __future__ import annotations

import gzip
import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from tests import processes
from tests.conftest import REPO
from tests.segmentation.synthetic_hearts import (
    draw_patient,
    save,
    write_acdc_patient,
    write_mnms,
)
from xraygpt.common.errors import DataError, InputError
from xraygpt.segmentation.nifti import read_spacing, read_volume
from xraygpt.segmentation.nnunet_corpora import find_acdc, find_mnms
from xraygpt.segmentation.nnunet_dataset import Place, write_dataset
from xraygpt.segmentation.nnunet_model import derive_convention

nibabel = pytest.importorskip("nibabel")

SMALL = (3, 12, 14)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "nnUNet_raw", tmp_path / "nnUNet_preprocessed")


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    for number in range(1, 8):
        write_acdc_patient(tmp_path / "acdc" / "training", number, SMALL)
    return tmp_path / "acdc"


def files_of(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_files_are_where_nnunet_expects_them(acdc, place):
    summary = write_dataset(place, find_acdc([acdc]))
    raw = place.raw / "Dataset027_CardiacMR"
    names = [f"patient{n:03d}_{phase}" for n in range(1, 8) for phase in ("ED", "ES")]
    assert files_of(raw / "imagesTr") == [f"{name}_0000.nii.gz" for name in names]
    assert files_of(raw / "labelsTr") == [f"{name}.nii.gz" for name in names]
    described = json.loads((raw / "dataset.json").read_text())
    assert described["numTraining"] == 14 and described["file_ending"] == ".nii.gz"
    assert described["channel_names"] == {"0": "cine MRI"}
    names_by_value = {value: name for name, value in described["labels"].items()}
    assert derive_convention(names_by_value) == "acdc"
    assert not summary.faults and not summary.other_headers
    text = (raw / "README.md").read_text()
    assert "7 patients of ACDC" in text and f"export nnUNet_raw={place.raw.resolve()}" in text
    assert "nnUNetv2_plan_and_preprocess -d 27 " in text


def test_pixels_and_spacing_are_those_of_the_corpus(acdc, place):
    write_dataset(place, find_acdc([acdc]))
    raw = place.raw / "Dataset027_CardiacMR"
    for phase, (image, labels) in draw_patient(3, SMALL).items():
        file = raw / "imagesTr" / f"patient003_{phase}_0000.nii.gz"
        assert np.array_equal(read_volume(file), image)
        assert read_spacing(file) == pytest.approx((10.0, 1.5, 1.4))
        mask = raw / "labelsTr" / f"patient003_{phase}.nii.gz"
        assert np.array_equal(read_volume(mask), labels)
        stored = nibabel.load(mask)
        assert stored.get_data_dtype() == np.uint8 and stored.shape == (14, 12, 3)
        assert np.array_equal(stored.affine, nibabel.load(file).affine)


def test_mnms_labels_become_those_of_acdc(tmp_path, place):
    write_mnms(tmp_path / "mnms", [1, 2], SMALL)
    (tmp_path / "mnms" / "Unlabeled" / "X").mkdir(parents=True)
    (tmp_path / "mnms" / "Unlabeled" / "X" / "X_sa.nii.gz").touch()
    write_dataset(place, find_mnms([tmp_path / "mnms"]))
    raw = place.raw / "Dataset027_CardiacMR"
    for phase, (image, labels) in draw_patient(2, SMALL).items():
        assert np.array_equal(read_volume(raw / f"imagesTr/S00002_{phase}_0000.nii.gz"), image)
        assert np.array_equal(read_volume(raw / f"labelsTr/S00002_{phase}.nii.gz"), labels)
        assert read_spacing(raw / f"labelsTr/S00002_{phase}.nii.gz")[0] == pytest.approx(10.0)


def test_folds_keep_patients_together_and_mix_the_corpora(acdc, tmp_path, place):
    write_mnms(tmp_path / "mnms", list(range(20, 30)), SMALL)
    patients = [*find_acdc([acdc]), *find_mnms([tmp_path / "mnms"])]
    write_dataset(place, patients)
    file = place.preprocessed / "Dataset027_CardiacMR" / "splits_final.json"
    splits = json.loads(file.read_text())
    assert len(splits) == 5
    cases = {f"{patient.name}_{phase}" for patient in patients for phase in ("ED", "ES")}
    validated = [case for split in splits for case in split["val"]]
    assert sorted(validated) == sorted(cases)
    for split in splits:
        assert set(split["train"]) | set(split["val"]) == cases
        left, right = ({case[:-3] for case in split[side]} for side in ("train", "val"))
        assert not left & right
        assert sum(case.startswith("patient") for case in split["val"]) in (2, 4)
        assert sum(case.startswith("S000") for case in split["val"]) == 4


def change_info(patient: Path, text: str) -> None:
    (patient / "Info.cfg").write_text(text)


def change_volume(file: Path, change) -> None:
    save(file, change(np.asarray(nibabel.load(file).dataobj).transpose()))


FAULTS = [
    (lambda p: (p / f"{p.name}_frame09_gt.nii.gz").unlink(), r"frame09_gt.nii.gz: .*the mask"),
    (lambda p: (p / f"{p.name}_frame01.nii.gz").unlink(), r"frame01.nii.gz: .*the image"),
    (lambda p: change_info(p, "ED: 1\nGroup: NOR\n"), r"Info.cfg: .*no frame number in a line ES"),
    (lambda p: change_info(p, "ED: 1\nES: 1\n"), r"Info.cfg: ED and ES are the same frame 1"),
    (
        lambda p: change_volume(p / f"{p.name}_frame01_gt.nii.gz", lambda v: v * np.float32(0.5)),
        r"frame01_gt.nii.gz: the label map has values that are not whole",
    ),
    (
        lambda p: change_volume(p / f"{p.name}_frame01_gt.nii.gz", lambda v: v + np.uint8(1)),
        r"frame01_gt.nii.gz: the label map has the value 4",
    ),
    (
        lambda p: change_volume(p / f"{p.name}_frame01_gt.nii.gz", np.zeros_like),
        r"frame01_gt.nii.gz: the mask is empty, which should be ED",
    ),
    (
        lambda p: change_volume(p / f"{p.name}_frame01_gt.nii.gz", lambda v: v[:2]),
        r"the mask has the shape \(14, 12, 2\), the image \(14, 12, 3\)",
    ),
    (
        lambda p: change_volume(p / f"{p.name}_frame09.nii.gz", lambda v: v * np.nan),
        r"frame09.nii.gz: some values are not finite",
    ),
    (
        lambda p: (p / f"{p.name}_frame01.nii.gz").write_bytes(b"damaged"),
        r"frame01.nii.gz cannot be read as NIfTI",
    ),
    (lambda p: write_acdc_patient(p.parent.parent / "testing", 2, SMALL), "patient002 is already"),
    (lambda p: write_acdc_patient(p.parent, 9, SMALL, seed=2), "same images as patient002"),
]


@pytest.mark.parametrize(
    ("spoil", "message"), FAULTS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_faults_name_the_file_and_can_be_skipped(acdc, place, spoil, message):
    spoil(acdc / "training" / "patient002")
    with pytest.raises(DataError, match=message) as caught:
        write_dataset(place, find_acdc([acdc]))
    assert "--skip-faulty" in str(caught.value)
    assert not list(place.raw.glob("*")) and not place.preprocessed.exists()
    summary = write_dataset(place, find_acdc([acdc]), skip_faulty=True)
    assert len(summary.faults) == 1
    whole = {case[:-3] for name in summary.cases.values() for case in name}
    assert whole == set(summary.cases) and len(whole) in (6, 7)


def change_header(file: Path, spacing: tuple[float, ...], unit: int) -> None:
    """Overwrite `pixdim` and `xyzt_units` in the bytes of a file; nibabel would correct them."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    struct.pack_into("<3f", content, 80, *spacing)
    content[123] = unit
    file.write_bytes(gzip.compress(content))


def test_spacing_is_in_millimetres_and_above_zero(acdc):
    file = acdc / "training" / "patient001" / "patient001_frame01.nii.gz"
    change_header(file, (0.0014, 0.0015, 0.010), unit=1)  # metres
    assert read_spacing(file) == pytest.approx((10.0, 1.5, 1.4))
    change_header(file, (1.4, 1.5, 0.0), unit=2)
    with pytest.raises(DataError, match=r"frame01.nii.gz: .* no usable spacing \(1.4 × 1.5 × 0 mm"):
        read_spacing(file)


def test_masks_with_another_header_are_counted(acdc, place):
    file = acdc / "training" / "patient001" / "patient001_frame01_gt.nii.gz"
    image = nibabel.load(file)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), np.diag([1, 1, 1, 1])), file)
    assert write_dataset(place, find_acdc([acdc])).other_headers == 1


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("External code,ED,ES\nS00001,3,1\n", "no row with the external code S00002"),
        ("External code,ED,ES\nS00001,3,1\nS00002,,1\n", "no frame number in the column ED"),
        ("External code,ED,ES\nS00001,3,1\nS00002,3,9\n", "no frame 9, only 0 to 4"),
        ("External code,ED,ES\nS00001,3,1\nS00002,2,1\n", "empty in frame 2, which should be ED"),
        ("code,ED,ES\n", "no table with the columns External code, ED, ES"),
    ],
)
def test_faults_of_the_table_of_mnms_are_named(tmp_path, place, table, message):
    file = write_mnms(tmp_path / "mnms", [1, 2], SMALL)
    file.write_text(table)
    with pytest.raises(DataError, match=message):
        write_dataset(place, find_mnms([tmp_path / "mnms"]))


def test_folders_without_patients_and_missing_masks_are_named(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: there are no patients of ACDC"):
        list(find_acdc([tmp_path / "empty"]))
    with pytest.raises(DataError, match=r"empty: there are no labelled patients of M&Ms"):
        list(find_mnms([tmp_path / "empty"]))
    table = write_mnms(tmp_path / "mnms", [1, 2], SMALL)
    shutil.copy(table, table.with_name("copy.csv"))
    with pytest.raises(DataError, match=r"several tables \(copy.csv, table.csv\)"):
        list(find_mnms([tmp_path / "mnms"]))
    (tmp_path / "mnms" / "Labeled" / "S00001" / "S00001_sa_gt.nii.gz").unlink()
    with pytest.raises(DataError, match=r"S00001_sa_gt.nii.gz: there is no such file"):
        write_dataset(place, find_mnms([tmp_path / "mnms"], table))


def test_existing_datasets_are_not_overwritten(acdc, place):
    write_dataset(place, find_acdc([acdc]))
    with pytest.raises(InputError, match="Dataset027_CardiacMR already exists"):
        write_dataset(place, find_acdc([acdc]))
    (place.preprocessed / "Dataset028_Other").mkdir()
    other = Place(place.raw, place.preprocessed, 28)
    with pytest.raises(
        InputError, match="Dataset028_Other already exists; remove it, or choose another"
    ):
        write_dataset(other, find_acdc([acdc]))


def prepare(*arguments: object) -> processes.CompletedProcess:
    command = [sys.executable, "-m", "xraygpt.prepare_nnunet", *map(str, arguments)]
    return processes.run(command, cwd=REPO, capture_output=True, text=True)


@pytest.mark.slow
def test_the_command_reports_what_it_wrote(acdc, tmp_path):
    table = write_mnms(tmp_path / "mnms", [20, 21], SMALL)
    (acdc / "training" / "patient002" / "Info.cfg").write_text("")
    words = ["--acdc", acdc, "--mnms", tmp_path / "mnms", "--mnms-table", table]
    words += ["--out", tmp_path / "nnUNet_raw", "--dataset-id", 131]
    refused = prepare(*words)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "patient002/Info.cfg: there is no frame number" in refused.stderr
    done = prepare(*words, "--skip-faulty")
    assert done.returncode == 0, done.stderr
    assert "Dataset131_CardiacMR: 16 cases of 8 patients" in done.stdout
    assert "left out: " in done.stderr
    assert (tmp_path / "nnUNet_preprocessed/Dataset131_CardiacMR/splits_final.json").is_file()
    again = prepare(*words)
    assert again.returncode == 2 and "already exists" in again.stderr
    nothing = prepare("--out", tmp_path / "other")
    assert nothing.returncode == 2 and "give --acdc, --mnms or both" in nothing.stderr
