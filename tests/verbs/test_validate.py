"""Validation reports each problem of a corpus, and none for a clean one."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPO, toy_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.builder import build_corpora
from xraygpt.datasets.leakage import Leakage
from xraygpt.evaluation.evaluation_page import _leakage_line
from xraygpt.experiment import NO_IMAGES, Training, _leakage, build_runner
from xraygpt.jobs import validate
from xraygpt.jobs.validate import advise_on_size, check
from xraygpt.validate import main

RUN = "  task: report_generation\n  max_steps: 1"


def test_a_clean_corpus(tmp_path, toy, capsys, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN))
    sheet = tmp_path / "sheet.png"
    monkeypatch.setattr("sys.argv", ["v", "--cfg-path", str(path), "--sheet", str(sheet)])
    main()
    output = capsys.readouterr().out
    assert "toy train: 36 samples" in output
    assert "toy val: 12 samples" in output
    assert "images: 48 read (48 × 32×32)" in output
    assert "no problems found" in output
    assert Image.open(sheet).size[0] == 1280


def test_each_problem_is_reported(tmp_path, toy, monkeypatch):
    rows = [json.loads(line) for line in (toy / "corpus.jsonl").read_text().splitlines()]
    rows[0]["images"] = [{"path": "images/gone.png"}]
    rows[1]["turns"][1]["text"] = 5
    rows[2]["study"] = "study3"  # study3 is val
    (toy / "images" / "s4.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    Image.new("L", (32, 32), 7).save(toy / "images" / "s5.png")
    (toy / "corpus.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN))
    messages = check(load(Training, path), None)
    assert len(messages) == 5
    for part in (
        "record 1: image not found",
        "record 2: each turn must be",
        "study study3 is in two splits",
        "record s4:",
        "s5.png contains a single grey level",
    ):
        assert any(part in message for message in messages), part
    monkeypatch.setattr(
        "sys.argv", ["v", "--cfg-path", str(path), "--sheet", str(tmp_path / "s.png")]
    )
    with pytest.raises(InputError, match="5 problems"):
        main()


def test_images_that_are_no_chests_are_counted_and_refused_if_strict(
    tmp_path, toy, monkeypatch, capsys
):
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN))
    command = ["v", "--cfg-path", str(path), "--sheet", str(tmp_path / "s.png")]
    monkeypatch.setattr("sys.argv", command)
    main()
    assert "toy input check: 48 of 48 images may not be what" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", [*command, "--strict"])
    with pytest.raises(InputError, match=r"1 problems?:\ntoy: --strict: 48 of 48 images .*s0\.png"):
        main()
    monkeypatch.setattr("sys.argv", [*command, "--options", "datasets.toy.input_check=false"])
    main()
    assert "input check" not in capsys.readouterr().out


def test_guidance_counts_training_studies_and_names_the_recipe_for_small_tables(
    tmp_path, toy, capsys, caplog
):
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, RUN))
    for options, start, recipe in ([], "from scratch", True), (["model.ckpt=x"], "trained", False):
        caplog.clear()
        check(load(Training, path, options), None)
        (line,) = [t for t in capsys.readouterr().out.splitlines() if "to train on" in t]
        assert line.startswith("36 studies") and start in line
        (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        assert warning.startswith("36 studies") and (validate.FINE_TUNING in warning) is recipe
    assert (REPO / validate.FINE_TUNING).is_file()


@pytest.mark.parametrize(
    ("studies", "from_scratch", "warns"),
    [(999, True, True), (1000, True, False), (49, False, True), (50, False, False)],
)
def test_the_warning_depends_on_the_number_of_studies_and_the_start(
    studies, from_scratch, warns, caplog
):
    advise_on_size(studies, from_scratch=from_scratch)
    assert bool(caplog.records) is warns


def write_studies(folder, faulty=()):
    """30 studies with SYNTHETIC embeddings; test repeats two reports of train, one changed."""
    rng = np.random.default_rng(0)
    words = [f"{a}{b}" for a in "bcdfghklmn" for b in ("ab", "ech", "id", "ol", "um")]
    texts = [" ".join(rng.choice(words, 200)) for _ in range(24)]
    copies = [texts[0].upper(), f"other {texts[1]}", "A new one."]
    rows = [("train", text) for text in texts] + [("test", text) for text in copies]
    rows += [("val", f"Number {i} of three.") for i in range(3)]
    lines = []
    for i, (split, report) in enumerate(rows):
        np.save(folder / f"s{i}.npy", np.full((2 + i % 3, 4), np.nan if i in faulty else i))
        lines.append(json.dumps({"study": f"s{i}", "split": split, "report": report}))
    (folder / "studies.jsonl").write_text("\n".join(lines))


def studies_yaml(folder, run=RUN):
    return f"""
model: {{arch: xraygpt, model_type: tiny}}
datasets:
  echo: {{builder: studies, storage: {folder}, embeddings: "{{study}}.npy"}}
run:
{run}
"""


def test_embeddings_are_read_and_reports_in_two_splits_are_counted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "echo"
    folder.mkdir()
    write_studies(folder)
    path = tmp_path / "run.yaml"
    path.write_text(studies_yaml(folder))
    assert check(load(Training, path), None) == []
    printed = capsys.readouterr().out
    assert "echo embeddings: 30 samples read, 2 to 4 rows each (median 3), width 4" in printed
    assert (
        "1 of 3 reports of test are also in train word for word; 2 have a near copy there "
        "(similarity 0.9 or more), 2 if numbers are ignored" in printed
    )
    write_studies(folder, faulty=[3])
    (message,) = check(load(Training, path), None)
    assert "record s3" in message and "s3.npy: 20 of 20" not in message
    assert "values are NaN or infinite" in message


def test_the_evaluation_names_the_counts_of_validate(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "echo"
    folder.mkdir()
    write_studies(folder)
    path = tmp_path / "run.yaml"
    path.write_text(studies_yaml(folder))
    (builder,) = build_corpora(load(Training, path).datasets, NO_IMAGES)
    assert _leakage(builder, "test") == Leakage("test", 3, 1)
    assert _leakage(builder, "val") == Leakage("val", 3, 0) and _leakage(builder, "train") is None
    check(load(Training, path), None)
    found = _leakage(builder, "test")
    assert (found.near, found.near_without_numbers) == (2, 2)
    line = _leakage_line({"leakage": asdict(found)})
    assert line.startswith("In this corpus, 1 of 3 reports of test are also in train word for")
    assert _leakage_line({}) == ""


@pytest.mark.slow
def test_a_model_trains_on_sets_of_embeddings_and_the_log_names_copies(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "echo"
    folder.mkdir()
    write_studies(folder)
    path = tmp_path / "run.yaml"
    run = "  task: report_generation\n  max_steps: 2\n  batch_size_train: 3\n  device: cpu"
    text = studies_yaml(folder, f"{run}\n  output_dir: {tmp_path}/out")
    path.write_text(text.replace("tiny}", "tiny, vit_model: precomputed, vit_width: 4}"))
    with caplog.at_level("INFO"):
        runner = build_runner(load(Training, path))
    assert "1 of 3 reports of test are also in train word for word" in caplog.text
    runner.train()
    assert (runner.run_folder / "checkpoints" / "step-2").is_dir()
