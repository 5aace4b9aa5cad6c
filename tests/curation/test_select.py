"""Which reports and pictures are selected; the others are listed."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import REPO
from tests.curation.fakes import write_corpus
from xraygpt.common.errors import InputError
from xraygpt.curation import pictures
from xraygpt.curation.files import read_reports, write_reports
from xraygpt.curation.pictures import MIMIC_METADATA, select_pictures
from xraygpt.curation.pipeline import curate
from xraygpt.curation.select import Filters, find_modality, select_reports
from xraygpt.curation.sources import Problem
from xraygpt.datasets.caption_folder import CaptionFolder
from xraygpt.datasets.splits import SplitRule
from xraygpt.experiment import NO_IMAGES


@pytest.mark.parametrize(
    ("caption", "modality"),
    [
        ("Chest X‐ray showing sarcoidosis, confirmed by CT.", "xray"),  # a Unicode hyphen
        ("Axial computed tomography of the pelvis.", "ct"),
        ("NCCT brain at onset.", "ct"),
        ("T2W image of the knee.", "mri"),
        ("Transvaginal ultrasound.", "ultrasound"),
        ("Coronary angiography.", "angiography"),
        ("CXR after intubation.", "xray"),
        ("An intact spine; octagon of petals.", "other"),  # ct and pet are words, not parts
    ],
)
def test_the_modality_that_a_caption_names_first(caption: str, modality: str):
    assert find_modality(caption) == modality


def write_roco(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    captions = ["Chest X-ray with effusion.", "CT of the chest.", "Radiograph of a hand.", " "]
    lines = [f"ROCO_{i}\t {text}" for i, text in enumerate(captions)]
    (folder / "captions.txt").write_text("\n".join([*lines, "no tab here"]))
    for i in range(3):
        Image.new("L", (8, 8)).save(folder / "images" / f"ROCO_{i}.jpg")
    return folder


def test_roco_selects_radiographs_by_default(tmp_path):
    path = write_roco(tmp_path) / "captions.txt"
    default = select_reports("roco", path, Filters())
    assert [r.source_id for r in default.reports] == ["ROCO_0", "ROCO_2"]
    chest = select_reports("roco", path, Filters(region="chest"))
    assert [r.source_id for r in chest.reports] == ["ROCO_0"]
    assert {(r.source_id, r.stage) for r in chest.left_out} == {
        ("ROCO_1", "filter"), ("ROCO_2", "filter"), ("ROCO_3", "filter"), ("", "unreadable"),
    }  # fmt: skip
    unfiltered = select_reports("roco", path, Filters(modality="any"))
    assert len(unfiltered.reports) == 3
    with pytest.raises(InputError, match="modality: xrays is not one of any, xray"):
        Filters(modality="xrays")


def write_kaggle_tables(folder: Path, views: list[tuple[int, int]]) -> None:
    """Four studies; `views` lists the pictures as (study, 1 for frontal or 2 for lateral)."""
    folder.mkdir()
    reports = [
        f'{n},"The heart is large and all is well with it today.","It is large."'
        for n in (1, 2, 3, 4)
    ]
    (folder / "indiana_reports.csv").write_text("\n".join(["uid,findings,impression", *reports]))
    names = {1: "Frontal", 2: "Lateral"}
    rows = [f"{study},{study}_IM-1-{view}.dcm.png,{names[view]}" for study, view in views]
    (folder / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *rows]))


def test_unreadable_absent_and_lateral_pictures(tmp_path):
    raw, images = tmp_path / "raw", tmp_path / "images"
    images.mkdir()
    write_kaggle_tables(raw, [(1, 1), (1, 2), (2, 1), (3, 1), (4, 2)])
    for name in ("1_IM-1-1", "1_IM-1-2", "2_IM-1-1", "4_IM-1-2"):
        Image.new("L", (64, 64)).save(images / f"{name}.dcm.png")
    data = (images / "2_IM-1-1.dcm.png").read_bytes()
    (images / "2_IM-1-1.dcm.png").write_bytes(data[: len(data) // 2])
    selection = select_reports("openi_kaggle", raw, Filters())
    select_pictures(selection, images, Filters())
    assert [r.source_id for r in selection.reports] == ["CXR1"]
    assert len(selection.pictures["CXR1"]) == 1
    reasons = {r.source_id: r.reason for r in selection.left_out if r.stage == "picture"}
    assert reasons["CXR2"].startswith("unreadable picture")
    assert reasons["CXR3"] == "picture 3_IM-1-1.dcm.png is absent"
    without = [r.source_id for r in selection.left_out if r.stage == "no_picture"]
    assert without == ["CXR2", "CXR3", "CXR4"]


def test_a_repeated_study_is_listed_and_used_once(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("A\tChest X-ray one.\nA\tChest X-ray two.\n")
    selection = select_reports("roco", path, Filters())
    assert [r.sections["findings"] for r in selection.reports] == ["Chest X-ray one."]
    assert "A already appears in captions.txt, line 1" in selection.left_out[0].reason


def test_json_lines_preserve_reports(tmp_path):
    corpus = write_corpus(tmp_path, 5)
    selection = select_reports("openi", corpus / "ecgen-radiology", Filters())
    path = tmp_path / "selected.jsonl"
    write_reports(selection.reports, "openi", path)
    with path.open("a") as file:
        file.write("{not json\n")
    *rows, problem = read_reports(path, "openi")
    assert rows == selection.reports
    assert isinstance(problem, Problem)
    second = select_reports("openi", path, Filters())
    assert second.sources_sha256 == selection.sources_sha256


def test_mimic_views_come_from_the_metadata_and_patients_are_not_split(tmp_path):
    """Reports and pictures are in separate folders; one patient has two studies, another one."""
    reports, images = tmp_path / "reports", tmp_path / "jpg"
    findings = "The heart is large and the lungs are clear today, no effusion at all."
    text = f"FINDINGS: {findings}\n\nIMPRESSION: Large heart.\n"
    lines = ["dicom_id,ViewPosition"]
    for patient, study in (("p10000001", "s1"), ("p10000001", "s2"), ("p11000002", "s3")):
        folder = f"files/{patient[:3]}/{patient}"
        (reports / folder).mkdir(parents=True, exist_ok=True)
        (reports / folder / f"{study}.txt").write_text(text)
        (images / folder / study).mkdir(parents=True)
        for view in ("PA", "LATERAL"):
            Image.new("L", (8, 8)).save(images / folder / study / f"{study}-{view}.jpg")
            lines.append(f"{study}-{view},{view}")
    with pytest.raises(InputError, match="lateral views cannot be told from frontal"):
        curate("mimic", reports, images, tmp_path / "out", Filters())
    with gzip.open(images / f"{MIMIC_METADATA}.gz", "wt") as file:
        file.write("\n".join(lines[:-1]))  # without the last picture, a lateral view
    curate("mimic", reports, images / "files", tmp_path / "out", Filters())
    rows = json.loads((tmp_path / "out" / "filter_cap.json").read_text())["annotations"]
    assert [(r["image_id"], r["view"], r["patient"]) for r in rows] == [
        ("s1-PA", "PA", "p10000001"), ("s2-PA", "PA", "p10000001"), ("s3-PA", "PA", "p11000002"),
    ]  # fmt: skip
    for val in (0.3, 0.5, 0.7):
        config = CaptionFolder.Config(storage=tmp_path / "out", split=SplitRule(val_fraction=val))
        builder = config.build(image_spec=NO_IMAGES)
        splits = {}
        for split in ("train", "val"):
            splits |= {r.study_id: split for r in builder.build(split, "eval").records}
        assert splits["s1"] == splits["s2"]


def test_pictures_are_read_again_only_if_they_have_changed(tmp_path, monkeypatch):
    corpus, known, read = write_corpus(tmp_path, 3), {}, []
    real = pictures._read_picture
    monkeypatch.setattr(pictures, "_read_picture", lambda path: read.append(path) or real(path))
    for _ in range(2):
        selection = select_reports("openi", corpus / "ecgen-radiology", Filters())
        select_pictures(selection, corpus / "png", Filters(), known)
        assert len(read) == len(selection.pictures) == 3
    Image.new("L", (9, 9)).save(read[0])
    select_pictures(selection, corpus / "png", Filters(), known)
    assert len(read) == 4


def test_a_users_own_table(tmp_path):
    """With one file name in two folders, a lateral view and a row without a study."""
    rows = ["image,study,findings,impression,view,patient"]
    text = '"Stable cardiomegaly. The lungs are clear and no effusion is seen.","Large heart."'
    for image, study, view, patient in (
        ("s1/a.png", "s1", "PA", "p1"), ("s1/b.png", "s1", "LATERAL", "p1"),
        ("s2/a.png", "s2", "PA", "p2"), ("s3/a.png", "", "PA", "p3"),
    ):  # fmt: skip
        (tmp_path / image).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8), len(rows)).save(tmp_path / image)
        rows.append(f"{image},{study},{text},{view},{patient}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    manifest = curate("own", tmp_path, tmp_path, tmp_path / "out", Filters()).manifest
    captions = json.loads((tmp_path / "out" / "filter_cap.json").read_text())["annotations"]
    assert [(r["image_id"], r["study"], r["patient"]) for r in captions] == [
        ("a", "s1", "p1"), ("s2_a", "s2", "p2"),
    ]  # fmt: skip
    assert captions[0]["caption"].startswith("Cardiomegaly. The lungs are clear")
    assert manifest["licence"] == "of your data"
    assert manifest["left_out"] == {"unreadable": 1}


def curate_command(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "xraygpt.curate", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_filter_then_images_then_curate(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 6)
    selected, reports = tmp_path / "selected.jsonl", corpus / "ecgen-radiology"
    done = curate_command("filter", "openi", "--reports", reports, "--out", selected)
    assert done.returncode == 0, done.stderr
    assert "6 reports" in done.stdout
    arguments = ("openi", "--reports", selected, "--images", corpus / "png", "--out")
    done = curate_command("images", *arguments, tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "pictures" / "image").iterdir())) == 6
    done = curate_command(*arguments, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "held_back.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []
