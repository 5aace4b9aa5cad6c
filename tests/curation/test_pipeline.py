"""From raw files to a folder that can be trained on, with every report counted."""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests import processes
from tests.conftest import REPO
from tests.curation.fakes import rewrite_settings, serving
from tests.curation.test_sources import XML
from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.checks import rejection_reasons, wilson_interval
from xraygpt.curation.pipeline import Filters, curate
from xraygpt.datasets.caption_folder import CaptionFolder
from xraygpt.experiment import NO_IMAGES
from xraygpt.vocabulary.openi import published_test_studies

TEST_STUDY = min(int(s[3:]) for s in published_test_studies())
FINDINGS = "The heart is large. The lungs are clear. No pleural effusion is seen. No pneumothorax."
CANARY = "zebra canary words"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Four studies: good, of the test split, too short, and one that would lose a finding."""
    reports, images = tmp_path / "ecgen-radiology", tmp_path / "png"
    reports.mkdir()
    images.mkdir()
    texts = {
        90001: (f"Stable cardiomegaly compared to the prior exam. {FINDINGS}", "Large heart."),
        TEST_STUDY: (FINDINGS, "Large heart."),
        90003: ("The heart is large.", "Large."),
        90004: (
            f"{FINDINGS} Compared to the prior exam, interval {CANARY} comparison with old films "
            "shows the left effusion to be stable.", "Stable effusion since then, compared.",
        ),
    }  # fmt: skip
    for number, (findings, impression) in texts.items():
        text = XML.format(number).replace("The heart\n is large.", findings)
        (reports / f"{number}.xml").write_text(text.replace("Large heart.", impression))
        Image.new("L", (8, 8)).save(images / f"CXR{number}_1_IM-0001-4001.png")
    (reports / "bad.xml").write_text(f"<broken> {CANARY}")
    return tmp_path


def run_curation(raw: Path) -> dict:
    result = curate("openi", raw / "ecgen-radiology", raw / "png", raw / "out", Filters())
    return result.manifest


def test_every_report_is_counted_and_the_folder_loads(raw):
    manifest = run_curation(raw)
    assert list(manifest["left_after"].values()) == [4, 4, 3, 3, 3]
    assert manifest["left_out"] == {"check": 1, "filter": 1, "picture": 3, "unreadable": 1}
    assert manifest["accepted"] == 2
    assert manifest["pictures_of_published_test_split"] == 1
    rows = json.loads((raw / "out" / "filter_cap.json").read_text())["annotations"]
    texts = {row["study"]: row["caption"] for row in rows}
    assert texts["CXR90001"] == f"Cardiomegaly. {FINDINGS} Large heart."
    config = CaptionFolder.Config(storage=raw / "out")
    builder = config.build(image_spec=NO_IMAGES)
    splits = {s: [r.study_id for r in builder.build(s, "eval").records] for s in ("train", "test")}
    assert splits == {"train": ["CXR90001"], "test": [f"CXR{TEST_STUDY}"]}


def test_held_back_reports_are_listed_without_their_text(raw):
    run_curation(raw)
    text = (raw / "out" / "held_back.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    by_stage = {r["stage"]: r for r in rows}
    assert by_stage["check"]["source_id"] == "CXR90004"
    assert "no longer affirmed" in by_stage["check"]["reason"]
    assert by_stage["filter"]["source_id"] == "CXR90003"
    assert by_stage["unreadable"]["where"].endswith("bad.xml")
    for file in ("held_back.csv", "manifest.json"):
        assert CANARY not in (raw / "out" / file).read_text()


@pytest.mark.slow
def test_the_command_prints_counts_and_no_report_text(raw):
    command = [
        sys.executable, "-m", "xraygpt.curate", "openi", "--reports", raw / "ecgen-radiology",
        "--images", raw / "png", "--out", raw / "out",
    ]  # fmt: skip
    first = subprocess.run(list(map(str, command)), cwd=REPO, capture_output=True, text=True)
    assert first.returncode == 3, first.stderr  # one report and some pictures could not be read
    assert "1 unreadable" in first.stderr
    assert "2 accepted" in first.stdout
    assert CANARY not in first.stdout + first.stderr
    second = subprocess.run(list(map(str, command)), cwd=REPO, capture_output=True, text=True)
    assert second.returncode == 2
    assert "already contains a curated corpus" in second.stderr


def test_mistakes_are_reported(raw):
    with pytest.raises(DataError, match="no folder"):
        curate("openi", raw / "ecgen-radiology", raw / "nowhere", raw / "out", Filters())
    (raw / "other").mkdir()
    Image.new("L", (8, 8)).save(raw / "other" / "CXR5_1_IM-0001-4001.png")
    with pytest.raises(DataError, match=r"nothing to train on(.|\n)*is absent"):
        curate("openi", raw / "ecgen-radiology", raw / "other", raw / "out", Filters())
    run_curation(raw)
    with pytest.raises(InputError, match="contains a curated corpus"):
        run_curation(raw)


@pytest.mark.parametrize(
    ("source", "result", "expected"),
    [
        ("Large left effusion. Lungs clear.", "Lungs clear.", "no longer affirmed"),
        ("No effusion. Lungs clear.", "Effusion. Lungs clear.", "newly affirmed"),
        ("Left effusion.", "Right effusion.", "another side"),
        ("A 5 mm nodule.", "A 9 mm nodule.", "a number or unit that is not"),
        ("A 3 mm nodule.", "A 3 cm nodule.", "a number or unit that is not"),
        ("Left effusion.", "Effusion.", "side no longer said"),
        ("No left effusion. Right nodule.", "No right effusion. Right nodule.", "another side"),
        ("Lungs clear today.", "Lungs clear, improved since yesterday.", "an earlier study"),
        ("Lungs clear today.", "Lungs unchanged.", "compares with an earlier study"),
        ("Lungs clear today.", "Lungs clear XXXX.", "a mask"),
        ("Lungs clear.", "", "nothing is left"),
        ("Lungs clear.", "Lungs clear and clear and clear.", "times as many words"),
    ],
)
def test_each_check_detects_its_fault(source: str, result: str, expected: str):
    assert any(expected in reason for reason in rejection_reasons(source, result))
    assert rejection_reasons(source, source) == [] or "XXXX" in source


def test_wilson_interval_has_a_published_value():
    """Newcombe 1998, table I: 81 of 263."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@pytest.mark.slow
