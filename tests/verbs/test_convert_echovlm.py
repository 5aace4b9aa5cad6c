"""Checkpoints of echovlm become a folder that a YAML file names as `model.ckpt`."""

from __future__ import annotations

import sys

import pytest
import torch
import yaml

from tests.verbs.test_convert_echo import encoding, pickle_encoding  # noqa: F401
from xraygpt import convert
from xraygpt.common.errors import WeightsError
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import Media
from xraygpt.models.base import Generation
from xraygpt.models.prefix_lm.model import PrefixLM
from xraygpt.models.text_assets import checkpoint_assets
from xraygpt.runners.state import load_weights

WIDTH = 32


@pytest.fixture
def run_folder(tmp_path, encoding, monkeypatch):  # noqa: F811
    """`assets/` with a run and its tokenizer; the weights come from a model of ours."""
    size = len(encoding.byte_lengths())
    names = {"transformer.wte.weight": (size, WIDTH), "lm_head.weight": (size, WIDTH)}
    for i in range(2):
        for part in ("c_q", "c_k", "c_v", "c_proj"):
            names[f"transformer.h.{i}.attn.{part}.weight"] = (WIDTH, WIDTH)
        names[f"transformer.h.{i}.mlp.c_fc.weight"] = (4 * WIDTH, WIDTH)
        names[f"transformer.h.{i}.mlp.c_proj.weight"] = (WIDTH, 4 * WIDTH)
    generator = torch.Generator().manual_seed(0)
    weights = {n: torch.randn(s, generator=generator) * 0.2 for n, s in names.items()}
    shape = {
        "sequence_len": 64, "vocab_size": size, "n_layer": 2, "n_head": 2, "n_kv_head": 2,
        "n_embd": WIDTH,
    }  # fmt: skip
    folder = tmp_path / "assets" / "echovlm"
    folder.mkdir(parents=True)
    for step in (250, 500):
        content = {"model": weights, "model_config": shape, "step": step, "val_bpb": 0.5}
        torch.save(content, folder / f"checkpoint{step:06d}.pt")
    (tmp_path / "assets/tokenizer").mkdir()
    pickle_encoding(tmp_path / "assets/tokenizer/tokenizer.pkl", encoding, monkeypatch)
    return folder, weights


def command(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *map(str, arguments), "--from", "echovlm"])
    convert.main()
    return capsys.readouterr().out


def test_a_run_becomes_a_model_that_answers(run_folder, tmp_path, monkeypatch, capsys):
    folder, weights = run_folder
    said = command(monkeypatch, capsys, folder, tmp_path / "out")
    assert "model.yaml is the model section" in said and "licence forbids passing on" in said
    settings = yaml.safe_load((tmp_path / "out/model.yaml").read_text())["model"]
    assert settings.pop("arch") == "prefix_lm" and settings["ckpt"] == str(tmp_path / "out")
    config = PrefixLM.Config.from_keys(**settings)
    model = config.build(texts=list, assets=checkpoint_assets(config.ckpt))
    load_weights(model, config.ckpt)
    model.eval()
    assert torch.equal(model.llm.lm_head.weight, weights["lm_head.weight"])
    assert model.tokenizer.decode(model.tokenizer("No effusion.")["input_ids"]) == "No effusion."
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    sample = {
        "sample_id": "s", "study_id": "s", "media": [Media(torch.randn(1, WIDTH), "embedding")],
        "turns": [{"role": "user", "text": "<image>"}], "meta": {}, "rng_key": "",
    }  # fmt: skip
    batch = collate.prompts([sample])
    assert batch["input_ids"].tolist() == [[-200, model.tokenizer.bos_token_id]]
    (text,) = model.generate(batch, Generation(max_new_tokens=5))
    assert isinstance(text, str)


def test_what_does_not_belong_together_is_refused(run_folder, tmp_path, monkeypatch, capsys):
    folder, _ = run_folder
    with pytest.raises(WeightsError, match=r"contains no checkpoint\*\.pt"):
        command(monkeypatch, capsys, tmp_path / "assets/tokenizer", tmp_path / "a")
    path = folder / "checkpoint000500.pt"
    content = torch.load(path, weights_only=True)
    content["model_config"]["vocab_size"] += 1
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"tokens, but the vocabulary of .*000500.pt has"):
        command(monkeypatch, capsys, folder, tmp_path / "b")
    (tmp_path / "assets/tokenizer/tokenizer.pkl").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer/tokenizer.pkl beside .*--tokenizer"):
        command(monkeypatch, capsys, folder, tmp_path / "c")
    with pytest.raises(WeightsError, match=r"gone.pkl: no such file"):
        command(monkeypatch, capsys, folder, tmp_path / "d", "--tokenizer", "gone.pkl")
    assert not any((tmp_path / name).exists() for name in "abcd")
