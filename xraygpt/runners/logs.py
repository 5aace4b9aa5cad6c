"""Logs for a run: package versions, metrics.jsonl, TensorBoard and the loss plot."""

from __future__ import annotations

import json
import os
import platform
import secrets
import subprocess
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.version import __version__

PACKAGES = ("torch", "transformers", "timm", "accelerate", "peft", "safetensors", "omegaconf")


def new_run_folder(output_dir: Path) -> Path:
    """Return a new path, ``<output_dir>/<date>-<time>-<random id>``; names sort by time."""
    return output_dir / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def versions() -> dict[str, Any]:
    """Return this process's package versions, git revision and machine architecture."""
    return dict(_versions())


@cache  # cached because the code in memory stays the same whatever happens to the files
def _versions() -> dict[str, str]:
    result = {"python": platform.python_version(), "xraygpt": __version__}
    for name in PACKAGES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {**result, "git": _git_revision(), "machine": platform.machine()}


def facts(device: Any) -> dict[str, str]:
    """Return the date, machine, device and versions as text, for the result page."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory:.0f} GiB"
    result = {k: str(v) for k, v in versions().items() if k != "machine"}
    return {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "machine": machine,
        "device": str(device),
        **result,
    }


def _git_revision() -> str:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


class MetricsLog:
    """Appends rows to metrics.jsonl and TensorBoard; plots the losses at the end.

    Args:
        run: The run folder.
        first_step: The step to start from; later rows, which a killed run left, are removed.
        enabled: Whether to write; False on every process except the main process.
    """

    def __init__(self, run: Path, first_step: int, enabled: bool) -> None:
        self.run, self.path, self.enabled = run, run / "metrics.jsonl", enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter

        self._remove_after(first_step)
        self.board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def _remove_after(self, step: int) -> None:
        rows = [r for r in read_rows(self.path) if r["step"] <= step]
        write_text_atomic(self.path, "".join(json.dumps(r) + "\n" for r in rows))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Append a row of values, e.g. ``{"train/loss": 1.2}``."""
        if not self.enabled:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Close TensorBoard and write loss.png."""
        if self.enabled:
            self.board.close()
            plot_losses(read_rows(self.path), self.run / "loss.png")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows in a metrics.jsonl, up to a line that was cut off when the run was killed."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def plot_losses(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the training loss, its mean over ten rows, and both validation losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4))
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.13, top=0.96)
    axes = figure.add_subplot(xlabel="step", ylabel="nats per token")
    for name in ("train/loss", "val/loss", "val/loss_shuffled"):
        points = [(r["step"], r[name]) for r in rows if name in r]
        if not points:
            continue
        steps, values = ([p[i] for p in points] for i in (0, 1))
        if name == "train/loss":
            axes.plot(steps, values, color="C0", alpha=0.25)
            windows = [values[max(i - 9, 0) : i + 1] for i in range(len(values))]
            values = [sum(w) / len(w) for w in windows]
        axes.plot(steps, values, label=name, marker="." if "val" in name else "")
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