@pytest.mark.data
def test_real_openi_from_kaggle(real_data, tmp_path):
    images = real_data / "iu_xray" / "images"
    raw = real_data / "openi_kaggle"
    manifest = curate("openi_kaggle", raw, images, tmp_path / "out", Filters()).manifest
    assert list(manifest["left_after"].values()) == [3851, 3331, 3320, 3312, 2590]
    assert manifest["acceptance"]["low"] > 0.95
    assert manifest["pictures"] > 2500
    assert manifest["pictures_of_published_test_split"] == 0  # their images are not in this copy


@pytest.mark.parametrize("step", ["filter", "images", "process"])
@pytest.mark.parametrize(
    ("folder", "corpus", "options", "expected"),
    [
        ("OpenI_Scripts", "openI", [], "OpenI reports"),
        ("OpenI_Scripts", "openI", ["--kaggle"], "indiana_projections.csv"),
        ("ROCO_Val_Scripts", "ROCO", [], "captions.txt"),
        ("MIMIC_Scripts", "MIMIC", [], "MIMIC-CXR reports"),
    ],
)
def test_the_scripts_run_their_step_for_their_corpus(
    monkeypatch, tmp_path, step: str, folder: str, corpus: str, options: list[str], expected: str
):
    name = "filter_images" if step == "images" else f"{step}_{corpus}"
    path = REPO / "Data_Creation_Scripts" / folder / f"{name}.py"
    arguments = [*options, "--reports", tmp_path, "--out", tmp_path / "out"]
    if step == "filter":
        with pytest.raises(InputError, match=r"must end in \.jsonl"):
            monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
            runpy.run_path(str(path))["main"]()
        arguments[-1] = tmp_path / "out.jsonl"
    else:
        arguments += ["--images", tmp_path]
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
    with pytest.raises(DataError, match=expected):
        runpy.run_path(str(path))["main"]()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rules", "model"])
def test_the_folder_trains_with_the_published_recipe_without_the_test_split(
    raw, tmp_path, method: str
):
    """train_configs/xraygpt_openi_finetune.yaml reads the folder; only weights, steps and device
    differ. CXR90001 is the only training study, the other is in the published test split."""
    with serving() as (url, _):
        settings = rewrite_settings(url) if method == "model" else None
        out = tmp_path / "data" / "openi"
        curate("openi", raw / "ecgen-radiology", raw / "png", out, Filters(), settings=settings)
    options = (
        "model.model_type=tiny model.image_size=224 model.llama_model=null model.ckpt=null "
        f"run.iters_per_epoch=2 run.warmup_steps=0 run.device=cpu run.output_dir={tmp_path / 'run'}"
    )
    done = processes.run(
        [
            sys.executable, "train.py", "--cfg-path",
            "train_configs/xraygpt_openi_finetune.yaml", "--options", *options.split(),
        ],
        cwd=REPO, env=os.environ | {"XRAYGPT_DATA": str(tmp_path / "data")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "samples: 1 train, 0 val" in done.stderr
    rows = json.loads((out / "filter_cap.json").read_text())["annotations"]
    assert {row["study"] for row in rows} == {"CXR90001", f"CXR{TEST_STUDY}"}


def test_an_unfinished_folder_is_completed_and_symlinks_are_followed(raw, monkeypatch):
    from xraygpt.curation import folder

    store = raw / "store"
    (raw / "png").rename(store)
    (raw / "png").mkdir()
    for path in store.iterdir():
        (raw / "png" / path.name).symlink_to(Path("..") / "store" / path.name)

    class KilledError(BaseException):
        pass

    def killed(*_):
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(folder, "_build_manifest", killed)
        with pytest.raises(KilledError):
            run_curation(raw)
    assert run_curation(raw)["accepted"] == 2
    for path in (raw / "out" / "image").iterdir():
        assert path.is_file() and not path.is_symlink()
    with pytest.raises(InputError, match="contains a curated corpus"):
        run_curation(raw)


def test_every_report_is_listed_even_if_none_has_a_text(raw):
    with serving() as (url, fake):
        fake.fault = lambda *_: "refusal"
        out = raw / "out"
        with pytest.raises(DataError, match="refused, such as: the model refused") as caught:
            curate(
                "openi", raw / "ecgen-radiology", raw / "png", out, Filters(),
                settings=rewrite_settings(url),
            )  # fmt: skip
    assert caught.value.exit_code == 1
    assert (out / "held_back.csv").read_text().count("the model refused") == 3
