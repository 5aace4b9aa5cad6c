"""The loop: it learns from the image, resumes to the bit, and never leaves half a checkpoint."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from tests import processes
from tests.conftest import REPO, toy_yaml, write_toy_corpus
from tests.killing import finish, kill_and_finish, killed_at, same, wait_for_step, weights
from xraygpt.common import checkpoint
from xraygpt.common.config import load
from xraygpt.common.errors import InputError, TrainingError, WeightsError
from xraygpt.experiment import Training, build_runner
from xraygpt.runners import sharding, signals, state
from xraygpt.runners.logs import read_rows
from xraygpt.runners.signals import ignore_in_worker
from xraygpt.runners.train_loop import Runner

MODEL = """
  freeze_llm: false
  qformer: {layers: 2, hidden: 64, cross_attention_every: 1, dropout: 0.1}
"""
RUN = """
  task: report_generation
  output_dir: %s
  device: cpu
  max_steps: 6
  save_every: 2
  eval_every: 3
  log_every: 1
  batch_size_train: 8
  init_lr: 3e-3
"""


def runner_of(tmp_path: Path, corpus: Path, *options: str, name: str = "out") -> Runner:
    text = toy_yaml(corpus, RUN % (tmp_path / name), MODEL, "    only_images: false")
    path = tmp_path / f"{name}.yaml"
    path.write_text(text)
    return build_runner(load(Training, path, options))


class Crash(Exception):
    """Stands for a kill: nothing of the runner's own cleaning up happens."""


def crash_at(runner: Runner, step: int, monkeypatch) -> None:
    original = runner._step

    def stepping(batches):
        if runner.step == step:
            raise Crash
        return original(batches)

    monkeypatch.setattr(runner, "_step", stepping)


@pytest.mark.slow
def test_it_learns_to_read_the_image_and_a_blind_control_does_not(tmp_path, toy):
    options = [
        "run.max_steps=200",
        "run.save_every=0",
        "run.eval_every=0",
        "run.init_lr=2e-3",
        "run.lr_sched=constant_lr",
    ]
    seeing = runner_of(tmp_path, toy, *options)
    seeing.train()
    seeing.config.eval_every = 1
    gap = seeing._validate()
    blind = runner_of(tmp_path, toy, *options, "datasets.toy.blank_images=true", name="blind")
    blind.train()
    control = blind._validate()
    assert gap["val/image_gap"] > 0.4, gap
    assert abs(control["val/image_gap"]) < 0.02, control
    assert gap["val/loss"] < 0.5 * control["val/loss"]


