"""Samples per second in training, against the training of the original XrayGPT.

    python benchmarks/training.py --case llm
    python benchmarks/training.py --case encoder
    python benchmarks/training.py --case qformer

The original is re-created from our own parts with all optimisations off: the vision encoder and the
Q-Former run in every step, rows are padded to the longest, and logits of the full vocabulary are
computed at all tokens. A third side is transformers' own BLIP-2 with the same weights. All sides
process the same batches in turn, in one process, in float32; their losses are compared. Our side is
measured with encoding (epoch one) and without (later epochs); the latter also in bfloat16 (for CPUs
that support it), with compiled layers (`run.compile`, also for BLIP-2), and with both. The bound is
the ratio of the counted operations. Reports are from IU X-ray's train split (XRAYGPT_DATA); encoder
and Q-Former have random weights, SmolLM2 its published ones. Peak memory is measured in one process
per side (--memory).
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blip2_peer import blip2_of, inputs_of
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from xraygpt.common import memory
from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import Collator
from xraygpt.experiment import Training, build_model
from xraygpt.prompting.renderer import IGNORE_INDEX
from xraygpt.runners import compiling

log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[1]
CASES = {
    "llm": [],
    "encoder": ["model.vit_model=timm/vit_base_patch14_dinov2", "model.image_size=518"],
    "qformer": ["model.freeze_qformer=false", "model.qformer.dropout=0"],
}
SIDES = ("theirs", "blip2", "first", "later", "bf16", "compiled", "both", "blip2_compiled")
NAMES = {
    "first": "epoch one",
    "later": "later epochs",
    "bf16": "later epochs in bfloat16",
    "compiled": "later epochs, compiled",
    "both": "later epochs in bfloat16, compiled",
}
IN_BFLOAT16, COMPILED = ("bf16", "both"), ("blip2_compiled", "compiled", "both")
MEMORY_LABELS = {
    "theirs": "original",
    "blip2": "BLIP-2",
    "later": "ours",
    "compiled": "ours compiled",
}


@dataclass
class Side:
    """Measurements of one side."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    flops: float = 0.0


class Bench:
    """A model, its batches, and a training step of each side."""

    def __init__(self, case: str, batch_size: int, batches: int) -> None:
        experiment = load(Training, ROOT / "benchmarks" / "training.yaml", CASES[case])
        self.model: Any = build_model(experiment, 0).train()
        (corpus,) = experiment.datasets.values()
        data = corpus.build(image_spec=self.model.image_spec, seed=0).build("train")
        collate = Collator(
            self.model.renderer, self.model.media_collator, max_len=self.model.context_len
        )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        rows = [order[i * batch_size : (i + 1) * batch_size] for i in range(batches)]
        self.batches = [collate([data[i] for i in row]) for row in rows]
        self.model.start_caching_queries()
        self.features = [
            {"features": self.model.encode_frozen(b["media_inputs"]["pixel_values"])}
            for b in self.batches
        ]
        self.model.llm.config.use_cache = (
            False  # otherwise BLIP-2 caches keys and values in training
        )
        self.blip2 = blip2_of(self.model)
        self.trained = [p for _, p in self.model.trainable_parameters()]
        self.sides = list(SIDES)
        try:
            compiling.compile_layers(self.model.decoder_layers(), torch.device("cpu"))
        except InputError as error:  # no compiler on this machine
            log.warning("%s: not measured", error)
            self.sides = [s for s in SIDES if s not in COMPILED]
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0)  # weights stay the same

    def loss(self, side: str, number: int) -> Tensor:
        """Mean loss per target token of batch `number`."""
        batch = self.batches[number]
        if side in ("later", "bf16", "compiled", "both"):
            batch = {**batch, "media_inputs": self.features[number]}
        if side == "theirs":
            return self._original_loss(batch)
        if side.startswith("blip2"):
            return self.blip2(**inputs_of(self.blip2, batch), labels=batch["labels"]).loss
        with torch.autocast("cpu", torch.bfloat16, enabled=side in IN_BFLOAT16):
            output = self.model(batch)
        return output.loss / output.num_targets.sum()

    def _original_loss(self, batch: Batch) -> Tensor:
        output = self.model.llm(
            inputs_embeds=self.model.embed(batch),
            attention_mask=batch["attention_mask"],
            use_cache=False,
        )
        logits = output.logits[:, :-1].float()
        targets = batch["labels"][:, 1:]
        return functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX
        )

    def step(self, side: str, number: int) -> float:
        """Forward pass, backward pass and update; returns the loss."""
        with nullcontext() if side in COMPILED else compiling.uncompiled():
            loss = self.loss(side, number)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def measure(bench: Bench, rounds: int) -> dict[str, Side]:
    """Run all sides in turn over all batches."""
    sides = {name: Side() for name in bench.sides}
    for name, side in sides.items():  # warm up and count operations
        counter = FlopCounterMode(display=False)
        with nullcontext() if name in COMPILED else counter:
            for number in range(len(bench.batches)):
                bench.step(name, number)
        # Operations of compiled layers cannot be counted, but are the same as without compilation.
        uncompiled = "blip2" if name.startswith("blip2") else "later"
        side.flops = (
            sides[uncompiled].flops if name in COMPILED else float(counter.get_total_flops())
        )
    for _ in range(rounds):
        for number in range(len(bench.batches)):
            for name, side in sides.items():
                start = time.perf_counter()
                side.losses.append(bench.step(name, number))
                side.seconds.append(time.perf_counter() - start)
    return sides


