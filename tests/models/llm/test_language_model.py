"""The small LLM: training, its tokenizer, and loading it as a transformers folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from xraygpt.common.checkpoint import find_checkpoint
from xraygpt.common.config import load
from xraygpt.common.errors import WeightsError
from xraygpt.experiment import Training, build_runner
from xraygpt.models.llm.llm_files import load_llm
from xraygpt.models.llm.small_llm import SmallLLM, new_llm, new_tokenizer
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.text_assets import saved_tokenizer

YAML = """
model:
  arch: language_model
  llm: {vocab_size: 300, hidden: 32, layers: 1, heads: 2, context: 128}
  prompt_template: xraygpt
  end_sym: "</s>"
datasets:
  toy: {builder: records, storage: %s}
run:
  task: language_modeling
  output_dir: %s
  device: cpu
  max_steps: %d
  batch_size_train: 8
  init_lr: 1e-2
"""


def train(tmp_path: Path, corpus: Path, steps: int, *options: str):
    path = tmp_path / "lm.yaml"
    path.write_text(YAML % (corpus, tmp_path / "lm", steps))
    runner = build_runner(load(Training, path, options))
    return runner, runner.train()


@pytest.mark.slow
def test_it_learns_and_loads_as_an_llm(tmp_path, toy):
    runner, scores = train(tmp_path, toy, 60)
    assert scores["val/loss"] < 1.0
    assert "val/image_gap" not in scores  # images are not read
    llm, tokenizer = load_llm(str(tmp_path / "lm"), "float32")
    ids = torch.tensor([[1, 70, 80, 90]])
    with torch.no_grad():
        assert torch.equal(llm(ids).logits, runner.model.eval().llm(ids).logits)
    assert tokenizer.decode(tokenizer("Clear lungs.")["input_ids"]) == "Clear lungs."
    config = XrayGPT.Config.from_keys(vit_model="tiny", llama_model=str(tmp_path / "lm" / "best"))
    assert XrayGPT(config).proj.out_features == 32


@pytest.mark.slow
def test_dropout_acts_in_training_only_and_is_not_saved(tmp_path, toy):
    runner, _ = train(tmp_path, toy, 2, "model.dropout=0.5")
    model = runner.model.eval()
    batch = next(runner._batches())
    plain = model(batch).loss
    assert model(batch).loss == plain
    model.train()
    assert model(batch).loss != model(batch).loss
    llm, _ = load_llm(str(tmp_path / "lm"), "float32")
    ids = batch["input_ids"]
    with torch.no_grad():
        assert torch.equal(llm.train()(ids).logits, model.eval().llm(ids).logits)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_tokenizer(tmp_path, toy):
    """Even if the corpus has changed since."""
    train(tmp_path, toy, 2)
    before = find_checkpoint(tmp_path / "lm") / "llm" / "tokenizer.json"
    vocabulary = json.loads(before.read_text())["model"]["vocab"]
    lines = (toy / "corpus.jsonl").read_text().replace("Clear lungs.", "Clear, clear, clear lungs!")
    (toy / "corpus.jsonl").write_text(lines)
    train(tmp_path, toy, 4, f"run.resume_ckpt_path={tmp_path / 'lm'}")
    after = find_checkpoint(tmp_path / "lm") / "llm" / "tokenizer.json"
    assert after != before and json.loads(after.read_text())["model"]["vocab"] == vocabulary
    (after.parent / "tokenizer.json").write_text("{")
    with pytest.raises(WeightsError, match=r"tokenizer.json is damaged"):
        saved_tokenizer(after.parent.parent)


def test_the_tokenizer_encodes_any_text():
    tokenizer = new_tokenizer(["Clear lungs."] * 5, 280)
    text = "Ödem 12.5 cm — \u80ba \U0001fac1"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer) <= 280


def twin_accuracy(steps: int, **settings: float) -> float:
    """Accuracy of repeating one of two tokens with the same contexts, such as left and right."""
    size = SmallLLM(vocab_size=260, hidden=64, layers=2, heads=2, **settings)
    llm = new_llm(size, new_tokenizer([], 260), seed=0)
    optimizer = torch.optim.AdamW(llm.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def batch(rows: int):
        ids = torch.randint(10, 100, (rows, 24), generator=generator)
        twin = torch.randint(200, 202, (rows,), generator=generator)
        ids[torch.arange(rows), torch.randint(0, 22, (rows,), generator=generator)] = twin
        ids[:, -2], ids[:, -1] = 5, twin
        return ids, twin

    for _ in range(steps):
        ids, _ = batch(32)
        loss = llm(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llm.parameters(), 1.0)
        optimizer.step()
    ids, twin = batch(256)
    with torch.no_grad():
        predicted = llm(input_ids=ids).logits[:, -2].argmax(-1)
    return float((predicted == twin).float().mean())


@pytest.mark.slow
def test_the_initialisation_helps_to_repeat_one_of_two_twins():
    assert twin_accuracy(60) > 0.95
    small = {"init_std": 0.02, "embedding_std": 0.02}  # transformers' default
    assert twin_accuracy(60, **small) < 0.75