@pytest.mark.parametrize("crash", [1, 3, 5])
def test_resumed_is_uninterrupted_to_the_bit(tmp_path, toy, crash, monkeypatch):
    whole = runner_of(tmp_path, toy)
    whole.train()
    broken = runner_of(tmp_path, toy, "run.save_every=1", name="broken")
    crash_at(broken, crash, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    again = runner_of(tmp_path, toy, f"run.resume_ckpt_path={tmp_path / 'broken'}", name="broken")
    torch.rand(7)  # whatever was drawn before must not matter
    again.train()
    assert again.run_folder == broken.run_folder
    assert same(weights(tmp_path / "out"), weights(tmp_path / "broken"))
    rows = read_rows(again.run_folder / "metrics.jsonl")
    steps = [r["step"] for r in rows if "train/loss" in r]
    assert steps == [1, 2, 3, 4, 5, 6]
    true = read_rows(whole.run_folder / "metrics.jsonl")
    pick = lambda rs: [r["train/loss"] for r in rs if "train/loss" in r]  # noqa: E731
    assert pick(rows) == pick(true)


@pytest.mark.slow
def test_bfloat16_on_a_cpu_must_be_asked_for(tmp_path, toy):
    losses = {}
    for amp in ("true", "bf16"):
        AcceleratorState._reset_state(True)
        runner = runner_of(tmp_path, toy, f"run.amp={amp}", "run.max_steps=1", name=amp)
        runner.train()
        losses[amp] = read_rows(runner.run_folder / "metrics.jsonl")[0]["train/loss"]
    AcceleratorState._reset_state(True)
    plain = runner_of(tmp_path, toy, "run.amp=false", "run.max_steps=1", name="plain")
    plain.train()
    expected = read_rows(plain.run_folder / "metrics.jsonl")[0]["train/loss"]
    assert losses["true"] == expected
    assert losses["bf16"] != expected
    assert losses["bf16"] == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_a_dropped_rng_state_is_noticed(tmp_path, toy, monkeypatch):
    """The equality above must be able to fail: without the RNG state it does."""
    runner_of(tmp_path, toy).train()
    broken = runner_of(tmp_path, toy, "run.save_every=1", name="broken")
    crash_at(broken, 3, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    monkeypatch.setattr(state, "set_rng_state", lambda _: None)
    runner_of(tmp_path, toy, f"run.resume_ckpt_path={tmp_path / 'broken'}", name="broken").train()
    assert not same(weights(tmp_path / "out"), weights(tmp_path / "broken"))


PLATEAU = (
    "run.lr_sched=reduce_on_plateau_lr",
    "run.lr_plateau_patience=1",
    "run.lr_decay_rate=0.5",
    "run.eval_every=1",
    "run.save_every=1",
    "run.keep_checkpoints=9",
    "run.max_steps=8",
)


def plateaus(runner: Runner, monkeypatch) -> None:
    """Val losses that do not hang on the weights: no new best at steps 2, 4, 5 and 7."""
    losses = dict(enumerate([3.0, 3.1, 2.0, 2.2, 2.1, 1.0, 1.1, 0.5], start=1))
    monkeypatch.setattr(runner.validator, "mean_loss", lambda data: losses[runner.step])


@pytest.mark.slow
@pytest.mark.parametrize("forgets", [False, True])
def test_a_plateau_is_remembered(tmp_path, toy, forgets, monkeypatch):
    """Learning rates after resuming are those of a run that went through."""
    whole = runner_of(tmp_path, toy, *PLATEAU)
    plateaus(whole, monkeypatch)
    whole.train()
    broken = runner_of(tmp_path, toy, *PLATEAU, name="broken")
    plateaus(broken, monkeypatch)
    crash_at(broken, 5, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    resume = f"run.resume_ckpt_path={tmp_path / 'broken'}"
    again = runner_of(tmp_path, toy, *PLATEAU, resume, name="broken")
    plateaus(again, monkeypatch)
    if forgets:  # as of a checkpoint of before, which has no evaluations: it goes on without
        read = state.read_state
        kept = lambda *a: {k: v for k, v in read(*a).items() if k != "val_losses"}  # noqa: E731
        monkeypatch.setattr(state, "read_state", kept)
    again.train()

    def rates(runner: Runner) -> list[float]:
        rows = read_rows(runner.run_folder / "metrics.jsonl")
        return [r["train/lr"] for r in rows if "train/lr" in r]

    assert rates(whole) == [3e-3 * 0.5**n for n in (0, 0, 1, 1, 2, 3, 3, 4)]
    assert (rates(whole) == rates(again)) is not forgets
    assert same(weights(tmp_path / "out"), weights(tmp_path / "broken")) is not forgets


def test_auto_resumes_if_there_is_something(tmp_path, toy, monkeypatch):
    first = runner_of(tmp_path, toy, "run.resume_ckpt_path=auto")
    crash_at(first, 3, monkeypatch)
    with pytest.raises(Crash):
        first.train()
    second = runner_of(tmp_path, toy, "run.resume_ckpt_path=auto")
    second._begin()
    assert second.step == 3  # its best evaluation was saved there
    assert second.run_folder == first.run_folder


def test_full_disk_leaves_the_previous_checkpoint(tmp_path, toy, monkeypatch):
    runner = runner_of(tmp_path, toy)
    original = state.write_state

    def full(folder, model, facts, *rest):
        if facts["step"] == 4:
            original(folder, model, facts, *rest)
            raise OSError(errno.ENOSPC, "No space left on device")
        original(folder, model, facts, *rest)

    monkeypatch.setattr(state, "write_state", full)
    with pytest.raises(TrainingError, match=r"cannot save step 4 .*No space left.*intact"):
        runner.train()
    assert checkpoint.find_checkpoint(tmp_path / "out").name == "step-3"
    assert not list(runner.run_folder.glob("checkpoints/*.tmp-*"))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path, toy, caplog):
    runner = runner_of(tmp_path, toy)
    runner.train()
    newest = checkpoint.find_checkpoint(tmp_path / "out")
    file = newest / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    older = checkpoint.find_checkpoint(tmp_path / "out")
    assert older != newest
    assert "skipped damaged checkpoints" in caplog.text
    assert "SHA-256" in caplog.text
    for name in ("model.safetensors", "MANIFEST.json"):
        (older / name).write_bytes(b"")
    for folder in newest.parent.glob("step-*"):
        (folder / "MANIFEST.json").unlink()
    with pytest.raises(WeightsError, match="no usable checkpoint"):
        checkpoint.find_checkpoint(tmp_path / "out")


def test_a_loss_that_is_no_number_stops_and_poisons_nothing(tmp_path, toy):
    runner = runner_of(tmp_path, toy)
    original = runner.task.loss

    def poisoned(model, batch):
        output = original(model, batch)
        if runner.step == 4:
            output.loss = output.loss * float("nan")
        return output

    runner.task.loss = poisoned
    with pytest.raises(TrainingError, match=r"step 5: loss nan.*its samples: s\d"):
        runner.train()
    assert checkpoint.find_checkpoint(tmp_path / "out").name == "step-4"
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "out").values())


