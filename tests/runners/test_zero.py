"""DeepSpeed's ZeRO behind accelerate's configuration: the run of one process, shared out."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from tests.killing import weights
from tests.runners.test_train_loop import logged, ranks
from xraygpt.common.errors import InputError, TrainingError
from xraygpt.runners.zero import ZeroStepper, _check_model, _check_settings

HALF = ("run.batch_size_train=1", "run.accum_grad_iters=2")


def under_deepspeed(monkeypatch, stage: int) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("deepspeed") and shutil.which("g++")), reason="no deepspeed or C++ compiler here"
)
def test_two_processes_under_zero_are_one_and_move(tmp_path, monkeypatch):
    """Stage 2 throughout; and one process, then two in stage 1, two in stage 2, one again."""
    fixed = ["run.ema_decay=0.9", "run.lr_sched=constant_lr", "run.eval_every=6"]
    auto, whole = "run.resume_ckpt_path=auto", "run.batch_size_train=4"
    ends = {n: f"run.output_dir={tmp_path / n}" for n in ("one", "two", "moved")}
    ranks(tmp_path, 1, *fixed, whole, ends["one"], "run.max_steps=12")
    ranks(tmp_path, 1, *fixed, whole, ends["moved"], "run.max_steps=3")
    for stage, name, steps in ((2, "two", 12), (1, "moved", 6), (2, "moved", 9)):
        with monkeypatch.context() as patch:
            under_deepspeed(patch, stage)
            ranks(tmp_path, 2, *fixed, *HALF, ends[name], f"run.max_steps={steps}", auto)
    ranks(tmp_path, 1, *fixed, whole, ends["moved"], "run.max_steps=12", auto)
    one, two, moved = (logged(tmp_path / name) for name in ends)
    assert len(one) == len(two) == len(moved) == 12 and one[0] > one[-1]
    assert np.allclose(one, two, rtol=1e-5, atol=0) and np.allclose(one, moved, rtol=1e-5, atol=0)
    for name, tensor in weights(tmp_path / "one").items():
        if name.startswith("average_"):  # of the images rank 0 saw, for guidance
            continue
        for other in ("two", "moved"):
            theirs = weights(tmp_path / other)[name]
            torch.testing.assert_close(tensor, theirs, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(
    not (find_spec("deepspeed") and shutil.which("g++")), reason="no deepspeed or C++ compiler here"
)
def test_zero_in_bfloat16_is_one_process_in_bfloat16(tmp_path, monkeypatch):
    """Gradients are summed in float32 and weights kept in it."""
    runs = {"one": (1, "bf16"), "two": (2, "bf16"), "plain": (2, "false")}
    for name, (world, amp) in runs.items():
        with monkeypatch.context() as patch:
            if world > 1:
                under_deepspeed(patch, 2)
            rows = HALF if world > 1 else ("run.batch_size_train=4",)
            where = f"run.output_dir={tmp_path / name}"
            ranks(tmp_path, world, *rows, "run.max_steps=8", f"run.amp={amp}", where)
        assert all(t.dtype == torch.float32 for t in weights(tmp_path / name).values())
    one, two, plain = (np.array(logged(tmp_path / name)) for name in runs)
    apart = np.abs(two - plain) / plain
    assert apart[0] > 1e-5  # bfloat16 it was
    assert np.abs(one[0] - two[0]) / one[0] < 1e-6
    assert np.allclose(one, two, rtol=1e-3, atol=0)


class Tiny(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(weight)

    def trainable_parameters(self):
        return list(self.named_parameters())


def test_models_deepspeed_cannot_take_are_named():
    with pytest.raises(InputError, match="weight is a scalar"):
        _check_model(Tiny(torch.tensor(1.0)))
    with pytest.raises(InputError, match=r"weight is trained in torch\.bfloat16"):
        _check_model(Tiny(torch.ones(2, dtype=torch.bfloat16)))
    _check_model(Tiny(torch.ones(2)))


def test_a_loss_that_is_no_number_steps_nowhere():
    stepper = ZeroStepper.__new__(ZeroStepper)
    stepper.wrapped = Mock(get_global_grad_norm=lambda: 2.0)

    def check(norm):
        raise TrainingError("loss nan")

    with pytest.raises(TrainingError, match="loss nan"):
        stepper.step(check)
    stepper.wrapped.step.assert_not_called()
    assert stepper.step(lambda norm: None) == 2.0
    stepper.wrapped.step.assert_called_once()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zero_optimization": {"stage": 3}}, r"stage 3; stages 1 and 2 are supported.*shard_llm"),
        ({}, "stage None"),
        ({"optimizer": {}, "zero_optimization": {"stage": 2}}, r"its own optimizer; remove that"),
        (
            {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
            "not supported",
        ),
        ({"zero_optimization": {"stage": 2, "cpu_offload": True}}, "not supported"),
        ({"zero_optimization": {"stage": 2}, "compute_grad_norm": False}, "must not be false"),
    ],
)
def test_what_deepspeed_is_not_to_do_is_said(settings, message):
    with pytest.raises(InputError, match=message):
        _check_settings(settings)
    _check_settings({"zero_optimization": {"stage": 1, "offload_optimizer": None}})
