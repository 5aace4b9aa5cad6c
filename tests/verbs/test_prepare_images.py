"""DICOM and 16-bit images become JPEG or PNG, with their original sizes beside them."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from xraygpt.jobs import images as job
from xraygpt.jobs.images import Conversion, convert_images

PNG = Conversion(suffix=".png")


def write_dicom(path, stored: np.ndarray, photometric: str = "MONOCHROME2", **tags) -> None:
    """Write a DICOM file of SYNTHETIC values."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = SecondaryCaptureImageStorage
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = generate_uid()
    ds.Modality, ds.PhotometricInterpretation, ds.SamplesPerPixel = "DX", photometric, 1
    ds.Rows, ds.Columns = stored.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype == np.int16)
    ds.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path))


def sizes(out) -> dict[str, tuple[int, int]]:
    with (out / "sizes.csv").open() as file:
        return {r["image_id"]: (int(r["width"]), int(r["height"])) for r in csv.DictReader(file)}


@pytest.fixture
def source(tmp_path):
    """Return a folder with images of all kinds that RadVLM's conversion spoils (fault 10, 11)."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    ramp = np.arange(40 * 60).reshape(40, 60)
    Image.fromarray((ramp * 27).astype(np.uint16)).save(folder / "ramp16.png")
    write_dicom(folder / "one.dicom", (ramp * 10).astype(np.uint16), "MONOCHROME1")
    write_dicom(folder / "sub/signed.dcm", (ramp - 1200).astype(np.int16))
    write_dicom(
        folder / "sub/window.dcm", ramp.astype(np.uint16), WindowCenter=600, WindowWidth=400
    )
    write_dicom(folder / "flat.dcm", np.full((40, 60), 7, dtype=np.uint16))
    (folder / "broken.dcm").write_bytes(b"no image")
    return folder


def test_every_kind_of_image_keeps_its_grey_levels(source, tmp_path):
    out = tmp_path / "out"
    summary = convert_images(source, out, PNG, workers=1)
    assert summary == (5, 5, 1)
    ramp = pixels(out / "ramp16.png")
    assert ramp.dtype == np.uint8 and ramp[0, 0] == 0 and (ramp == 255).mean() < 0.01
    assert abs(int(ramp[20, 0]) - round(20 * 60 * 27 / 65535 * 255)) <= 1
    one = pixels(out / "one.png")
    assert one[0, 0] == 255 and one[-1, -1] == 0, "MONOCHROME1: the lowest value is white"
    signed = pixels(out / "sub/signed.png")
    assert signed[0, 0] == 0 and signed[-1, -1] == 255
    window = pixels(out / "sub/window.png")
    assert (window[:6] == 0).all() and (window[15:] == 255).all() and 100 < window[10, 0] < 160
    assert len(np.unique(pixels(out / "flat.png"))) == 1, "a constant image does not divide by 0"
    assert "broken.dcm" in (out / "failed.csv").read_text()


def test_sizes_survive_a_second_run_and_a_kill(source, tmp_path, monkeypatch):
    """RadVLM's second run overwrites its table with the images of that run only (fault 9)."""
    out, table = tmp_path / "out", tmp_path / "image_resolutions_train.json"
    monkeypatch.setattr(
        job, "write_text_atomic", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        convert_images(source, out, PNG, workers=1)
    monkeypatch.undo()
    with (out / ".sizes.jsonl").open("a") as file:
        file.write('["half a li')
    summary = convert_images(source, out, PNG, workers=1, resolutions=table)
    assert summary == (5, 0, 1), "nothing is converted twice"
    assert sizes(out) == dict.fromkeys(["flat", "one", "ramp16", "signed", "window"], (60, 40))
    assert json.loads(table.read_text())["ramp16"] == [40, 60], "rows, columns"
    assert convert_images(source, out, PNG, workers=1, resolutions=table) == (5, 0, 1)
    assert len(json.loads(table.read_text())) == 5


def test_missing_and_changed_files_and_other_settings_are_converted_again(source, tmp_path):
    out = tmp_path / "out"
    convert_images(source, out, PNG, workers=1)
    (out / "flat.png").unlink()
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(source / "ramp16.png")
    assert convert_images(source, out, PNG, workers=1) == (5, 2, 1)
    assert sizes(out)["ramp16"] == (20, 30)
    small = Conversion(suffix=".png", side=30)
    assert convert_images(source, out, small, workers=1) == (5, 5, 1)
    assert pixels(out / "one.png").shape == (20, 30), "the aspect ratio is kept"
    assert sizes(out)["one"] == (60, 40), "the original size"
    large = Conversion(suffix=".png", side=500)
    convert_images(source, out, large, workers=1)
    assert pixels(out / "one.png").shape == (40, 60), "nothing is enlarged"


def test_two_processes_write_the_same_files(source, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    convert_images(source, one, Conversion(), workers=1)
    convert_images(source, two, Conversion(), workers=2)
    for path in sorted(p for p in one.rglob("*") if p.is_file() and p.name != ".sizes.jsonl"):
        assert path.read_bytes() == (two / path.relative_to(one)).read_bytes()


def test_real_films(real_data, tmp_path):
    summary = convert_images(
        real_data / "grounding/xrv_samples", tmp_path, Conversion(side=512), workers=1
    )
    assert summary.failed == 0 and max(pixels(p).shape[0] for p in tmp_path.rglob("*.jpg")) <= 512


def test_the_command_names_failures_and_mistakes(source, tmp_path, monkeypatch, capsys):
    from xraygpt.common.errors import DataError, InputError
    from xraygpt.prepare_images import main

    def run(*args) -> None:
        monkeypatch.setattr(sys, "argv", ["prepare_images", *map(str, args)])
        main()

    with pytest.raises(job.SomeImagesFailed, match="1 files could not be read") as failed:
        run(source, tmp_path / "out", "--workers", 1)
    assert failed.value.exit_code == 3 and "5 images, 5 of them new" in capsys.readouterr().out
    with pytest.raises(InputError, match="the same folder"):
        run(source, source)
    Image.fromarray(np.zeros((30, 20), np.uint8)).save(source / "one.png")
    with pytest.raises(DataError, match=r"one.dicom and one.png would both become one.jpg"):
        run(source, tmp_path / "out")