@pytest.mark.slow
def test_newest_and_best_are_kept(tmp_path, toy):
    runner = runner_of(tmp_path, toy, "run.save_every=1", "run.max_steps=9")
    runner.train()
    kept = {p.name for p in (runner.run_folder / "checkpoints").glob("step-*")}
    best = checkpoint.best_step(runner.run_folder)
    assert kept == {"step-8", "step-9", f"step-{best}"}
    assert checkpoint.find_checkpoint(tmp_path / "out" / "best").name == f"step-{best}"
    assert (runner.run_folder / "loss.png").stat().st_size > 1000


@pytest.mark.slow
def test_accumulating_is_one_batch_of_four_times_the_size(tmp_path, toy):
    """Answers of different lengths, so that a mean of micro-batch means would differ."""
    rows = {}
    dropout = "model.qformer.dropout=0.0"
    for name, size, parts in (("one", 8, 1), ("four", 2, 4)):
        options = [f"run.batch_size_train={size}", f"run.accum_grad_iters={parts}", dropout]
        runner = runner_of(tmp_path, toy, *options, name=name)
        runner.train()
        rows[name] = read_rows(runner.run_folder / "metrics.jsonl")
    for key in ("train/loss", "train/grad_norm"):
        pairs = [[r[key] for r in rows[n] if key in r] for n in ("one", "four")]
        assert np.allclose(*pairs, rtol=1e-5), key


