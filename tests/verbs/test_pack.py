"""A run packed into one folder gives the same answers, needs nothing else, and is half as large."""

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
def made(tmp_path_factory):
    """A folder with an encoder's, an LLM's and a model's run."""
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


def test_a_packed_model_says_the_same_and_rests_on_nothing_else(made, tmp_path, monkeypatch):
    base, corpus = made
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
    gone = tmp_path / "gone"
    for name in ("encoder", "lm", "run"):
        shutil.move(base / name, gone / name)
    try:
        after = evaluator(base, corpus, f"{out / 'encoder'}+base", out / "llm", out)
    finally:
        for name in ("encoder", "lm", "run"):
            shutil.move(gone / name, base / name)
    theirs, ours = before.model.state_dict(), after.model.state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=1e-4)
    assert not any("lora_" in name for name in ours)  # an evaluator folds them in
    state = load_file(out / "model.safetensors")
    assert any((t != 0).any() for n, t in state.items() if "lora_B" in n)  # they came along
    assert {t.dtype for t in state.values() if t.dim() > 1} == {torch.float16}
    assert not any(n.startswith(("vision.", "llm.base_model.model.model.embed")) for n in state)
    described = (out / "config.yaml").read_text()
    assert str(base) not in described and f"finding_head: {out / HEAD}" in described
    packed = load_head(out / HEAD, after.model.vision.digest())  # that of half precision
    torch.testing.assert_close(packed.weight, head.weight)
    assert packed.threshold == head.threshold
    with pytest.raises(InputError, match="is there already"):
        job.pack(base / "run", out)


@pytest.mark.slow
def test_parts_trained_anew_since_are_not_packed(made, tmp_path):
    base, corpus = made
    kept = tmp_path / "lm"
    shutil.copytree(base / "lm", kept)
    try:
        llms.train(base, corpus, 3, "model.seed=5")
        with pytest.raises(WeightsError, match="another LLM than"):
            job.pack(base / "run", tmp_path / "out")
    finally:
        shutil.rmtree(base / "lm")
        shutil.move(kept, base / "lm")
    assert not (tmp_path / "out").exists()


def test_any_model_is_packed(made, tmp_path):
    """An encoder's run: weights in half precision, its tokenizer, a configuration that loads."""
    base, _ = made
    job.pack(base / "encoder", tmp_path / "out")
    described = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["model"]
    assert described["ckpt"] == str(tmp_path / "out") and described["arch"] == "image_text"
    own, packed = (read_weights(p)[1] for p in (base / "encoder", tmp_path / "out"))
    assert own.keys() == packed.keys() and (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(InputError, match="no place for one"):
        job.pack(base / "encoder", tmp_path / "other", tmp_path / "head")


def test_values_beyond_half_precision_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="w holds values beyond"):
        save_half({"w": torch.full((2, 2), 1e6)}, tmp_path / "w.safetensors")
    save_half({"variance": torch.full((2,), 1e6)}, tmp_path / "w.safetensors")
    assert float(load_file(tmp_path / "w.safetensors")["variance"][0]) == 1e6
