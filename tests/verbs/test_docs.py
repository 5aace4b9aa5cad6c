"""The examples in docs/ work unchanged."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import MethodType

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import REPO, write_toy_corpus
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.common.registry import ENCODERS
from xraygpt.experiment import NO_IMAGES, Training, build_runner
from xraygpt.media.row_labels import split_row_labels
from xraygpt.models.base import BaseModel
from xraygpt.models.vision.encoders import build_vision
from xraygpt.phantom.findings import Finding
from xraygpt.processors.image import ImageSpec
from xraygpt.runners.logs import read_rows
from xraygpt.runners.optimizers import bytes_to_come, make_optimizer
from xraygpt.tasks.base import Prediction


def blocks(page: str, language: str) -> list[str]:
    """Code blocks in one language of a page."""
    return re.findall(rf"```{language}\n(.*?)```", (REPO / "docs" / page).read_text(), re.S)


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a page's module for its YAML and returns that YAML."""

    def install(page: str) -> str:
        (code,), (yaml,) = blocks(page, "python"), blocks(page, "yaml")
        path = tmp_path / code.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        (path.parent / "__init__.py").write_text("")
        path.write_text(code)
        return yaml

    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_pkg", raising=False)
    return install


def training(tmp_path: Path, yaml: str) -> Training:
    rest = "" if "model:" in yaml else "model: {arch: xraygpt, model_type: tiny}\n"
    if "run:" not in yaml:
        rest += "run: {task: report_generation, max_steps: 1}\n"
    if "datasets:" not in yaml:
        rest += "datasets: {openi: {}}\n"
        yaml = yaml.replace("run:", "run:\n  max_steps: 1")
    path = tmp_path / "run.yaml"
    path.write_text(yaml + rest)
    return load(Training, path)


def test_adding_a_dataset(tmp_path, installed):
    yaml = installed("adding_a_dataset.md")
    night = tmp_path / "night"
    night.mkdir()
    for i in range(4):
        Image.new("L", (16, 16), 40 * i).save(night / f"{i}.png")
        (night / f"{i}.txt").write_text(f"Report {i}.")
    (night / "alone.txt").write_text("No picture.")
    yaml = yaml.replace("/data/night", str(night)).replace("split:", "on_error: skip, split:")
    config = training(tmp_path, yaml)
    data = config.datasets["night_shift"].build(image_spec=NO_IMAGES).build("train")
    assert {r.sample_id for r in data.records} <= {"0", "1", "2", "3"}
    assert len(data) >= 3


def test_adding_a_processor(tmp_path, installed):
    yaml = installed("adding_a_processor.md")
    storage = tmp_path / "mine"
    storage.mkdir()
    pixels = (np.linspace(0, 1, 64 * 64) ** 4 * 255).astype(np.uint8).reshape(64, 64)
    Image.fromarray(pixels).save(storage / "a.png")
    row = {"id": "a", "study": "a", "split": "train", "images": [{"path": "a.png"}]}
    row["turns"] = [{"role": "user", "text": "?"}, {"role": "assistant", "text": "Dark."}]
    (storage / "rows.jsonl").write_text(json.dumps(row))
    config = training(tmp_path, yaml.replace("/data/mine", str(storage)))
    spec = ImageSpec(image_size=64, mean=(0.0,), std=(1.0,), tokens_per_image=1)
    builder = config.datasets["mine"].build(image_spec=spec)
    (image,) = builder.build("train")[0]["media"]
    assert image.data.mean() == pytest.approx(0.5, abs=0.05)  # grey levels are equalised
    assert builder.processor("vis", "eval").config.levels == 128


def test_adding_a_task(tmp_path, installed):
    task = training(tmp_path, installed("adding_a_task.md")).run.task.build()
    predictions = [
        Prediction("a", "a", "", "Clear lungs.", "Clear lungs.", 0),
        Prediction("b", "b", "", "word " * 31, "Clear lungs.", 0),
    ]
    scores = {s.name: s for s in task.score(predictions)}
    assert scores["short"].value == 0.5 and scores["short"].n == 2
    assert "ROUGE-L" in scores


def test_adding_a_vocabulary(tmp_path, installed):
    task = training(tmp_path, installed("adding_a_vocabulary.md")).run.task.build()
    texts = ["The left ventricle is dilated. No pericardial effusion.", "Pericardial effusion."]
    predictions = [Prediction(n, n, "", t, texts[0], 0) for n, t in zip("ab", texts, strict=True)]
    scores = {s.name: s for s in task.score(predictions)}
    assert scores["findings_text_F1"].value == pytest.approx(0.5)  # 1 hit, 1 added, 1 missed
    compared = task.compare(predictions[1])
    assert (compared.missed, compared.added) == (
        ["dilated_left_ventricle"], ["pericardial_effusion"]
    )  # fmt: skip