@pytest.mark.slow
def test_workers_change_nothing_and_resume_exactly(tmp_path, toy, monkeypatch):
    runner_of(tmp_path, toy).train()
    many = ["run.num_workers=2", "run.save_every=1"]
    broken = runner_of(tmp_path, toy, *many, name="broken")
    crash_at(broken, 3, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    runner_of(
        tmp_path, toy, *many, f"run.resume_ckpt_path={tmp_path / 'broken'}", name="broken"
    ).train()
    assert same(weights(tmp_path / "out"), weights(tmp_path / "broken"))


@pytest.mark.slow
def test_resuming_an_older_checkpoint_forgets_what_came_after(tmp_path, toy):
    runner = runner_of(tmp_path, toy, "run.save_every=1", "run.keep_checkpoints=6")
    runner.train()
    older = runner.run_folder / "checkpoints" / "step-2"
    again = runner_of(tmp_path, toy, f"run.resume_ckpt_path={older}", "run.max_steps=3")
    again.train()
    assert again.run_folder == runner.run_folder
    left = {p.name for p in (runner.run_folder / "checkpoints").glob("step-*")}
    assert left <= {"step-1", "step-2", "step-3"}
    assert checkpoint.best_step(runner.run_folder) in (None, 3)


@pytest.mark.slow
def test_patience_stops_early(tmp_path, toy):
    options = ["run.patience=2", "run.eval_every=1", "run.init_lr=1e-12", "run.max_steps=50"]
    runner = runner_of(tmp_path, toy, *options)
    original = runner.validator.mean_loss
    runner.validator.mean_loss = lambda data: original(data) + runner.step  # ever worse
    runner.train()
    assert runner.step == 3


@pytest.mark.slow
def test_a_part_frozen_before_may_be_trained_now(tmp_path, toy):
    """The checkpoint of the first stage holds no LLM; the next one trains it."""
    runner_of(tmp_path, toy, "model.freeze_llm=true").train()
    assert not any(n.startswith("llm.") for n in weights(tmp_path / "out"))
    follows = runner_of(tmp_path, toy, f"model.ckpt={tmp_path / 'out'}", name="next")
    before = {n: p.clone() for n, p in follows.model.named_parameters() if n.startswith("llm.")}
    follows.train()
    after = weights(tmp_path / "next")
    assert all(n in after for n in before)
    assert any(not torch.equal(after[n], p) for n, p in before.items())
    state.save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(WeightsError, match="saved from another model"):
        runner_of(tmp_path, toy, f"model.ckpt={tmp_path / 'empty.safetensors'}", name="empty")


@pytest.mark.slow
def test_another_llm_than_the_checkpoints_is_refused(tmp_path, toy):
    runner_of(tmp_path, toy, "model.freeze_llm=true").train()
    with pytest.raises(WeightsError, match="was trained with another LLM"):
        runner_of(
            tmp_path, toy, "model.freeze_llm=true", "model.seed=5", f"model.ckpt={tmp_path / 'out'}"
        )


@pytest.mark.slow
def test_what_one_stage_trained_the_next_keeps(tmp_path, toy):
    """Stage 1 trains the LLM, stage 2 freezes it: stage 2's checkpoint must still hold it."""
    runner_of(tmp_path, toy, "model.freeze_llm=false").train()
    second = ["model.freeze_llm=true", f"model.ckpt={tmp_path / 'out'}"]
    runner_of(tmp_path, toy, *second, name="two").train()
    one, two = weights(tmp_path / "out"), weights(tmp_path / "two")
    llm = [k for k in one if k.startswith("llm.")]
    assert llm and all(torch.equal(one[k], two[k]) for k in llm)
    assert not torch.equal(one["proj.weight"], two["proj.weight"])


@pytest.mark.slow
def test_frozen_parts_and_buffers_are_bit_identical_after_a_run(tmp_path, toy):
    runner = runner_of(tmp_path, toy, "model.freeze_llm=true", "model.lora.r=2")
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    trained = {n for n, _ in runner.model.trainable_parameters()}
    runner.train()
    after = runner.model.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    averages = {"average_tokens", "average_count"}  # of the images trained on
    assert changed and changed <= trained | averages
    assert not any(k.startswith("vision.") for k in changed)
    assert all("lora_" in k for k in changed if k.startswith("llm."))


def test_a_frozen_qformer_has_no_dropout(tmp_path, toy):
    model = runner_of(tmp_path, toy, "model.freeze_qformer=true").model
    model.train()
    features = torch.randn(2, 16, 16)
    assert torch.equal(model.qformer(features), model.qformer(features))
    free = runner_of(tmp_path, toy).model
    free.train()
    assert not torch.equal(free.qformer(features), free.qformer(features))


def test_epochs_are_counted_in_iters(tmp_path, toy):
    runner = runner_of(
        tmp_path, toy, "run.max_steps=null", "run.max_epoch=3", "run.iters_per_epoch=2"
    )
    assert (runner.steps_per_epoch, runner.max_steps) == (2, 6)


def test_all_frozen_leaves_the_projection_as_in_the_lineage(tmp_path, toy):
    runner = runner_of(tmp_path, toy, "model.freeze_llm=true", "model.freeze_qformer=true")
    assert [n for n, _ in runner.model.trainable_parameters()] == ["proj.weight", "proj.bias"]


def test_nothing_to_train_on(tmp_path, toy):
    with pytest.raises(InputError, match="nothing to train on"):
        runner_of(tmp_path, toy, "datasets.toy.split.train=[nope]")


@pytest.mark.slow
def test_wrong_checkpoint_is_refused(tmp_path, toy):
    runner_of(tmp_path, toy).train()
    with pytest.raises(WeightsError, match=r"query_tokens: .*config\.yaml in the same folder"):
        runner_of(tmp_path, toy, "model.num_query_token=3", f"model.ckpt={tmp_path / 'out'}")
    with pytest.raises(WeightsError, match="in nowhere: there is no such folder"):
        runner_of(tmp_path, toy, "model.ckpt=nowhere")


# --- whole processes -------------------------------------------------------------------------


def command(tmp_path: Path, corpus: Path, name: str, *options: str) -> list[str]:
    path = tmp_path / f"{name}.yaml"
    path.write_text(toy_yaml(corpus, RUN % (tmp_path / name), MODEL, "    only_images: false"))
    return [sys.executable, "train.py", "--cfg-path", str(path), "--options", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_sigkill_at_random_steps_then_resume_is_the_same_to_the_bit(tmp_path, toy):
    options = ["run.max_steps=60", "run.save_every=5", "run.eval_every=20"]
    finish(command(tmp_path, toy, "whole", *options), environment(), cold=True)
    again = command(tmp_path, toy, "killed", *options, "run.resume_ckpt_path=auto")
    drawn = kill_and_finish(again, tmp_path / "killed", environment(), (8, 15, 20), reach=50)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed")), drawn


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True], ids=["alone", "with its workers"])
def test_sigterm_saves_and_says_so(tmp_path, toy, to_all):
    options = ["run.max_steps=5000", "run.save_every=0", "run.eval_every=0"]
    options += ["run.num_workers=1"] if to_all else []
    running = processes.Popen(
        command(tmp_path, toy, "term", *options),
        cwd=REPO,
        env=environment(),
        stderr=processes.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_step(tmp_path / "term", 3)
    if to_all:  # as a job scheduler and Ctrl-C do
        os.killpg(running.pid, signal.SIGTERM)
    else:
        running.send_signal(signal.SIGTERM)
    _, errors = running.communicate(timeout=300)
    assert running.returncode == 143
    assert "stopped by SIGTERM" in errors
    assert "run.resume_ckpt_path=" in errors
    assert "Traceback" not in errors
    assert checkpoint.find_checkpoint(tmp_path / "term")


@pytest.mark.slow
def test_a_kill_while_saving_leaves_the_previous_checkpoint(tmp_path, toy):
    killed_at("saving", 4, command(tmp_path, toy, "half"), environment())
    assert checkpoint.find_checkpoint(tmp_path / "half").name == "step-3"
    assert list(tmp_path.glob("half/*/checkpoints/step-4.tmp-*"))


RANKS = """
import json, os, sys
sys.argv = ["train.py", *sys.argv[1:]]
from xraygpt.common.config import load
from xraygpt.experiment import Training, build_runner
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    import deepspeed
    # Sums go through gloo: its own kernel for one machine's CPUs is first compiled for a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
runner = build_runner(load(Training, sys.argv[1], sys.argv[2:]))
if runner.config.shard_llm and "WORLD_SIZE" in os.environ:
    from torch.distributed.tensor import DTensor
    layers = runner.model.llm.get_decoder().layers
    sharded = {n: p for n, p in layers.named_parameters() if isinstance(p, DTensor)}
    assert any(n.endswith("mlp.up_proj.weight") for n in sharded), "nothing is sharded"
    assert not any("lora_" in n for n in sharded)
    assert all(p.to_local().numel() <= (p.numel() + 1) // 2 + p.shape[-1] for p in sharded.values())
assert runner.accelerator.num_processes == int(os.environ.get("WORLD_SIZE", "1"))
runner.train()
if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
    held = sum(state["exp_avg"].numel() for state in runner.optimizer.state.values())
    trained = sum(p.numel() for _, p in runner.model.trainable_parameters())
    assert trained / 2 <= held <= trained / 2 + 1000, "nothing is shared out"
if runner.config.compile:
    from torch._dynamo.utils import counters
    assert counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
"""


def ranks(tmp_path, world, *options, cold=False):
    """Run the toy on so many processes, to the end; `cold` by torchrun."""
    corpus, config, script = tmp_path / "corpus", tmp_path / "run.yaml", tmp_path / "ranks.py"
    if not corpus.exists():
        write_toy_corpus(corpus, 24, text_only=10)
        model = "  freeze_llm: false\n  lora: null"
        config.write_text(
            toy_yaml(corpus, RUN % (tmp_path / "out"), model, "    only_images: false")
        )
        script.write_text(RANKS)
    options = ["run.eval_every=0", "run.save_every=0", *options]
    line = [sys.executable, str(script), str(config), *options]
    env = {**environment(), "PYTHONPATH": str(REPO)}
    if world == 1:
        finish(line, env, cold)
    elif cold:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
        finish([line[0], *launcher, *line[1:]], env, cold)
    else:
        processes.run_world(world, line, env=env, timeout=600)


def logged(folder):
    (path,) = folder.glob("*/metrics.jsonl")
    return [r["train/loss"] for r in read_rows(path) if "train/loss" in r]


@pytest.mark.slow
def test_two_processes_are_one_with_the_same_global_batch(tmp_path):
    """20 steps, reports of different lengths, text-only samples in the mix, dropout 0."""
    losses = {}
    for world, rows in ((1, 4), (2, 2)):
        out = tmp_path / f"w{world}"
        rows = f"run.batch_size_train={rows}"
        ranks(tmp_path, world, "run.max_steps=20", rows, f"run.output_dir={out}", cold=True)
        losses[world] = logged(out)
    assert len(losses[1]) == len(losses[2]) == 20
    assert np.allclose(losses[1], losses[2], rtol=1e-5, atol=0)
    assert losses[1][0] > losses[1][-1]  # something was learned meanwhile


@pytest.mark.slow
def test_it_resumes_on_another_number_of_processes(tmp_path):
    """One process, two, one again, as if it had been one throughout; dropout 0, averaged."""
    fixed = ["run.ema_decay=0.9", "run.lr_sched=constant_lr"]
    out = f"run.output_dir={tmp_path / 'moved'}"
    auto = "run.resume_ckpt_path=auto"
    ranks(tmp_path, 1, *fixed, out, "run.max_steps=4", "run.batch_size_train=4")
    ranks(tmp_path, 2, *fixed, out, auto, "run.max_steps=8", "run.batch_size_train=2")
    ranks(tmp_path, 1, *fixed, out, auto, "run.max_steps=12", "run.batch_size_train=4")
    whole = f"run.output_dir={tmp_path / 'whole'}"
    ranks(tmp_path, 1, *fixed, whole, "run.max_steps=12", "run.batch_size_train=4")
    moved, straight = logged(tmp_path / "moved"), logged(tmp_path / "whole")
    assert len(moved) == len(straight) == 12
    assert np.allclose(moved, straight, rtol=1e-5, atol=0)
    ours, theirs = weights(tmp_path / "moved"), weights(tmp_path / "whole")
    for name, tensor in ours.items():
        if name.startswith("average_"):  # of the images rank 0 saw, for guidance
            continue
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-5, msg=name)


