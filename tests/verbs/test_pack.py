"""A bundle gives the same answers as its run, needs no other files, and is half as large."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import write_toy_corpus
from tests.models.llm import test_language_model as llms
from tests.models.vision import test_image_text as encoders
from xraygpt import pack
from xraygpt.common.config import load
from xraygpt.common.errors import InputError, WeightsError
from xraygpt.experiment import Evaluation, Training, build_evaluator, build_runner
from xraygpt.jobs import pack as job
from xraygpt.models.qformer_llm.pack import HEAD
from xraygpt.models.vision.finding_head import FindingHead, load_head
from xraygpt.models.weights.files import read_weights, save_half

YAML = """
model:
  arch: xraygpt
  model_type: tiny
  prompt_template: xraygpt
  end_sym: "</s>"
  vit_model: run/%s
  llama_model: %s
  ckpt: %s
  lora: {r: 4, alpha: 4, target: [q_proj]}
datasets:
  toy: {builder: records, storage: %s}
run: {task: report_generation, output_dir: %s, device: cpu, %s}
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs of an encoder, an LLM and a model, and their corpus."""
    base = tmp_path_factory.mktemp("pack")
    corpus = write_toy_corpus(base / "corpus")
    encoders.trained(base, corpus, 2)
    llms.train(base, corpus, 2)
    parts = (f"{base / 'encoder'}+base", base / "lm", "null", corpus, base / "run")
    path = base / "train.yaml"
    path.write_text(YAML % (*parts, "max_steps: 4, batch_size_train: 8, init_lr: 1e-2"))
    build_runner(load(Training, path)).train()
    return base, corpus


def evaluator(base, corpus, vit, llm, ckpt):
    path = base / "eval.yaml"
    path.write_text(YAML % (vit, llm, ckpt, corpus, base / "measured", "split: val"))
    return build_evaluator(load(Evaluation, path))


def test_a_bundle_equals_its_run_and_needs_no_other_files(runs, tmp_path, monkeypatch):
    base, corpus = runs
    out = tmp_path / "weights" / "mine"
    before = evaluator(base, corpus, f"{base / 'encoder'}+base", base / "lm", base / "run")
    vision = before.model.vision
    head = FindingHead(
        ["edema"], [], weight=torch.randn(1, 2 * vision.width), bias=torch.zeros(1),
        threshold=torch.tensor([0.4]), encoder=vision.digest(),
    )  # fmt: skip
    head.save(tmp_path / "head")
    command = ["pack", str(base / "run"), str(out), "--finding-head", str(tmp_path / "head")]
    monkeypatch.setattr(sys, "argv", command)
    pack.main()
    moved = tmp_path / "moved"
    for name in ("encoder", "lm", "run"):
        shutil.move(base / name, moved / name)
    try:
        after = evaluator(base, corpus, f"{out / 'encoder'}+base", out / "llm", out)
    finally:
        for name in ("encoder", "lm", "run"):
            shutil.move(moved / name, base / name)
    expected, actual = before.model.state_dict(), after.model.state_dict()
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=2e-3, atol=1e-4)
    assert not any("lora_" in name for name in actual)  # an evaluator merges them
    state = load_file(out / "model.safetensors")
    assert any((t != 0).any() for n, t in state.items() if "lora_B" in n)  # they are included
    assert {t.dtype for t in state.values() if t.dim() > 1} == {torch.float16}
    assert not any(n.startswith(("vision.", "llm.base_model.model.model.embed")) for n in state)
    config = (out / "config.yaml").read_text()
    assert str(base) not in config and f"finding_head: {out / HEAD}" in config
    packed = load_head(out / HEAD, after.model.vision.digest())  # digest in half precision
    torch.testing.assert_close(packed.weight, head.weight)
    assert packed.threshold == head.threshold
    with pytest.raises(InputError, match="already exists"):
        job.pack(base / "run", out)


@pytest.mark.slow
def test_parts_that_were_retrained_are_refused(runs, tmp_path):
    base, corpus = runs
    backup = tmp_path / "lm"
    shutil.copytree(base / "lm", backup)
    try:
        llms.train(base, corpus, 3, "model.seed=5")
        with pytest.raises(WeightsError, match="another LLM than"):
            job.pack(base / "run", tmp_path / "out")
    finally:
        shutil.rmtree(base / "lm")
        shutil.move(backup, base / "lm")
    assert not (tmp_path / "out").exists()


def test_any_model_can_be_bundled(runs, tmp_path):
    """An encoder's run gives half-precision weights, its tokenizer and a valid configuration."""
    base, _ = runs
    job.pack(base / "encoder", tmp_path / "out")
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["model"]
    assert config["ckpt"] == str(tmp_path / "out") and config["arch"] == "image_text"
    run, bundle = (read_weights(p)[1] for p in (base / "encoder", tmp_path / "out"))
    assert run.keys() == bundle.keys() and (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="does not support a finding head"):
        job.pack(base / "encoder", tmp_path / "other", tmp_path / "head")


def test_values_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="w has values beyond"):
        save_half({"w": torch.full((2, 2), 1e6)}, tmp_path / "w.safetensors")
    save_half({"variance": torch.full((2,), 1e6)}, tmp_path / "w.safetensors")
    assert float(load_file(tmp_path / "w.safetensors")["variance"][0]) == 1e6
