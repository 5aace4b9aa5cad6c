"""From a folder of studies to a folder of clips, a table and pages."""

from __future__ import annotations

import csv
import json
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import REPO
from tests.media.video_files import write_video
from tests.ultrasound.scans import (
    INK,
    INNER_BOX,
    NAME_BOX,
    a4c,
    cine,
    fan,
    finder,
    region,
    scan,
    write_on,
)
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.experiment import NO_IMAGES, Training
from xraygpt.jobs.ultrasound import Intake, Summary
from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.ultrasound.intake import Settings
from xraygpt.ultrasound.names import Names, load_key
from xraygpt.ultrasound.page import COLUMNS
from xraygpt.ultrasound.source import read_clip
from xraygpt.ultrasound.store import write_pixels

SECRETS = ("quimby", "philippa", "774411", "19590412", "20210309", "99317", "winterfold")
FIND = finder((NAME_BOX, "QUIMBY^PHILIPPA"), (INNER_BOX, "LVOT 09.03.2021"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Return a folder with a cine, a still image, a video, a cut file and a text."""
    root = tmp_path_factory.mktemp("in")
    folder = root / "QUIMBY_Philippa" / "2021-03-09"
    folder.mkdir(parents=True)
    clip = scan()
    for box in (NAME_BOX, INNER_BOX):
        write_on(clip, box)
    cine(folder / "IM1.dcm", clip, region((30, 5, 289, 209)), HeartRate=71)
    cine(folder / "MRN-774411.dcm", clip[0])
    (folder / "cut.dcm").write_bytes((folder / "IM1.dcm").read_bytes()[:20_000])
    frames = list(np.repeat(scan(frames=6)[..., None], 3, axis=-1))
    write_video(root / "QUIMBY_Philippa" / "quimby view.mp4", frames, rate=20)
    (root / "readme.txt").write_text("two studies")
    return root


def run(source: Path, out: Path, find: Any = FIND, **settings: Any) -> Summary:
    return Intake(source, out, Settings(**settings), find).run()


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "clips.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(source, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("made") / "out"
    summary = run(source, out)
    assert (summary.clips, summary.new) == (3, 3)
    return out


def test_the_table(done):
    rows = rows_of(done)
    assert tuple(rows[0]) == COLUMNS and len(rows) == 3
    first = next(row for row in rows if row["heart_rate"])
    assert first["spacing_mm"] == "0.5 0.5" and float(first["depth_cm"]) == 205 * 0.05
    assert (first["fps"], first["times_from"]) == ("25.0", "Frame Time")
    assert (first["b_mode"], first["colour_doppler"], first["modes_from"]) == (
        "yes", "no", "region table"
    )  # fmt: skip
    assert (first["text_found"], first["text_matches"], first["text_left"]) == ("2", "2", "0")
    assert float(first["heart_rate"]) == 71
    video = next(row for row in rows if row["format"] == "video")
    assert video["fps"] == "20.0" and video["patient"] == "" and video["spacing_mm"] == ""
    assert len({row["study"] for row in rows if row["format"] == "DICOM"}) == 1
    assert len({row["patient"] for row in rows if row["format"] == "DICOM"}) == 1


def test_nothing_in_the_output_identifies_the_patient(done):
    """Neither content nor names of files, whatever the case."""
    files = [path for path in done.rglob("*") if path.is_file()]
    assert len(files) == 3 + 3 + 5  # clips, montages, and the files beside them
    for path in files:
        text = path.read_bytes().lower() + str(path.relative_to(done)).lower().encode()
        assert not [secret for secret in SECRETS if secret.encode() in text], path
        assert b"2021-03-09" not in text and b"1.2.826" not in text
    assert all("PatientName-" in row["source"] for row in rows_of(done))


def test_clips_have_no_text_and_the_rest_of_the_sector_unchanged(done, source):
    row = next(row for row in rows_of(done) if row["heart_rate"])
    stored = read_media_file(MediaRef(done / row["image"]), uint8=True)
    original = read_clip(source / "QUIMBY_Philippa" / "2021-03-09" / "IM1.dcm").pixels
    pixels = stored.data.numpy()[..., 0]
    assert not (pixels == INK).any()
    assert not pixels[:, :, :25].any()  # beside the sector
    changed = (pixels != original) & fan()
    _, y0, _, y1 = INNER_BOX
    assert not changed[:, : y0 - 4].any() and not changed[:, y1 + 4 :].any()
    assert stored.frame_times == pytest.approx([0.04 * i for i in range(12)], abs=1e-6)


def test_files_without_a_clip_are_named_with_the_reason(done):
    report = json.loads((done / "report.json").read_text())
    skipped = {Path(file["source"]).name: file for file in report["skipped"]}
    assert skipped["cut.dcm"]["is_damaged"] and "cut short" in skipped["cut.dcm"]["reason"]
    assert not skipped["readme.txt"]["is_damaged"]
    page = (done / "report.html").read_text()
    assert "cut.dcm" in page and "Research use only" in page and "never shown" in page
    assert page.count("<img ") == 3


def test_the_report_says_where_text_is(done):
    report = json.loads((done / "report.json").read_text())
    clip = next(clip for clip in report["clips"] if clip["heart_rate"])
    found = {tuple(text["box"]): text for text in clip["text"]}
    assert found[NAME_BOX]["matches"] == ["PatientName"]
    assert found[NAME_BOX]["region"] == "outside the sector"
    assert found[INNER_BOX]["matches"] == ["StudyDate"]
    assert found[INNER_BOX]["region"] == "inside the sector"
    assert (found[INNER_BOX]["first_frame"], found[INNER_BOX]["last_frame"]) == (0, 11)


def test_montages_hide_what_was_found(done):
    """Text before masking is covered, and too coarse to read outside the sector."""
    from PIL import Image

    row = next(row for row in rows_of(done) if row["heart_rate"])
    montage = np.asarray(Image.open(done / "figures" / f"{row['id']}.jpg")).astype(int)
    assert montage.shape == (480, 960, 3)
    white = (montage.min(axis=-1) > INK - 12).mean()
    orange = ((montage[..., 0] > 200) & (montage[..., 2] < 60)).mean()
    assert white == 0 and orange > 0.002


def test_a_second_run_does_only_what_is_new_or_changed(source, tmp_path):
    copy = tmp_path / "in"
    shutil.copytree(source, copy)
    out = tmp_path / "out"
    assert run(copy, out).new == 3
    table = (out / "clips.csv").read_text()
    assert run(copy, out).new == 0 and (out / "clips.csv").read_text() == table
    changed = copy / "QUIMBY_Philippa" / "2021-03-09" / "IM1.dcm"
    cine(changed, scan(seed=3))
    assert run(copy, out).new == 1
    next((out / "clips").glob("*.png")).unlink()
    summary = run(copy, out)
    assert (summary.new, summary.clips) == (1, 3)


def test_a_line_that_was_cut_off_is_done_again(source, tmp_path):
    out = tmp_path / "out"
    run(source, out)
    state = out / "state.jsonl"
    state.write_text(state.read_text()[:-40])
    assert run(source, out).new == 1
    assert run(source, out).new == 0


def test_other_content_is_never_overwritten(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="other files"):
        run(source, out)
    assert [p.name for p in out.iterdir()] == ["notes.txt"]
    made = tmp_path / "made"
    run(source, made)
    with pytest.raises(InputError, match=r"other settings \(mask_text\)"):
        run(source, made, mask_text="none")
    with pytest.raises(InputError, match=r"other settings \(text_search\)"):
        run(source, made, find=None)
    with pytest.raises(InputError, match="is inside"):
        run(source, source / "out")
    assert not (source / "out").exists()


def test_no_usable_file_is_an_error_that_lists_the_reasons(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("x")
    with pytest.raises(InputError, match=r"a\.txt: this is no DICOM"):
        run(tmp_path / "in", tmp_path / "out")


# ---- names ---------------------------------------------------------------------------------------


def test_pseudonyms_depend_on_the_key_only(source, tmp_path):
    def study(key: Path) -> set[str]:
        out = tmp_path / f"{key.stem}-{len(list(tmp_path.iterdir()))}"
        Intake(source, out, Settings(), FIND, key).run()
        return {row["study"] for row in rows_of(out) if row["format"] == "DICOM"}

    one, two = tmp_path / "one.key", tmp_path / "two.key"
    first = study(one)
    assert first == study(one) != study(two)
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    two.write_text("not a key")
    with pytest.raises(InputError, match="no key"):
        load_key(two)


def test_studies_by_folder(source, tmp_path):
    run(source, tmp_path / "out", study_from="folder")
    studies = {row["format"]: row["study"] for row in rows_of(tmp_path / "out")}
    assert re.fullmatch(r"PatientName-\w+/StudyDate-\w+", studies["DICOM"])
    assert re.fullmatch(r"PatientName-\w+", studies["video"])


def test_names_that_repeat_no_header_stay(tmp_path):
    from xraygpt.ultrasound.identity import Identity

    (tmp_path / "site3" / "rest").mkdir(parents=True)
    file = tmp_path / "site3" / "rest" / "A4C.mp4"
    names = Names(tmp_path, {file: Identity()}, b"k" * 32)
    assert names.source(file) == "site3/rest/A4C.mp4"
    assert names.study(file, "uid") == names.study(file, "folder") == "site3/rest"


# ---- clips on disk -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7, 61, 83, 3), (7, 61, 83), (1, 60, 84, 3), (1, 60, 84)])
def test_stored_values_are_those_that_are_read(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    times = None if shape[0] == 1 else tuple(np.cumsum([0, 33333, 33334, 40000, 1, 9, 7]) / 1e6)
    file = tmp_path / write_pixels(tmp_path, "x", pixels, times)
    read = read_media_file(MediaRef(file), uint8=True)
    data = read.data.numpy()
    expected = pixels if shape[0] > 1 else pixels[0]
    if data.ndim > expected.ndim:
        expected = np.repeat(expected[..., None], 3, axis=-1)
    assert np.array_equal(data, expected)
    if times:
        assert read.frame_times == pytest.approx(times, abs=1e-7)


# ---- the records builder and the documentation ---------------------------------------------------


def test_the_records_builder_reads_the_table_as_docs_ultrasound_says(done, tmp_path):
    page = (REPO / "docs" / "ultrasound.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    config = tmp_path / "run.yaml"
    rest = (
        "model: {arch: xraygpt, model_type: tiny}\nrun: {task: report_generation, max_steps: 1}\n"
    )
    config.write_text(block.replace("/data/echo_deid", str(done)) + rest)
    assert yaml.safe_load(block)["datasets"]
    experiment = load(Training, config)
    data = experiment.datasets["echo"].build(image_spec=NO_IMAGES).build("train")
    assert len(data.records) == 3
    kinds = sorted(record.media[0].kind for record in data.records)
    assert kinds == ["clip", "clip", "image"]
    record = next(r for r in data.records if r.meta["depth_cm"])
    assert record.meta["spacing_mm"] == "0.5 0.5" and record.meta["colour_doppler"] == "no"
    media = read_media_file(record.media[0], uint8=True)
    assert media.data.shape[0] == 4  # `frames` of the example


@pytest.mark.slow
def test_the_command(tmp_path):
    import subprocess
    import sys

    shutil.copy(a4c(), tmp_path / "a.dcm")
    command = [sys.executable, "-m", "xraygpt.prepare_ultrasound", tmp_path / "a.dcm"]
    code = (
        "import sys, runpy; sys.modules['rapidocr_onnxruntime'] = None; sys.argv = sys.argv[1:]; "
        "runpy.run_module('xraygpt.prepare_ultrasound', run_name='__main__')"
    )
    command = [sys.executable, "-c", code, "prepare_ultrasound", tmp_path / "a.dcm", tmp_path / "o"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPO, check=False)
    assert result.returncode == 0, result.stderr
    assert "text in the pixels was not looked for" in result.stderr
    assert "[deid]" in result.stderr and "1 clips, 1 of them new" in result.stdout
    assert "PLA" not in result.stdout + result.stderr
