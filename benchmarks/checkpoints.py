"""Checkpoints of a run against saving the whole model, as the lineage does: seconds and size.

    python benchmarks/checkpoints.py [--rounds 5]

The model is `mini` with LoRA. Ours holds what was trained, in safetensors, with the state of the
optimizer and the generators, written aside, hashed and renamed; theirs is one `torch.save` of all
weights and the optimizer. Both are read back. They take turns in one process.
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


def stepped(model: Any) -> torch.optim.Optimizer:
    """An optimizer that has its state."""
    trained = [p for _, p in model.trainable_parameters()]
    optimizer = torch.optim.AdamW(trained, lr=0.0)
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return optimizer


def timed(work: Callable[[], Any]) -> float:
    """Seconds."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    model = build_model(load(Training, ROOT / "benchmarks" / "training.yaml", OPTIONS), 0)
    optimizer = stepped(model)
    taken: dict[str, list[float]] = {}
    for number in range(given.rounds + 1):  # the first warms up
        with tempfile.TemporaryDirectory() as name:
            ours, theirs = Path(name) / "run", Path(name) / "all.pt"
            facts = {"optimizer": optimizer.state_dict(), "rng": [state.rng_state()]}

            def write(folder: Path, facts: dict[str, Any] = facts) -> None:
                state.write_state(folder, model, facts, "", "{}")

            def whole(path: Path = theirs) -> None:
                both = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(both, path)

            def again(run: Path = ours) -> None:
                state.load_weights(model, run)
                state.read_state(checkpoint.find_checkpoint(run), 1)

            def whole_again(path: Path = theirs) -> None:
                model.load_state_dict(torch.load(path, weights_only=True)["model"])

            once = {
                "save": timed(
                    lambda run=ours, write=write: checkpoint.save_checkpoint(run, 1, write)
                ),
                "save all": timed(whole),
                "load": timed(again),
                "load all": timed(whole_again),
            }
            sizes = [sum(p.stat().st_size for p in ours.rglob("*") if p.is_file())]
            sizes.append(theirs.stat().st_size)
            shutil.rmtree(ours)
        if number:
            for what, seconds in once.items():
                taken.setdefault(what, []).append(seconds)
    middle = {what: statistics.median(each) for what, each in taken.items()}
    for what in ("save", "load"):
        print(
            f"{what}: {middle[what]:.2f} s, all of it {middle[f'{what} all']:.2f} s: "
            f"{middle[f'{what} all'] / middle[what]:.1f} times"
        )
    print(f"{sizes[0] / 2**20:.0f} MiB, all of it {sizes[1] / 2**20:.0f} MiB")
    if given.out:
        given.out.write_text(json.dumps({**taken, "bytes": sizes}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
