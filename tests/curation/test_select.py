"""Which reports and pictures stay; what goes is named."""

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
from xraygpt.curation import select
from xraygpt.curation.pipeline import curate
from xraygpt.curation.select import (
    METADATA,
    Filters,
    modality_of,
    read_reports,
    select_pictures,
    select_reports,
    write_reports,
)
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
def test_the_modality_a_caption_names_first(caption: str, modality: str):
    assert modality_of(caption) == modality


def roco(folder: Path) -> Path:
    (folder / "images").mkdir(parents=True)
    captions = ["Chest X-ray with effusion.", "CT of the chest.", "Radiograph of a hand.", " "]
    lines = [f"ROCO_{i}\t {text}" for i, text in enumerate(captions)]
    (folder / "captions.txt").write_text("\n".join([*lines, "no tab here"]))
    for i in range(3):
        Image.new("L", (8, 8)).save(folder / "images" / f"ROCO_{i}.jpg")
    return folder


def test_roco_keeps_radiographs_unless_told_otherwise(tmp_path):
    path = roco(tmp_path) / "captions.txt"
    kept = [r.source_id for r in select_reports("roco", path, Filters()).reports]
    assert kept == ["ROCO_0", "ROCO_2"]
    chest = select_reports("roco", path, Filters(region="chest"))
    assert [r.source_id for r in chest.reports] == ["ROCO_0"]
    assert {(r.source_id, r.stage) for r in chest.left_out} == {
        ("ROCO_1", "filter"), ("ROCO_2", "filter"), ("ROCO_3", "filter"), ("", "unreadable"),
    }  # fmt: skip
    every = select_reports("roco", path, Filters(modality="any"))
    assert len(every.reports) == 3
    with pytest.raises(InputError, match="modality: xrays is none of any, xray"):
        Filters(modality="xrays")


