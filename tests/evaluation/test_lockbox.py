"""Every opening of the lockbox is counted, in a file that deleting results does not change."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.conftest import toy_yaml
from tests.evaluation.test_evaluator import evaluator_of
from xraygpt import probe
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError, InputError
from xraygpt.evaluation import lockbox
from xraygpt.experiment import Training
from xraygpt.jobs.validate import check


@pytest.fixture
def count_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "lockbox.jsonl"


def move_to_lockbox(corpus):
    """List the toy corpus's val studies as its lockbox."""
    path = corpus / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [r | {"split": r["split"].replace("val", "lockbox")} for r in rows]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))


def test_openings_are_counted_in_total_and_by_model(tmp_path, count_file):
    counts = [
        (o.before, o.before_with_model)
        for o in (lockbox.open_lockbox(m, "s", None) for m in ("a", "a", "b", "a", None))
    ]
    assert counts == [(0, 0), (1, 1), (2, 0), (3, 2), (4, 0)]
    assert len(count_file.read_text().splitlines()) == 5
    opening = lockbox.open_lockbox("a", "s", None)
    assert "opened 5 times before (3 times with this model)" in str(opening)


def test_continuing_in_a_result_folder_is_the_same_opening(tmp_path, count_file):
    first = lockbox.open_lockbox("a", "s", tmp_path)
    lockbox.open_lockbox("b", "other", None)
    assert lockbox.open_lockbox("a", "s", tmp_path) == first
    assert len(count_file.read_text().splitlines()) == 2
    (tmp_path / lockbox.RECORD_FILE).unlink()
    again = lockbox.open_lockbox("a", "s", tmp_path)
    assert (again.before, again.before_with_model) == (2, 1)


def test_an_opening_that_cannot_be_counted_is_refused(tmp_path, count_file):
    count_file.mkdir(parents=True)
    with pytest.raises(InputError, match=r"the lockbox stays closed.*XRAYGPT_CACHE"):
        lockbox.open_lockbox("a", "s", None)
    count_file.rmdir()
    count_file.write_text("not JSON\n")
    with pytest.raises(InputError, match="is damaged"):
        lockbox.open_lockbox("a", "s", None)


@pytest.mark.parametrize("split", ["test", "lockbox"])
def test_training_refuses_reserved_splits(tmp_path, toy, split):
    path = tmp_path / "run.yaml"
    run = "  task: report_generation\n  max_steps: 1\n"
    path.write_text(toy_yaml(toy, f"{run}  train_splits: [train, {split}]"))
    with pytest.raises(ConfigError, match=r"run\.train_splits\.1"):
        load(Training, path)
    path.write_text(toy_yaml(toy, run, data=f"    split: {{train: [train, {split}]}}"))
    with pytest.raises(ConfigError, match=f"'{split}' is also listed in {split}"):
        load(Training, path)


def test_validation_does_not_read_the_lockbox(tmp_path, toy, capsys):
    move_to_lockbox(toy)
    path = tmp_path / "run.yaml"
    path.write_text(toy_yaml(toy, "  task: report_generation\n  max_steps: 1"))
    assert check(load(Training, path), None) == []
    output = capsys.readouterr().out
    assert "toy lockbox: 12 samples from 12 studies, whose images and answers are not" in output
    assert "images: 36 read" in output


@pytest.mark.slow
def test_evaluation_says_how_often_the_lockbox_was_opened(reading, tmp_path, count_file, capsys):
    base = tmp_path / "base"
    shutil.copytree(reading, base)
    move_to_lockbox(base / "corpus")
    short = ("run.shuffles=1", "run.controls=[blank]")
    with pytest.raises(InputError, match="'val' of this corpus has no samples"):
        evaluator_of(base, tmp_path, *short)
    assert not count_file.exists()
    for seed, sentence in ((0, "opened 0 times before (0 times"), (1, "1 time before (1 time with"),
                           (0, "opened 0 times before (0 times")):  # fmt: skip
        evaluator = evaluator_of(base, tmp_path, *short, "run.split=lockbox", f"run.seed={seed}")
        result = evaluator.run()
        assert result["n"] == 12
        for name in ("report.html", "scores.md"):
            assert sentence in (evaluator.folder / name).read_text()
    assert len(count_file.read_text().splitlines()) == 2


def test_a_finding_head_is_not_fitted_on_reserved_images(tmp_path, toy, monkeypatch, count_file):
    path = tmp_path / "eval.yaml"
    path.write_text(toy_yaml(toy, "  task: report_generation\n  split: lockbox"))
    head = str(tmp_path / "head.safetensors")
    command = ["p", "--cfg-path", str(path), "--vit-model", "efficientnet_lite0", "--save", head]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(InputError, match=r"--save sets thresholds on run\.split; it must be val"):
        probe.main()
    assert not count_file.exists()
