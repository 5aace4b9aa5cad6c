"""Which studies a folder contains."""

from __future__ import annotations

import pytest

from tests.cardiac.conftest import write_frame
from tests.cardiac.volumes import write_hdf5, write_volume
from xraygpt.cardiac.study_list import list_studies, study_files


def test_one_dicom_study_may_lie_in_folders_of_series(tmp_path):
    for name in ("Se1", "Se2"):
        (tmp_path / name).mkdir()
        write_frame(tmp_path / name, name=name)
    assert list_studies(tmp_path) == [tmp_path]
    assert len(study_files(tmp_path)) == 2


def test_folders_with_other_studies_are_studies(tmp_path):
    for i, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        write_frame(tmp_path / name, StudyInstanceUID=f"1.2.{i}")
    assert list_studies(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "c").mkdir()
    write_volume(tmp_path / "c" / "sax_4d.nii.gz")
    assert list_studies(tmp_path) == [tmp_path / n for n in "abc"]


def test_files_of_several_patients_in_one_folder(tmp_path):
    import numpy as np

    for patient in ("patient001", "patient002"):
        for frame in ("01", "12"):
            image = np.ones((2, 8, 8), np.float32)
            write_hdf5(tmp_path / f"{patient}_frame{frame}.h5", image=image)
    studies = list_studies(tmp_path)
    assert studies == [tmp_path / "patient001", tmp_path / "patient002"]
    assert [f.name for f in study_files(studies[1])] == [
        "patient002_frame01.h5", "patient002_frame12.h5",
    ]  # fmt: skip
    assert list_studies(tmp_path / "patient001_frame01.h5")[0].is_file()


@pytest.mark.data
def test_the_real_collections(real_data):
    assert len(list_studies(real_data / "acdc")) == 3
    assert len(list_studies(real_data / "cmr" / "biv_me" / "dicoms")) == 1