def test_unreadable_absent_and_lateral_pictures(tmp_path):
    raw, images = tmp_path / "raw", tmp_path / "images"
    raw.mkdir()
    images.mkdir()
    reports = [
        f'{n},"The heart is large and all is well with it today.","It is large."'
        for n in (1, 2, 3, 4)
    ]
    (raw / "indiana_reports.csv").write_text("\n".join(["uid,findings,impression", *reports]))
    pictures = ((1, 1), (1, 2), (2, 1), (3, 1), (4, 2))  # of a study: 1 is frontal, 2 lateral
    views = {1: "Frontal", 2: "Lateral"}
    rows = [f"{study},{study}_IM-1-{i}.dcm.png,{views[i]}" for study, i in pictures]
    (raw / "indiana_projections.csv").write_text("\n".join(["uid,filename,projection", *rows]))
    for name in ("1_IM-1-1", "1_IM-1-2", "2_IM-1-1", "4_IM-1-2"):
        Image.new("L", (64, 64)).save(images / f"{name}.dcm.png")
    cut = (images / "2_IM-1-1.dcm.png").read_bytes()
    (images / "2_IM-1-1.dcm.png").write_bytes(cut[: len(cut) // 2])
    selection = select_reports("openi_kaggle", raw, Filters())
    select_pictures(selection, images, Filters())
    assert [r.source_id for r in selection.reports] == ["CXR1"]
    assert len(selection.pictures["CXR1"]) == 1
    reasons = {r.source_id: r.reason for r in selection.left_out if r.stage == "picture"}
    assert reasons["CXR2"].startswith("unreadable picture")
    assert reasons["CXR3"] == "picture 3_IM-1-1.dcm.png is absent"
    without = [r.source_id for r in selection.left_out if r.stage == "no_picture"]
    assert without == ["CXR2", "CXR3", "CXR4"]


def test_a_study_that_stands_twice_is_named_and_used_once(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("A\tChest X-ray one.\nA\tChest X-ray two.\n")
    selection = select_reports("roco", path, Filters())
    assert [r.sections["findings"] for r in selection.reports] == ["Chest X-ray one."]
    assert "A stands in captions.txt, line 1 already" in selection.left_out[0].reason


def test_reports_go_through_json_lines_unchanged(tmp_path):
    corpus = write_corpus(tmp_path, 5)
    selection = select_reports("openi", corpus / "ecgen-radiology", Filters())
    write_reports(selection, tmp_path / "kept.jsonl")
    with (tmp_path / "kept.jsonl").open("a") as file:
        file.write("{not json\n")
    *rows, broken = read_reports(tmp_path / "kept.jsonl", "openi")
    assert rows == selection.reports
    assert isinstance(broken, Problem)
    again = select_reports("openi", tmp_path / "kept.jsonl", Filters())
    assert again.sources_sha256 == selection.sources_sha256


def test_mimic_pictures_lie_apart_and_patients_stay_together(tmp_path):
    """Views come of MIMIC-CXR-JPG's table; two patients have a study each, one has two."""
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
    with pytest.raises(InputError, match="without it laterals pass for frontal"):
        curate("mimic", reports, images, tmp_path / "out", Filters())
    with gzip.open(images / f"{METADATA}.gz", "wt") as file:
        file.write("\n".join(lines[:-1]))  # the last picture, a lateral, is not in it
    curate("mimic", reports, images / "files", tmp_path / "out", Filters())
    rows = json.loads((tmp_path / "out" / "filter_cap.json").read_text())["annotations"]
    assert [(r["image_id"], r["view"], r["patient"]) for r in rows] == [
        ("s1-PA", "PA", "p10000001"), ("s2-PA", "PA", "p10000001"), ("s3-PA", "PA", "p11000002"),
    ]  # fmt: skip
    for val in (0.3, 0.5, 0.7):
        config = CaptionFolder.Config(storage=tmp_path / "out", split=SplitRule(val_fraction=val))
        builder = config.build(image_spec=NO_IMAGES)
        where = {}
        for split in ("train", "val"):
            where |= {r.study_id: split for r in builder.build(split, "eval").records}
        assert where["s1"] == where["s2"]


def test_pictures_are_read_again_only_when_they_have_changed(tmp_path, monkeypatch):
    corpus, known, read = write_corpus(tmp_path, 3), {}, []
    real = select._read
    monkeypatch.setattr(select, "_read", lambda path: read.append(path) or real(path))
    for _ in range(2):
        selection = select_reports("openi", corpus / "ecgen-radiology", Filters())
        select_pictures(selection, corpus / "png", Filters(), known)
        assert len(read) == len(selection.pictures) == 3
    Image.new("L", (9, 9)).save(read[0])
    select_pictures(selection, corpus / "png", Filters(), known)
    assert len(read) == 4


def test_a_table_of_ones_own(tmp_path):
    """Two pictures of one name in two folders, a lateral, a row without a study; never open."""
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
    made = json.loads((tmp_path / "out" / "filter_cap.json").read_text())["annotations"]
    assert [(r["image_id"], r["study"], r["patient"]) for r in made] == [
        ("a", "s1", "p1"), ("s2_a", "s2", "p2"),
    ]  # fmt: skip
    assert made[0]["caption"].startswith("Cardiomegaly. The lungs are clear")
    assert manifest["licence"] == "credentialed"
    assert manifest["left_out"] == {"unreadable": 1}


def curate_command(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "xraygpt.curate", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_filter_then_images_then_curate(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 6)
    kept = tmp_path / "kept.jsonl"
    done = curate_command("filter", "openi", "--reports", corpus / "ecgen-radiology", "--out", kept)
    assert done.returncode == 0, done.stderr
    assert "6 reports" in done.stdout
    where = ("openi", "--reports", kept, "--images", corpus / "png", "--out")
    done = curate_command("images", *where, tmp_path / "pictures")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "pictures" / "image").iterdir())) == 6
    done = curate_command(*where, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with (tmp_path / "out" / "held_back.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == []
