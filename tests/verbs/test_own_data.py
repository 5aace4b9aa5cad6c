"""All commands of docs/data.md on a folder of images with a CSV."""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from random import Random

import pytest
from PIL import Image

import xraygpt
from tests import processes
from tests.conftest import REPO
from xraygpt.common.config import load
from xraygpt.experiment import Evaluation, Training
from xraygpt.jobs.pack import pack
from xraygpt.phantom import design
from xraygpt.phantom.grammar import generate_report
from xraygpt.phantom.render import Study, render

FEW = ["run.max_epoch=null", "run.max_steps=3", "run.batch_size_train=4", "run.eval_samples=4"]
FEW += ["run.patience=null", "run.warmup_steps=1"]


def write_own_folder(folder: Path, studies: int) -> None:
    """Write images and a table of a typical user: one image and one text are missing."""
    rng = Random(3)
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["image", "study", "findings", "impression"])
        table.writeheader()
        for number in range(studies):
            findings = design.sample_balanced_findings(rng)
            picture = render(Study(f"own-{number}", findings, 7), "frontal", 128)
            name = f"patient {number}.png"
            if number != 5:
                Image.fromarray(picture.pixels).save(folder / name)
            text = generate_report(findings, rng) if number != 6 else {}
            table.writerow({"image": name, "study": f"own-{number}", **text})


def run(script: list[str], folder: Path, options: list[str], code: int = 0) -> str:
    env = {**os.environ, "XRAYGPT_OWN": str(folder), "XRAYGPT_CACHE": str(folder / "cache")}
    command = [sys.executable, *script, "--options", *options]
    result = processes.run(
        command, cwd=REPO, env=env | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True
    )
    assert result.returncode == code, result.stderr[-2000:]
    return result.stdout + result.stderr


@pytest.mark.slow
def test_own_images_with_a_table_train_and_evaluate(tmp_path):
    write_own_folder(tmp_path, 80)
    out = {n: f"{tmp_path}/out/{n}" for n in ("lm", "stage1", "stage2", "evaluate")}
    lm = ["train.py", "--cfg-path", "train_configs/own_lm.yaml"]
    output = run(
        ["-m", "xraygpt.validate", "--sheet", f"{tmp_path}/sheet.png", "--cfg-path", lm[-1]],
        tmp_path,
        ["run.seed=1"],
        code=2,
    )
    assert "patient 5.png" in output and "record 8" in output
    counts = "datasets.questions.min_code_count=2"
    run(lm, tmp_path, [*FEW, counts, "model.llm.layers=1", f"run.output_dir={out['lm']}"])
    links = [f"model.llama_model={out['lm']}", f"run.output_dir={out['stage1']}"]
    run(
        ["train.py", "--cfg-path", "train_configs/own_stage1.yaml"],
        tmp_path,
        [*FEW, counts, *links],
    )
    links = [f"model.llama_model={out['lm']}", f"model.ckpt={out['stage1']}"]
    run(
        ["train.py", "--cfg-path", "train_configs/own_stage2.yaml"],
        tmp_path,
        [*FEW, *links, f"run.output_dir={out['stage2']}"],
    )
    links = [f"model.llama_model={out['lm']}", f"model.ckpt={out['stage2']}", "run.shuffles=1"]
    links += ["run.task.generate.candidates=2", f"run.output_dir={out['evaluate']}"]
    run(["evaluate.py", "--cfg-path", "eval_configs/own.yaml"], tmp_path, links)
    (rows,) = (tmp_path / "out/evaluate").glob("*/predictions_true.jsonl")
    answers = [json.loads(line) for line in rows.read_text().splitlines()]
    with (tmp_path / "table.csv").open(newline="") as file:
        texts = {row["study"]: row["findings"] for row in csv.DictReader(file)}
    assert 3 <= len(answers) <= 20  # a tenth of 80
    assert all(texts[row["study_id"]] in row["reference"] for row in answers)
    assert (rows.parent / "report.html").is_file()


def test_fine_tuning_starts_from_the_model_in_the_box_and_decodes_like_it():
    tuned = load(Evaluation, REPO / "eval_configs/own_finetune.yaml")
    box = load(Evaluation, REPO / "eval_configs/xraygpt_mini.yaml")
    training = load(Training, REPO / "train_configs/own_finetune.yaml")
    assert tuned.run.task.plan == box.run.task.plan
    assert tuned.run.task.generate == box.run.task.generate
    assert training.model.ckpt == box.model.ckpt
    for config in (tuned.model, training.model):
        assert config.vision.encoder == box.model.vision.encoder
        assert config.llm.source == box.model.llm.source
        assert config.finding_head == box.model.finding_head


@pytest.mark.slow
def test_the_model_in_the_box_is_fine_tuned_on_a_small_table(tmp_path):
    write_own_folder(tmp_path, 24)
    out = {n: f"{tmp_path}/out/{n}" for n in ("finetune", "evaluate", "bundle")}
    train = ["train.py", "--cfg-path", "train_configs/own_finetune.yaml"]
    run(train, tmp_path, [*FEW, f"run.output_dir={out['finetune']}"])
    links = [f"model.ckpt={out['finetune']}", "run.controls=[]", "run.split=train"]
    links += ["run.task.generate.candidates=2", "run.task.generate.references=2"]
    links += ["run.max_samples=4", f"run.output_dir={out['evaluate']}"]
    run(["evaluate.py", "--cfg-path", "eval_configs/own_finetune.yaml"], tmp_path, links)
    (rows,) = (tmp_path / "out/evaluate").glob("*/predictions_true.jsonl")
    texts = [json.loads(line)["prediction"] for line in rows.read_text().splitlines()]
    assert len(texts) == 4 and all(len(text.split()) > 5 for text in texts)
    bundle = tmp_path / "bundle"
    pack(tmp_path / "out/finetune", bundle, evaluation=REPO / "eval_configs/own_finetune.yaml")
    model = xraygpt.load_model(bundle)
    answer = model.ask(tmp_path / "patient 1.png", "Is there cardiomegaly?")
    assert answer == xraygpt.load_model("xraygpt_mini").ask(  # from the same finding head
        tmp_path / "patient 1.png", "Is there cardiomegaly?"
    )