SHARDED = (
    "run.shard_llm=true",
    "model.freeze_llm=true",
    "model.lora={r: 4, target: [q_proj, v_proj]}",
    "run.eval_every=4",
    "run.eval_samples=9",
)


@pytest.mark.slow
def test_a_sharded_frozen_llm_trains_as_a_whole_one(tmp_path):
    """FSDP2 over two gloo processes, one process, and moving between them."""
    ends = {"a": [1], "b": [2], "moved": [1, 2, 1]}
    for name, worlds in ends.items():
        for i, world in enumerate(worlds, 1):
            ranks(
                tmp_path,
                world,
                *SHARDED,
                f"run.batch_size_train={4 // world}",
                f"run.output_dir={tmp_path / name}",
                f"run.max_steps={12 * i // len(worlds)}",
                "run.lr_sched=constant_lr",
                "run.resume_ckpt_path=auto",
            )
    one, two, moved = (logged(tmp_path / name) for name in ends)
    assert len(one) == len(two) == len(moved) == 12 and one[0] > one[-1]
    assert np.allclose(one, two, rtol=1e-4, atol=0) and np.allclose(one, moved, rtol=1e-4, atol=0)
    val = [
        r["val/loss"]
        for n in "ab"
        for r in read_rows(*(tmp_path / n).glob("*/metrics.jsonl"))
        if "val/loss" in r
    ]
    assert len(val) == 6 and np.allclose(val[:3], val[3:], rtol=1e-4, atol=0)
    assert weights(tmp_path / "a").keys() == weights(tmp_path / "b").keys()


