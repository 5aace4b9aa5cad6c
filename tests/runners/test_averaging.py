"""Averaged weights: the mean it says, saved in place of the last, and resumed to the bit."""

from __future__ import annotations

import pytest
import torch

from tests.killing import same, weights
from tests.runners.test_train_loop import Crash, crash_at, runner_of
from xraygpt.common.errors import ConfigError, InputError

AVERAGED = "run.ema_decay=0.7"


@pytest.mark.slow
def test_what_is_saved_and_measured_is_the_mean_of_the_steps(tmp_path, toy, monkeypatch):
    runner = runner_of(tmp_path, toy, AVERAGED, "run.eval_every=6")
    name = "proj.weight"
    mean = runner.model.state_dict()[name].clone()
    plain, measured = runner.average.update, []

    def update(step: int) -> None:
        plain(step)
        kept = min(0.7, step / (step + 9))
        mean.mul_(kept).add_(runner.model.state_dict()[name], alpha=1 - kept)

    original = runner.validator.mean_loss

    def mean_loss(data):
        measured.append(runner.model.state_dict()[name].clone())
        return original(data)

    monkeypatch.setattr(runner.average, "update", update)
    monkeypatch.setattr(runner.validator, "mean_loss", mean_loss)
    runner.train()
    saved = weights(tmp_path / "out")[name]
    torch.testing.assert_close(saved, mean)
    torch.testing.assert_close(measured[0], mean)
    last = runner.model.state_dict()[name]
    assert not torch.allclose(last, mean, atol=1e-5)  # training goes on with its own


def test_resumed_is_uninterrupted_to_the_bit(tmp_path, toy, monkeypatch):
    whole = runner_of(tmp_path, toy, AVERAGED, name="whole")
    whole.train()
    broken = runner_of(tmp_path, toy, AVERAGED, name="broken")
    crash_at(broken, 4, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    resume = f"run.resume_ckpt_path={tmp_path / 'broken'}"
    with pytest.raises(InputError, match="ema_decay is 0, but this run averages"):
        runner_of(tmp_path, toy, resume, name="broken").train()
    again = runner_of(tmp_path, toy, AVERAGED, resume, name="broken")
    again.train()
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    own, theirs = whole.average.own(), again.average.own()
    assert all(torch.equal(own[n], theirs[n]) for n in own)


def test_shares_outside_nought_to_one_are_refused(tmp_path, toy):
    with pytest.raises(ConfigError, match=r"ema_decay: must be in"):
        runner_of(tmp_path, toy, "run.ema_decay=1.0")
