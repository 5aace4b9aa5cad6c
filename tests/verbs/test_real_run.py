"""All of it on real X-rays, small: language model, both stages, evaluation, from the YAMLs."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests import processes
from tests.conftest import REPO
from tests.killing import finish, kill_and_finish, same, weights
from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.config import load
from xraygpt.experiment import NO_IMAGES, Training
from xraygpt.vocabulary.openi import published_test_studies


def run(script: str, config: str, base: Path, data: Path, *options: str) -> CompletedProcess:
    done = processes.run(
        [sys.executable, script, "--cfg-path", config, "--options", *options],
        cwd=REPO,
        env={**os.environ, "XRAYGPT_DATA": str(data), "XRAYGPT_CACHE": str(base / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def few(real_data, tmp_path_factory) -> Path:
    """The first 60 studies of each split: real X-rays, and less to read before each run."""
    whole, folder = real_data / "iu_xray", tmp_path_factory.mktemp("few") / "iu_xray"
    (folder / "images").mkdir(parents=True)
    for name in ("lockbox_studies.txt", "test_split_studies.txt"):
        shutil.copy(whole / name, folder)
    rows: dict[str, list[str]] = {}
    for line in (whole / "reports.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
        rows.setdefault(json.loads(line)["split"], []).append(line)
    lines = [line for of_split in rows.values() for line in of_split[:60]]
    (folder / "reports.jsonl").write_text("".join(lines), encoding="utf-8")
    for line in lines:
        shutil.copy(whole / json.loads(line)["image"], folder / "images")
    return folder.parent


@pytest.mark.slow
@pytest.mark.data
def test_two_stages_and_evaluation_from_the_yaml_files(few, tmp_path):
    most = "datasets.{}.max_samples=24"
    lm, one, two = (tmp_path / n for n in ("lm", "one", "two"))
    short = ["run.max_epoch=null", "run.max_steps=6", "run.eval_every=3", "run.batch_size_train=8"]
    labels = ["reports", "codes", "questions"]
    run(
        "train.py",
        "train_configs/iu_xray_lm.yaml",
        tmp_path,
        few,
        *short,
        f"run.output_dir={lm}",
        "model.llm.layers=1",
        *[most.format(x) for x in labels],
    )
    assert (find_checkpoint(lm) / "llm" / "tokenizer.json").is_file()
    run(
        "train.py",
        "train_configs/iu_xray_stage1.yaml",
        tmp_path,
        few,
        *short,
        f"run.output_dir={one}",
        f"model.llama_model={lm}",
        *[most.format(x) for x in labels[1:]],
    )
    run(
        "train.py",
        "train_configs/iu_xray_stage2.yaml",
        tmp_path,
        few,
        *short,
        f"run.output_dir={two}",
        f"model.llama_model={lm}",
        f"model.ckpt={one}/best",
        most.format("iu_xray"),
    )
    done = run(
        "evaluate.py",
        "eval_configs/iu_xray_val.yaml",
        tmp_path,
        few,
        f"run.output_dir={tmp_path / 'eval'}",
        f"model.llama_model={lm}",
        f"model.ckpt={two}/best",
        most.format("iu_xray"),
        "run.shuffles=2",
    )
    (scores,) = tmp_path.glob("eval/*/scores.json")
    result = json.loads(scores.read_text())
    assert result["n"] == 24
    conditions = {r["condition"] for r in result["scores"]}
    assert conditions == {"true", "shuffled", "blank", "most_common", "nearest"}
    for row in result["scores"]:
        assert row["n"] > 0 and row["signature"]
    assert "Research use only" in done.stdout
    logged = done.stderr + done.stdout
    row = json.loads((scores.parent / "predictions_true.jsonl").read_text().splitlines()[1])
    assert row["reference"] not in logged  # no report text in logs


@pytest.mark.slow
@pytest.mark.data
def test_every_stage_killed_three_times_ends_at_the_same_weights(few, tmp_path):
    """Real X-rays; dropout, patch dropout and LoRA as in the YAMLs."""
    env = {**os.environ, "XRAYGPT_DATA": str(few), "CUDA_VISIBLE_DEVICES": ""}
    env["XRAYGPT_CACHE"] = str(tmp_path / "cache")
    most = "datasets.{}.max_samples=32"
    lm, one = f"model.llama_model={tmp_path}/lm/whole", f"model.ckpt={tmp_path}/stage1/whole"
    stages = {
        "lm": ["model.llm.layers=1", *map(most.format, ("reports", "codes", "questions"))],
        "stage1": [lm, *map(most.format, ("codes", "questions"))],
        "stage2": [lm, one, most.format("iu_xray")],
    }
    for stage, options in stages.items():
        command = [sys.executable, "train.py", "--cfg-path", f"train_configs/iu_xray_{stage}.yaml"]
        command += ["--options", *options, "run.max_epoch=null", "run.max_steps=12"]
        command += ["run.save_every=2", "run.eval_every=5", "run.eval_samples=8", "run.log_every=1"]
        command += ["run.batch_size_train=4"]
        folder = tmp_path / stage
        finish([*command, f"run.output_dir={folder}/whole"], env, cold=stage == "stage2")
        again = [*command, f"run.output_dir={folder}/killed", "run.resume_ckpt_path=auto"]
        drawn = kill_and_finish(again, folder / "killed", env, (3, 4, 6), reach=10)
        assert same(weights(folder / "whole"), weights(folder / "killed")), (stage, drawn)


@pytest.mark.slow
@pytest.mark.data
def test_no_text_of_the_test_split_reaches_a_tokenizer(real_data, monkeypatch):
    monkeypatch.setenv("XRAYGPT_DATA", str(real_data))
    monkeypatch.chdir(REPO)
    for name in ("iu_xray_lm", "iu_xray_stage1", "iu_xray_stage2"):
        config = load(Training, f"train_configs/{name}.yaml")
        for part in config.datasets.values():
            for split in ("train", "val"):
                data = part.build(image_spec=NO_IMAGES).build(split)
                studies = {r.study_id for r in data.records}
                assert not studies & published_test_studies()
                assert len(studies) > 200
