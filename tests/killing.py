"""Kill training runs with SIGKILL and compare their results."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests import processes
from tests.conftest import REPO
from xraygpt.common import checkpoint
from xraygpt.runners.logs import read_rows


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint under a folder of runs."""
    return load_file(checkpoint.find_checkpoint(run) / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether the weights are bit-identical."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def finish(command: list[str], env: dict[str, str], cold: bool = False) -> None:
    """Run a command to the end and check that it succeeds."""
    start = subprocess.run if cold else processes.run
    result = start(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]


def last_step(folder: Path) -> int:
    """The last logged step of the runs under `folder`."""
    rows = [r for p in folder.glob("*/metrics.jsonl") for r in read_rows(p)]
    return max((r["step"] for r in rows), default=0)


def wait_for_step(folder: Path, step: int, seconds: float = 300) -> None:
    """Wait until a run under `folder` has logged `step`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if last_step(folder) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run did not reach this step")


POINTS = ("gradients", "saving", "saved")
KILL_AT = """
import os, runpy, signal, sys
import torch
from xraygpt.common import checkpoint
from xraygpt.runners import state
from xraygpt.runners.train_loop import Runner

point, number = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[3:]
current = -1

def killing_after(original):
    def wrapper(*args, **kwargs):
        result = original(*args, **kwargs)
        if current == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return wrapper

def track_step(name, offset):
    original = getattr(Runner, name)
    def wrapper(self, *args):
        global current
        current = self.step + offset
        try:
            return original(self, *args)
        finally:
            current = -1
    setattr(Runner, name, wrapper)

owner, name = {
    "gradients": (torch.Tensor, "backward"),
    "saving": (state, "write_state"),
    "saved": (checkpoint, "save_checkpoint"),
}[point]
setattr(owner, name, killing_after(getattr(owner, name)))
track_step("_step", 1) if point == "gradients" else track_step("save", 0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed_at(point: str, step: int, command: list[str], env: dict[str, str]) -> None:
    """Run a training until it kills itself at a point of `step`.

    Args:
        point: ``gradients``: after the backward pass of a micro-batch, before weights change;
            ``saving``: after the checkpoint's files are written, before they are renamed;
            ``saved``: after the checkpoint is saved, before the best step is recorded and older
            checkpoints are removed.
        step: Counted from one; for the last two points a step that saves.
        command: Python, ``train.py`` and its arguments.
        env: Environment of the command.
    """
    killed = [command[0], "-c", KILL_AT, point, str(step), *command[1:]]
    env = {**env, "PYTHONPATH": str(REPO)}
    result = processes.run(killed, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert result.returncode == -signal.SIGKILL, (point, result.stderr[-3000:])


def kill_and_finish(
    command: list[str], folder: Path, env: dict[str, str], steps: tuple[int, int, int], reach: int
) -> int:
    """Kill a run at each of `POINTS` and after a random step, then run it to the end.

    Args:
        command: A training that logs every step and resumes (`run.resume_ckpt_path=auto`).
        folder: Its output folder.
        env: Its environment.
        steps: Step at which each of `POINTS` kills it.
        reach: Highest random step.

    Returns:
        The random step.
    """
    for point, step in zip(POINTS, steps, strict=True):
        killed_at(point, step, command, env)
    random_step = random.Random().randint(last_step(folder) + 1, reach)
    running = processes.Popen(command, cwd=REPO, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for_step(folder, random_step)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert running.returncode == -signal.SIGKILL, random_step  # it had not finished before
    finish(command, env)
    runs = [run for run in folder.iterdir() if checkpoint.has_checkpoint(run)]
    assert len(runs) == 1, random_step  # only a run killed before its first save starts over
    return random_step
