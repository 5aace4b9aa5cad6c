"""Kill training runs with SIGKILL and compare what comes of them."""

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
    """Equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def finish(command: list[str], env: dict[str, str], cold: bool = False) -> None:
    """Run to the end, which must be a good one."""
    start = subprocess.run if cold else processes.run
    done = start(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def last_step(folder: Path) -> int:
    """The last step that a run under `folder` has logged."""
    rows = [r for p in folder.glob("*/metrics.jsonl") for r in read_rows(p)]
    return max((r["step"] for r in rows), default=0)


def wait_for_step(folder: Path, step: int, seconds: float = 300) -> None:
    """Until some run under `folder` has logged `step`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if last_step(folder) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run never got there")


POINTS = ("gradients", "saving", "saved")
KILL_AT = """
import os, runpy, signal, sys
import torch
from xraygpt.common import checkpoint
from xraygpt.runners import state
from xraygpt.runners.train_loop import Runner

point, number = sys.argv[1], int(sys.argv[2])
sys.argv = sys.argv[3:]
at = -1

def last_deed(original):
    def done(*args, **how):
        result = original(*args, **how)
        if at == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return done

def noted(name, by):
    original = getattr(Runner, name)
    def done(self, *args):
        global at
        at = self.step + by
        try:
            return original(self, *args)
        finally:
            at = -1
    setattr(Runner, name, done)

owner, name = {
    "gradients": (torch.Tensor, "backward"),
    "saving": (state, "write_state"),
    "saved": (checkpoint, "publish"),
}[point]
setattr(owner, name, last_deed(getattr(owner, name)))
noted("_step", 1) if point == "gradients" else noted("save", 0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def killed_at(point: str, step: int, command: list[str], env: dict[str, str]) -> None:
    """Run until SIGKILL at a point of `step`.

    Args:
        point: ``gradients``: those of a micro-batch are there, no weight has changed yet;
            ``saving``: its files are written, nothing is renamed; ``saved``: the checkpoint is
            published, neither noted as the best nor has an older one gone.
        step: Counted from one; for the last two points one that saves.
        command: Python, ``train.py`` and its arguments.
        env: Its environment.
    """
    line = [command[0], "-c", KILL_AT, point, str(step), *command[1:]]
    env = {**env, "PYTHONPATH": str(REPO)}
    done = processes.run(line, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, (point, done.stderr[-3000:])


def kill_and_finish(
    command: list[str], folder: Path, env: dict[str, str], steps: tuple[int, int, int], reach: int
) -> int:
    """SIGKILL at each of `POINTS`, then after a random step up to `reach`; then to the end.

    `command` must log every step and resume by itself (`run.resume_ckpt_path=auto`).

    Returns:
        The random step.
    """
    for point, step in zip(POINTS, steps, strict=True):
        killed_at(point, step, command, env)
    drawn = random.Random().randint(last_step(folder) + 1, reach)
    running = processes.Popen(command, cwd=REPO, env=env, stderr=subprocess.DEVNULL)
    try:
        wait_for_step(folder, drawn)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert running.returncode == -signal.SIGKILL, drawn  # it was not through before
    finish(command, env)
    saved = [run for run in folder.iterdir() if checkpoint.has_checkpoint(run)]
    assert len(saved) == 1, drawn  # a run killed before its first save starts anew; no other does
    return drawn