def test_adding_an_optimizer(tmp_path, installed):
    """Three steps equal those of torch's optimizer, and its state can be restored."""
    run = training(tmp_path, installed("adding_an_optimizer.md")).run
    assert run.optimizer.clip == 1.5 and run.init_lr == 1e-3

    def train(model: BaseModel, optimizer: torch.optim.Optimizer, steps: int) -> list[torch.Tensor]:
        weights = [p for _, p in model.trainable_parameters()]
        for _ in range(steps):
            sum((p**2).sum() for p in weights).backward()
            optimizer.step()
            optimizer.zero_grad()
        return [p.detach().clone() for p in weights]

    def fresh() -> tuple[BaseModel, torch.optim.Optimizer]:
        model = load(Training, tmp_path / "run.yaml").model.build(texts=list)
        rest = {"lr": run.init_lr, "weight_decay": run.weight_decay, "beta2": run.beta2}
        return model, make_optimizer(run.optimizer, model, **rest)

    (model, optimizer), (twin, _), (other, interrupted) = fresh(), fresh(), fresh()
    assert bytes_to_come(optimizer) > 0
    ours = train(model, optimizer, 3)
    groups = [{**g, "weight_decay": g.get("weight_decay", 0.05)} for g in twin.param_groups()]
    theirs = train(twin, torch.optim.Adafactor(groups, lr=1e-3, d=1.5), 3)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    train(other, interrupted, 2)
    resumed = make_optimizer(run.optimizer, other, lr=1e-3, weight_decay=0.05, beta2=0.999)
    resumed.load_state_dict(interrupted.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours, train(other, resumed, 1), strict=True))
    (code,) = blocks("adding_an_optimizer.md", "text")
    names: dict = {}
    exec(code, names)
    model.vision.requires_grad_(True)
    model.param_groups = MethodType(names["param_groups"], model)
    grouped = make_optimizer(run.optimizer, model, lr=1e-3, weight_decay=0.05, beta2=0.999)
    assert [g["lr"] for g in grouped.param_groups] == [1e-4, 1e-3]


def test_adding_an_encoder(tmp_path, installed, monkeypatch):
    """An edge from black to white gives a horizontal gradient at its place and no vertical one."""
    monkeypatch.setattr(ENCODERS, "_entries", dict(ENCODERS._entries))  # restored after the test
    model = training(tmp_path, installed("adding_an_encoder.md")).model.build(texts=list)
    assert model.vision.num_tokens == 64 and model.vision.width == 3
    assert model.image_spec.channels == 1 and model.image_spec.image_size == 64
    pixels = torch.zeros(1, 1, 64, 64)
    pixels[..., 12:] = 1.0
    _, across, down = model.vision.encode(pixels).reshape(8, 8, 3).unbind(-1)
    assert across[:, 1].min() > 0 and across[:, 3:].max() == 0 and down.max() == 0
    with pytest.raises(InputError, match="edges has its own weights; remove this key"):
        build_vision("edges", None, tmp_path)


@pytest.mark.slow
def test_adding_a_model(tmp_path, installed):
    """After training, the example's loss is far lower with true images than with shuffled ones."""
    corpus = write_toy_corpus(tmp_path / "corpus")
    model = installed("adding_a_model.md") + "  freeze_llm: false\n"
    data = f"datasets:\n  toy: {{builder: records, storage: {corpus}}}\n"
    run = f"""run:
  task: report_generation
  output_dir: {tmp_path / "out"}
  device: cpu
  max_steps: 300
  eval_every: 300
  save_every: 0
  batch_size_train: 8
  init_lr: 3e-3
"""
    path = tmp_path / "run.yaml"
    path.write_text(model + data + run)
    runner = build_runner(load(Training, path))
    assert not any("query_tokens" in n for n, _ in runner.model.trainable_parameters())
    runner.train()
    validations = [r for r in read_rows(runner.run_folder / "metrics.jsonl") if "val/loss" in r]
    assert validations[-1]["val/image_gap"] > 0.1


def test_phantoms_from_python():
    (code,) = blocks("phantom.md", "python")
    names: dict = {"Finding": Finding}
    exec(code, names)
    picture = names["picture"]
    assert picture.pixels.shape == picture.masks[0].shape == (224, 224)
    assert picture.pixels.dtype == np.uint8
    assert picture.boxes[0][0] > 0.4  # the patient's left is on the right of the picture


def test_studies_of_embeddings(tmp_path, monkeypatch):
    """The table that docs/echo_data.md writes is read with each of its settings."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("echo_data.md", "python")
    exec(code, {})
    for yaml in blocks("echo_data.md", "yaml"):
        config = training(tmp_path, yaml.replace("/data/echo", str(tmp_path)))
        builder = config.datasets["echo"].build(image_spec=NO_IMAGES)
        by_split, problems = builder.records_by_split()
        assert not problems and sum(map(len, by_split.values())) == 20
        sample = builder.build("train")[0]
        (medium,) = sample["media"]
        assert medium.data.shape == (len(sample["meta"]["views"]), 512)
        assert split_row_labels(medium.view, len(medium.data))[1] == ("PLAX", "")
