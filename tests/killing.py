"""Kill training runs with SIGKILL and compare what comes of them."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import REPO
from xraygpt.common import checkpoint
from xraygpt.runners.logs import read_rows


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Weights of the newest checkpoint under a folder of runs."""
    return load_file(checkpoint.find_checkpoint(run) / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def finish(command: list[str], env: dict[str, str]) -> None:
    """Run to the end, which must be a good one."""
    done = subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]


def last_step(folder: Path) -> int:
    """The last step that a run under `folder` has logged."""
    rows = [r for p in folder.glob("*/metrics.jsonl") for r in read_rows(p)]
    return max((r["step"] for r in rows), default=0)


def wait_for_step(folder: Path, step: int, seconds: float = 60) -> None:
    """Until some run under `folder` has logged `step`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if last_step(folder) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run never got there")


def kill_thrice_and_finish(
    command: list[str], folder: Path, env: dict[str, str], reach: int
) -> list[int]:
    """SIGKILL after three random steps, each within `reach` of the one before; then to the end.

    `command` must log every step and resume by itself (`run.resume_ckpt_path=auto`).

    Returns:
        The steps.
    """
    rng, low, steps = random.Random(), 1, []
    for _ in range(3):
        steps.append(rng.randint(low, low + reach))
        running = subprocess.Popen(command, cwd=REPO, env=env, stderr=subprocess.DEVNULL)
        try:
            wait_for_step(folder, steps[-1])
        finally:
            running.send_signal(signal.SIGKILL)
            running.wait()
        low = last_step(folder) + 1  # the next kill must not come before its run trains
    finish(command, env)
    saved = [run for run in folder.iterdir() if checkpoint.has_checkpoint(run)]
    assert len(saved) == 1, steps  # a run killed before its first save starts anew; no other does
    return steps
