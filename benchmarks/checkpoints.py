"""Checkpoints of a run against saving the full model, as XrayGPT's original does: time and size.

    python benchmarks/checkpoints.py [--rounds 5]

The model is `mini` with LoRA. Our checkpoint contains the trained weights in safetensors and the
state of optimizer and random generators; it is written to a temporary folder, hashed and renamed.
The other is one `torch.save` of all weights and the optimizer. Both are written and read in turn,
in one process.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from xraygpt.common import checkpoint
from xraygpt.common.config import load
from xraygpt.experiment import Training, build_model
from xraygpt.runners import state

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = [
    "model.freeze_qformer=false",
    "model.lora={r: 16, target: [q_proj, k_proj, v_proj, o_proj]}",
]


def optimizer_with_state(model: Any) -> torch.optim.Optimizer:
    """An optimizer after its first step, which creates its state."""
    trained = [p for _, p in model.trainable_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def time_call(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    model = build_model(load(Training, ROOT / "benchmarks" / "training.yaml", OPTIONS), 0)
    optimizer = optimizer_with_state(model)
    times: dict[str, list[float]] = {}
    for number in range(args.rounds + 1):  # the first round warms up
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = Path(folder) / "run", Path(folder) / "all.pt"
            facts = {"optimizer": optimizer.state_dict(), "rng": [state.rng_state()]}

            def write(folder: Path, facts: dict[str, Any] = facts) -> None:
                state.write_state(folder, model, facts, "", "{}")

            def save_all(path: Path = theirs) -> None:
                full_state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(full_state, path)

            def load_ours(run: Path = ours) -> None:
                state.load_weights(model, run)
                state.read_state(checkpoint.find_checkpoint(run), 1)

            def load_all(path: Path = theirs) -> None:
                model.load_state_dict(torch.load(path, weights_only=True)["model"])

            seconds = {
                "save": time_call(
                    lambda run=ours, write=write: checkpoint.save_checkpoint(run, 1, write)
                ),
                "save all": time_call(save_all),
                "load": time_call(load_ours),
                "load all": time_call(load_all),
            }
            sizes = [sum(p.stat().st_size for p in ours.rglob("*") if p.is_file())]
            sizes.append(theirs.stat().st_size)
            shutil.rmtree(ours)
        if number:
            for name, value in seconds.items():
                times.setdefault(name, []).append(value)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name in ("save", "load"):
        ours_seconds, full_seconds = medians[name], medians[f"{name} all"]
        print(
            f"{name}: {ours_seconds:.2f} s, full model {full_seconds:.2f} s: "
            f"{full_seconds / ours_seconds:.1f} times"
        )
    print(f"{sizes[0] / 2**20:.0f} MiB, full model {sizes[1] / 2**20:.0f} MiB")
    if args.out:
        args.out.write_text(json.dumps({**times, "bytes": sizes}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
