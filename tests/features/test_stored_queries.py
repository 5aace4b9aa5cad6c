"""The tokens of a frozen Q-Former are cached, and training gives the same results."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.models.qformer_llm.test_model import tiny
from tests.runners.test_train_loop import Crash, crash_at, runner_of
from xraygpt.common.paths import cache_root
from xraygpt.models.qformer_llm.instruct import InstructXrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.runners.logs import read_rows

FROZEN = "model.freeze_qformer=true"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))


def losses(runner):
    """Losses of training and of val, with true and shuffled images."""
    rows = read_rows(runner.run_folder / "metrics.jsonl")
    keys = ("train/loss", "val/loss", "val/loss_shuffled")
    return [row[key] for row in rows for key in keys if key in row]


@pytest.mark.slow
def test_losses_equal_those_without_a_cache(tmp_path, toy):
    stored = runner_of(tmp_path, toy, FROZEN)
    stored.train()
    plain = runner_of(tmp_path, toy, FROZEN, "run.feature_cache=false", name="plain")
    plain.train()
    assert len(losses(stored)) == len(losses(plain)) == 10
    np.testing.assert_allclose(losses(stored), losses(plain), rtol=1e-5)
    assert len(set(losses(stored))) > 6  # they change during training


@pytest.mark.slow
def test_neither_encoder_nor_qformer_runs_again(tmp_path, toy, monkeypatch):
    runner_of(tmp_path, toy, FROZEN).train()
    stored = [load_file(path) for path in cache_root().rglob("*.safetensors")]
    shapes = {tuple(t.shape) for tensors in stored for t in tensors.values()}
    assert shapes == {(4, 64)}  # query tokens, width of the Q-Former
    again = runner_of(tmp_path, toy, FROZEN, name="again")
    never = lambda *_, **__: pytest.fail("computed again")  # noqa: E731
    monkeypatch.setattr(again.model.vision, "encode", never)
    monkeypatch.setattr(again.model.qformer, "forward", never)
    again.train()
    assert len(losses(again)) == 10


def test_another_qformer_has_another_store():
    keys = []
    for seed in (0, 1):
        model = tiny(freeze_qformer=True)
        if seed:
            with torch.no_grad():
                next(model.qformer.parameters()).add_(0.1)
        keys.append(model.start_caching_queries())
        assert model.caches_queries and model.encode_frozen(torch.zeros(1, 3, 32, 32)).shape[1] == 4
    assert keys[0] != keys[1] and keys[0].startswith(keys[1].split(" queries ")[0])


def test_tokens_of_a_trained_or_instructed_qformer_are_not_stored():
    sizes = {"layers": 2, "hidden": 64, "cross_attention_every": 1}
    instruct = vars(tiny(freeze_qformer=True).config)
    models = [
        tiny(),
        tiny(freeze_qformer=True, qformer=QFormerConfig(**sizes, adapter=24)),
        InstructXrayGPT(InstructXrayGPT.Config.from_keys(**instruct)),
    ]
    for model in models:
        assert model.start_caching_queries() == model.feature_key() and not model.caches_queries
    trained = tiny(freeze_qformer=True, freeze_vit=False)
    assert trained.start_caching_queries() is None and not trained.caches_queries


@pytest.mark.slow
def test_a_resumed_run_uses_the_qformer_of_the_checkpoint(tmp_path, toy, monkeypatch):
    full = runner_of(tmp_path, toy, FROZEN)
    full.train()
    broken = runner_of(tmp_path, toy, FROZEN, "run.save_every=1", name="broken")
    crash_at(broken, 3, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    resume = f"run.resume_ckpt_path={tmp_path / 'broken'}"
    again = runner_of(tmp_path, toy, FROZEN, resume, name="broken")
    with torch.no_grad():  # as with another initialisation
        next(again.model.qformer.parameters()).add_(1.0)
    again.train()
    assert losses(again) == losses(full)