def measure_memory(
    case: str, batch_size: int, batches: int, sides: Iterable[str]
) -> dict[str, float]:
    """Peak memory in GiB of a process that runs only one side, by side."""
    peaks = {}
    for side in MEMORY_LABELS.keys() & set(sides):
        command = [sys.executable, __file__, "--case", case, "--memory", side]
        command += ["--batch", str(batch_size), "--batches", str(batches)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[side] = float(result.stdout.split()[-1])
    return peaks


def main() -> None:
    """Run the benchmark, print the results and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="llm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory", choices=MEMORY_LABELS, help="run only this side and print its peak memory"
    )
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    bench = Bench(args.case, args.batch, args.batches)
    if args.memory:
        memory.release_freed_memory()
        memory.reset_peak(torch.device("cpu"))  # exclude the peak of loading
        for number in range(args.batches):
            bench.step(args.memory, number)
        print(memory.peak_bytes(torch.device("cpu")) / 2**30)
        return
    sides = measure(bench, args.rounds)
    peaks = measure_memory(args.case, args.batch, args.batches, sides)
    row = summarize(args.case, args.batch, sides, peaks)
    print(to_text(row))
    if args.out:
        args.out.write_text(json.dumps(row, indent=1), encoding="utf-8")


def summarize(
    case: str, batch: int, sides: dict[str, Side], peaks: dict[str, float]
) -> dict[str, Any]:
    """Speed-ups with their bounds, seconds per step, memory, and differences of losses."""
    theirs, blip2 = sides["theirs"], sides["blip2"]
    row: dict[str, Any] = {"case": case, "batch": batch, "GiB": peaks}
    for name in NAMES.keys() & sides.keys():
        ours = sides[name]
        ratios = [a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4)
        peer = sides["blip2_compiled"] if name in COMPILED else blip2
        row[name] = {
            "times": statistics.median(ratios),
            "quartiles": [low, high],
            "bound": theirs.flops / ours.flops,
            "seconds": statistics.median(ours.seconds),
            "against_blip2": statistics.median(peer.seconds) / statistics.median(ours.seconds),
            "loss_apart": max_loss_difference(theirs, ours),
        }
    row["theirs_seconds"] = statistics.median(theirs.seconds)
    row["blip2"] = {
        "seconds": statistics.median(blip2.seconds),
        "bound": blip2.flops / sides["later"].flops,
        "loss_apart": max_loss_difference(theirs, blip2),
    }
    return row


def max_loss_difference(side: Side, other: Side) -> float:
    """Largest difference between the losses of the same batches."""
    return max(abs(a - b) for a, b in zip(side.losses, other.losses, strict=True))


def to_text(row: dict[str, Any]) -> str:
    """The results as text."""
    seconds = row["theirs_seconds"]
    lines = [f"{row['case']}, batch {row['batch']}: {seconds:.2f} s per step of the original"]
    lines.append(
        f"transformers' BLIP-2: {row['blip2']['seconds']:.2f} s; losses differ by "
        f"at most {row['blip2']['loss_apart']:.1e}"
    )
    for name, label in NAMES.items():
        if name not in row:
            continue
        result = row[name]
        low, high = result["quartiles"]
        lines.append(
            f"{label}: {result['seconds']:.2f} s, {result['times']:.2f} times as fast "
            f"({low:.2f}–{high:.2f}), {result['against_blip2']:.2f} times as fast as BLIP-2"
            f"{' compiled' if name in COMPILED else ''}; the bound by counted operations is "
            f"{result['bound']:.2f}, of which {result['times'] / result['bound']:.0%} is reached; "
            f"losses differ by at most {result['loss_apart']:.1e}"
        )
    gib = row["GiB"]
    peaks = [f"{label} {gib[side]:.2f}" for side, label in MEMORY_LABELS.items() if side in gib]
    lines.append(f"peak memory, GiB: {', '.join(peaks)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_main(main))
