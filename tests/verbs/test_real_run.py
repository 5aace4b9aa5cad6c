"""Language model, both stages and evaluation from the YAML files, on a few real X-rays."""

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
from xraygpt.vocabulary.openi import reserved_split


def run(script: str, config: str, base: Path, data: Path, *options: str) -> CompletedProcess:
    result = processes.run(
        [sys.executable, script, "--cfg-path", config, "--options", *options],
        cwd=REPO,
        env={**os.environ, "XRAYGPT_DATA": str(data), "XRAYGPT_CACHE": str(base / "cache")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result


@pytest.fixture(scope="module")
def few(real_data, tmp_path_factory) -> Path:
    """The corpus with the first 60 studies of each split."""
    source, folder = real_data / "iu_xray", tmp_path_factory.mktemp("few") / "iu_xray"
    (folder / "images").mkdir(parents=True)
    for name in ("lockbox_studies.txt", "test_split_studies.txt"):
        shutil.copy(source / name, folder)
    rows: dict[str, list[str]] = {}
    for line in (source / "reports.jsonl").read_text(encoding="utf-8").splitlines(keepends=True):
        rows.setdefault(json.loads(line)["split"], []).append(line)
    lines = [line for split_rows in rows.values() for line in split_rows[:60]]
    (folder / "reports.jsonl").write_text("".join(lines), encoding="utf-8")
    for line in lines:
        shutil.copy(source / json.loads(line)["image"], folder / "images")
    return folder.parent


@pytest.mark.slow
@pytest.mark.data
def test_training_and_evaluation_from_the_yaml_files(few, tmp_path):
    max_samples = "datasets.{}.max_samples=24"
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
        *[max_samples.format(x) for x in labels],
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
        *[max_samples.format(x) for x in labels[1:]],
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
        max_samples.format("iu_xray"),
    )
    result = run(
        "evaluate.py",
        "eval_configs/iu_xray_val.yaml",
        tmp_path,
        few,
        f"run.output_dir={tmp_path / 'eval'}",
        f"model.llama_model={lm}",
        f"model.ckpt={two}/best",
        max_samples.format("iu_xray"),
        "run.shuffles=2",
    )
    (path,) = tmp_path.glob("eval/*/scores.json")
    scores = json.loads(path.read_text())
    assert scores["n"] == 24
    conditions = {r["condition"] for r in scores["scores"]}
    assert conditions == {"true", "shuffled", "blank", "most_common", "nearest"}
    for row in scores["scores"]:
        assert row["n"] > 0 and row["signature"]
    assert "Research use only" in result.stdout
    output = result.stderr + result.stdout
    row = json.loads((path.parent / "predictions_true.jsonl").read_text().splitlines()[1])
    assert row["reference"] not in output  # no report text in logs


@pytest.mark.slow
@pytest.mark.data
def test_killed_and_resumed_stages_give_the_same_weights(few, tmp_path):
    """With dropout, patch dropout and LoRA as in the YAML files."""
    env = {**os.environ, "XRAYGPT_DATA": str(few), "CUDA_VISIBLE_DEVICES": ""}
    env["XRAYGPT_CACHE"] = str(tmp_path / "cache")
    max_samples = "datasets.{}.max_samples=32"
    lm, one = (
        f"model.llama_model={tmp_path}/lm/reference",
        f"model.ckpt={tmp_path}/stage1/reference",
    )
    stages = {
        "lm": ["model.llm.layers=1", *map(max_samples.format, ("reports", "codes", "questions"))],
        "stage1": [lm, *map(max_samples.format, ("codes", "questions"))],
        "stage2": [lm, one, max_samples.format("iu_xray")],
    }
    for stage, options in stages.items():
        command = [sys.executable, "train.py", "--cfg-path", f"train_configs/iu_xray_{stage}.yaml"]
        command += ["--options", *options, "run.max_epoch=null", "run.max_steps=12"]
        command += ["run.save_every=2", "run.eval_every=5", "run.eval_samples=8", "run.log_every=1"]
        command += ["run.batch_size_train=4"]
        folder = tmp_path / stage
        finish([*command, f"run.output_dir={folder}/reference"], env, cold=stage == "stage2")
        resumed = [*command, f"run.output_dir={folder}/killed", "run.resume_ckpt_path=auto"]
        step = kill_and_finish(resumed, folder / "killed", env, (3, 4, 6), reach=10)
        assert same(weights(folder / "reference"), weights(folder / "killed")), (stage, step)


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
                assert not any(reserved_split(s) for s in studies)
                assert len(studies) > 200