def test_an_llm_that_is_trained_is_not_sharded(tmp_path, toy):
    runner = runner_of(tmp_path, toy)
    with pytest.raises(InputError, match=r"shards a frozen LLM, but this LLM is trained"):
        layers = runner.model.decoder_layers()
        sharding.shard_frozen(runner.model, layers, torch.device("cpu"), 2)
    assert sharding.shard_frozen(runner.model, layers, torch.device("cpu"), 1) == 0


@pytest.mark.slow
def test_another_number_of_samples_in_a_step_is_refused(tmp_path, toy):
    runner_of(tmp_path, toy).train()
    resume = f"run.resume_ckpt_path={tmp_path / 'out'}"
    with pytest.raises(
        WeightsError, match=r"saved with 8 samples per step .* but this run has 4; make them"
    ):
        runner_of(tmp_path, toy, resume, "run.batch_size_train=4").train()
    two = ("run.batch_size_train=4", "run.accum_grad_iters=2", "run.max_steps=7")
    again = runner_of(tmp_path, toy, resume, *two)
    again.train()
    assert again.step == 7


@pytest.mark.slow
def test_versions_and_config_lie_in_every_run_and_checkpoint(tmp_path, toy):
    runner = runner_of(tmp_path, toy)
    runner.train()
    for folder in (runner.run_folder, checkpoint.find_checkpoint(runner.run_folder)):
        assert "num_queries: 4" in (folder / "config.yaml").read_text()
        installed = json.loads((folder / "versions.json").read_text())["torch"]
        assert torch.__version__.startswith(installed)


def _ignores_signals() -> None:
    """A worker that is busy, and that no signal but SIGKILL ends."""
    ignore_in_worker(0)
    time.sleep(600)


def test_a_worker_that_ignores_signals_does_not_keep_the_program_from_ending(monkeypatch):
    monkeypatch.setattr(signals, "_PATIENCE", 0.2)
    older = multiprocessing.Process(target=time.sleep, args=(600,), daemon=True)
    older.start()
    with signals.ended_workers():
        worker = multiprocessing.Process(target=_ignores_signals, daemon=True)
        worker.start()
        time.sleep(0.2)
        worker.terminate()
        worker.join(timeout=0.2)
        assert worker.is_alive()
    assert worker.exitcode == -signal.SIGKILL
    assert older.is_alive()  # it was there before
    older.kill()
    older.join()
