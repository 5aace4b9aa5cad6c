"""Prediction: readable files are answered once, and the others are reported."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ANSWERS, REPO, toy_image, toy_yaml
from tests.evaluation.test_evaluator import RUN
from tests.runners.test_train_loop import MODEL, environment
from xraygpt.common.config import load
from xraygpt.common.errors import DataError
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.inputs import find_inputs, folder_name
from xraygpt.evaluation.predictor import Predictor, SomeFailed
from xraygpt.experiment import Evaluation, build_predictor
from xraygpt.media.base import MediaRef
from xraygpt.phantom.render import Study, render
from xraygpt.tasks.base import Answer


@pytest.fixture(scope="module")
def yaml_path(reading, tmp_path_factory):
    """An evaluation YAML of a model that reads the toy images."""
    base = tmp_path_factory.mktemp("trained")
    path = base / "eval.yaml"
    weights = f"  ckpt: {reading / 'out'}\n"
    path.write_text(toy_yaml(reading / "corpus", RUN % (base / "results"), MODEL + weights))
    return path


@pytest.fixture
def folder(tmp_path):
    """Images in two folders, one with a space and an umlaut in its name."""
    for i, kind in enumerate([*ANSWERS] * 4):
        path = tmp_path / "in" / ("größe zwei" if i % 2 else "one") / f"{kind}-{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(toy_image(kind, 1000 + i)).save(path)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    return tmp_path / "in"


def predictor_of(yaml_path: Path, source: Path, out: Path, **settings) -> Predictor:
    settings = {"device": "cpu", "workers": 0, "question": "What is there?", **settings}
    return build_predictor(load(Evaluation, yaml_path), source, output_dir=out, **settings)


def test_answers_match_the_images(yaml_path, folder, tmp_path):
    answers = predictor_of(yaml_path, folder, tmp_path / "out").run()
    assert len(answers) == 12
    for answer in answers:
        kind = Path(answer.sample_id).name.split("-")[0]
        assert answer.prediction == ANSWERS[kind]


@pytest.mark.slow
def test_unreadable_files_are_reported_and_the_others_answered(yaml_path, folder, tmp_path):
    (folder / "empty.png").write_bytes(b"")
    (folder / "torn.png").write_bytes((folder / "one" / "left-0.png").read_bytes()[:60])
    (folder / "text.dcm").write_text("this is no DICOM")
    predictor = predictor_of(yaml_path, folder, tmp_path / "out", workers=2, batch_size=4)
    with pytest.raises(SomeFailed, match=r"3 of 15 inputs could not be read; 12 answers") as caught:
        predictor.run()
    assert caught.value.exit_code == 1
    for name in ("empty.png: ", "torn.png: ", "text.dcm: "):
        assert name in str(caught.value)
    rows = (predictor.folder / "predictions.jsonl").read_text().splitlines()
    assert len(rows) == 12 and all(json.loads(row)["sample_id"] for row in rows)
    errors = [json.loads(r) for r in (predictor.folder / "errors.jsonl").read_text().splitlines()]
    assert {e["sample_id"] for e in errors} == {"empty.png", "torn.png", "text.dcm"}
    page = (predictor.folder / "report.html").read_text()
    assert page.count("<article") == 12 and "Research use only" in page


@pytest.mark.slow
def test_a_model_trained_on_synthetic_images_only_warns(yaml_path, folder, tmp_path, caplog):
    warning = "trained on SYNTHETIC images only"
    predictor = predictor_of(yaml_path, folder / "one", tmp_path / "real")
    runs = predictor.history.runs
    assert len(runs) == 1 and not predictor.history.trained_on_synthetic_only
    predictor.run()
    assert warning not in caplog.text + (predictor.folder / "report.html").read_text()
    config = runs[0] / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("builder: records", "builder: synthetic_cxr"))
    predictor = predictor_of(yaml_path, folder / "one", tmp_path / "synthetic")
    config.write_text(before)
    predictor.run()
    assert warning in caplog.text and warning in (predictor.folder / "report.html").read_text()


@pytest.mark.slow
def test_shards_together_give_the_full_result(yaml_path, folder, tmp_path, monkeypatch):
    (folder / "torn.png").write_bytes(b"no image")
    full = predictor_of(yaml_path, folder, tmp_path / "full")
    with pytest.raises(SomeFailed):
        full.run()
    sharded = []
    for k in (1, 3):
        try:
            shard = predictor_of(yaml_path, folder, tmp_path / "out", shard=(k, 3))
            sharded += [p.sample_id for p in shard.run()]
        except SomeFailed as error:
            assert "torn.png" in str(error) and "1 of 5 inputs could" in str(error)
            rows = (shard.folder / f"predictions-{k}-of-3.jsonl").read_text().splitlines()
            sharded += [json.loads(row)["sample_id"] for row in rows]
        assert not (shard.folder / "report.html").exists()
    assert len(sharded) == len(set(sharded)) == 8
    gather = predictor_of(yaml_path, folder, tmp_path / "out")
    answered = []
    original = gather.task.predict

    def recorded(model, batch):
        answered.extend(batch["sample_id"])
        return original(model, batch)

    monkeypatch.setattr(gather.task, "predict", recorded)
    with pytest.raises(SomeFailed):
        gather.run()
    assert len(answered) == 4 and not set(answered) & set(sharded)  # the second shard did not run
    files = [p.folder / "predictions.jsonl" for p in (full, gather)]
    assert files[0].read_text() == files[1].read_text()
    assert (gather.folder / "report.html").exists()


@pytest.mark.slow
def test_an_interrupted_run_continues(yaml_path, folder, tmp_path, monkeypatch):
    first = predictor_of(yaml_path, folder, tmp_path / "out", batch_size=4)
    answered = []
    original = first.task.predict

    def dies(model, batch):
        if len(answered) == 8:
            raise KeyboardInterrupt
        answered.extend(batch["sample_id"])
        return original(model, batch)

    monkeypatch.setattr(first.task, "predict", dies)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    with (first.folder / "predictions.jsonl").open("a") as file:
        file.write('{"sample_id": "torn')
    again = predictor_of(yaml_path, folder, tmp_path / "out", batch_size=4)
    monkeypatch.setattr(
        again.task, "predict", lambda m, b: answered.extend(b["sample_id"]) or original(m, b)
    )
    assert len(again.run()) == 12
    assert len(answered) == len(set(answered)) == 12
    other = predictor_of(yaml_path, folder, tmp_path / "out", question="Anything on the left?")
    assert other.folder != again.folder


def test_a_table_may_have_ids_and_questions(folder, tmp_path):
    table = folder / "list.csv"
    table.write_text("id,image,question\na,one/left-0.png,Where?\nb,one/left-0.png,\n")
    a, b = find_inputs(table, "What?")
    assert (a.sample_id, a.turns[0]["text"]) == ("a", "<image> Where?")
    assert (b.sample_id, b.turns[0]["text"]) == ("b", "<image> What?")
    assert a.media[0].path == folder / "one" / "left-0.png"


def test_invalid_inputs_are_reported(folder, tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        find_inputs(folder / "absent")
    with pytest.raises(DataError, match="contains no PNG, JPEG or DICOM"):
        (tmp_path / "none").mkdir()
        find_inputs(tmp_path / "none")
    table = folder / "list.csv"
    table.write_text("picture\nx.png\n")
    with pytest.raises(DataError, match=r"record 2 has no column 'image' \(its columns: picture\)"):
        find_inputs(table)
    table.write_text("id,image\na,one/left-0.png\na,one/left-0.png\n")
    with pytest.raises(DataError, match="two inputs have the id a"):
        find_inputs(table)


@pytest.mark.slow
def test_one_file_on_the_command_line_prints_its_answer(yaml_path, folder, tmp_path):
    command = [sys.executable, "predict.py", "--cfg-path", str(yaml_path), "--device", "cpu"]
    command += ["--input", str(folder / "one" / "left-0.png"), "--output", str(tmp_path / "out")]
    command += ["--question", "What is there?"]
    done = subprocess.run(command, cwd=REPO, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(ANSWERS["left"])
    assert "Research use only" in done.stdout
    assert Path(done.stdout.splitlines()[-1]).is_file()


def test_a_table_in_the_layout_of_training(tmp_path):
    Image.new("L", (32, 32), 9).save(tmp_path / "a.png")
    table = tmp_path / "t.jsonl"
    row = {"id": "s1", "study": "s1", "images": [{"path": "a.png", "view": "PA"}]}
    table.write_text(json.dumps(row))
    (record,) = find_inputs(table)
    assert record.media == (MediaRef(tmp_path / "a.png", "PA"),)
    row["images"] = [{"path": "a.png"}, {"path": "b.npy", "index": 3}]
    table.write_text(json.dumps(row))
    (record,) = find_inputs(table)
    assert record.media == (
        MediaRef(tmp_path / "a.png"), MediaRef(tmp_path / "b.npy", index=3, kind="embedding")
    )  # fmt: skip
    assert record.turns[0]["text"] == "<image> <image>"
    for image, message in (
        ({"path": "a.png", "vew": "PA"}, "did you mean 'view'"),
        (7, "must be a path"),
    ):
        row["images"] = [image]
        table.write_text(json.dumps(row))
        with pytest.raises(DataError, match=message):
            find_inputs(table)


FILE = "predictions.jsonl"


def chest(path: Path) -> Path:
    """A SYNTHETIC chest radiograph of 160 × 160 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(render(Study("chest", [], seed=3), "frontal", 160).pixels).save(path)
    return path


def test_warnings_are_in_the_rows_the_table_and_the_page(yaml_path, tmp_path, caplog):
    chest(tmp_path / "in" / "chest.png")
    Image.new("L", (160, 160), 255).save(tmp_path / "in" / "white.png")
    predictor = predictor_of(yaml_path, tmp_path / "in", tmp_path / "out")
    assert predictor.folder.name == f"in-{predictor.signature[:6]}"
    predictor.run()
    rows = {r["sample_id"]: r for r in prediction_file.read_rows(predictor.folder / FILE)}
    blank = "It is blank: all parts of it are equally bright."
    assert {n: r["warnings"] for n, r in rows.items()} == {"chest.png": [], "white.png": [blank]}
    expected = f"1 of 2 images may not be what the model expects (white.png): 1 × {blank[:-1]}"
    assert expected in caplog.text
    page = (predictor.folder / "report.html").read_text()
    assert page.count('<p class="warning">') == 1 and blank in page
    shown = page.split("<h2>Provenance")[0]
    assert "Contains the images you passed" in shown
    assert "licence" not in shown and "corpus" not in shown
    assert 'id="finding"' not in page and "AI drafts" in page
    with (predictor.folder / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        table = list(csv.DictReader(file))
    assert [r["warnings"] for r in table] == ["", blank]
    assert table[0]["image"] == str(tmp_path / "in" / "chest.png")
    assert [r["prediction"] for r in table] == [r["prediction"] for r in rows.values()]


def test_strict_refuses_images_with_a_warning(yaml_path, tmp_path):
    chest(tmp_path / "in" / "chest.png")
    Image.new("L", (160, 160), 255).save(tmp_path / "in" / "white.png")
    lenient = predictor_of(yaml_path, tmp_path / "in", tmp_path / "out")
    assert len(lenient.run()) == 2
    for _ in range(2):  # stored answers with a warning are refused, too
        strict = predictor_of(yaml_path, tmp_path / "in", tmp_path / "out", strict=True)
        assert strict.folder == lenient.folder
        with pytest.raises(SomeFailed, match=r"1 of 2 inputs could not be read or were") as caught:
            strict.run()
        assert "white.png: refused by --strict: It is blank" in str(caught.value)
        assert [r["sample_id"] for r in prediction_file.read_rows(strict.folder / FILE)] == [
            "chest.png"
        ]


def test_findings_and_probabilities_are_fields_and_columns(yaml_path, tmp_path, monkeypatch):
    image = chest(tmp_path / "a chest, 1.png")
    predictor = predictor_of(yaml_path, image, tmp_path / "out")
    assert predictor.folder.name.startswith("a_chest_1-")
    text = 'The heart is "large",\nno effusion.'
    payload = {
        "findings": ["cardiomegaly"],
        "probabilities": {"cardiomegaly": 0.75, "edema": 0.25},
        "numbers": {"area_px": 3.0},
    }
    monkeypatch.setattr(predictor.task, "predict", lambda *_: [Answer(text, payload)])
    (prediction,) = predictor.run()
    (row,) = prediction_file.read_rows(predictor.folder / FILE)
    assert row["findings"] == ["cardiomegaly"] and row["payload"] == {"numbers": {"area_px": 3.0}}
    assert row["probabilities"] == {"cardiomegaly": 0.75, "edema": 0.25}
    stored = prediction_file.read(predictor.folder / FILE)
    assert stored == {image.name: prediction} and prediction.payload == payload
    with (predictor.folder / "predictions.csv").open(encoding="utf-8-sig", newline="") as file:
        (cells,) = csv.DictReader(file)
    assert cells["prediction"] == text and cells["findings"] == "cardiomegaly"
    assert (cells["P(cardiomegaly)"], cells["P(edema)"]) == ("0.7500", "0.2500")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("case 7.png", "case_7"), ("größe.dcm", "größe"), ("scan.v2/", "scan.v2"), ("...", "input")],
)
def test_the_folder_is_named_after_the_input(name: str, expected: str, tmp_path):
    path = tmp_path / name
    if name.endswith("/"):
        path.mkdir()
    assert folder_name(path) == expected
