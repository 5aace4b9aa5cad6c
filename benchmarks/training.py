"""Samples a second in training, against the path the lineage's authors wrote.

    python benchmarks/training.py --case llm
    python benchmarks/training.py --case encoder
    python benchmarks/training.py --case qformer

The other side is theirs, re-created from our own parts with every saving switched off: the vision
encoder and the Q-Former run in every step, rows are padded to the longest, and logits of the whole
vocabulary are computed everywhere. A third side is transformers' own BLIP-2 with the same weights.
All sides take the same batches in turn, in one process, in float32; their losses are compared.
Epoch one is our side with encoding, later epochs without, and those once more in bfloat16 (for CPUs
that have it), with compiled layers (`run.compile`; BLIP-2's as well), and with both. The bound is
what the counted operations of both sides would allow. Reports are IU X-ray's train split
(XRAYGPT_DATA); weights of encoder and Q-Former are random, SmolLM2's are its own. Peak memory is
that of one process for each side (--memory).
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
HELD = {"theirs": "before", "blip2": "BLIP-2", "later": "ours", "compiled": "ours compiled"}


@dataclass
class Side:
    """What one side took."""

    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    flops: float = 0.0


class Bench:
    """A model, its batches, and a step of either side."""

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
        self.stored = [
            {"features": self.model.encode_frozen(b["media_inputs"]["pixel_values"])}
            for b in self.batches
        ]
        self.model.llm.config.use_cache = False  # or BLIP-2 would keep keys and values in training
        self.blip2 = blip2_of(self.model)
        self.trained = [p for _, p in self.model.trainable_parameters()]
        self.sides = list(SIDES)
        try:
            compiling.compile_layers(self.model.decoder_layers(), torch.device("cpu"))
        except InputError as error:  # no compiler here
            log.warning("%s: not measured", error)
            self.sides = [s for s in SIDES if s not in COMPILED]
        self.optimizer = torch.optim.AdamW(self.trained, lr=0.0)  # equal weights in every step

    def loss(self, side: str, number: int) -> Tensor:
        """Mean loss per target token of one batch."""
        batch = self.batches[number]
        if side in ("later", "bf16", "compiled", "both"):
            batch = {**batch, "media_inputs": self.stored[number]}
        if side == "theirs":
            return self._theirs(batch)
        if side.startswith("blip2"):
            return self.blip2(**inputs_of(self.blip2, batch), labels=batch["labels"]).loss
        with torch.autocast("cpu", torch.bfloat16, enabled=side in IN_BFLOAT16):
            output = self.model(batch)
        return output.loss / output.num_targets.sum()

    def _theirs(self, batch: Batch) -> Tensor:
        out = self.model.llm(
            inputs_embeds=self.model.embed(batch),
            attention_mask=batch["attention_mask"],
            use_cache=False,
        )
        logits = out.logits[:, :-1].float()
        targets = batch["labels"][:, 1:]
        return functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX
        )

    def step(self, side: str, number: int) -> float:
        """Forward, backward, update."""
        with nullcontext() if side in COMPILED else compiling.uncompiled():
            loss = self.loss(side, number)
            loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())


def measured(bench: Bench, rounds: int) -> dict[str, Side]:
    """All sides in turn over all batches."""
    sides = {name: Side() for name in bench.sides}
    for name, side in sides.items():  # warm up, and count
        counter = FlopCounterMode(display=False)
        with nullcontext() if name in COMPILED else counter:
            for number in range(len(bench.batches)):
                bench.step(name, number)
        # A compiled layer is no operation that could be counted, and does the same products.
        same = "blip2" if name.startswith("blip2") else "later"
        side.flops = sides[same].flops if name in COMPILED else float(counter.get_total_flops())
    for _ in range(rounds):
        for number in range(len(bench.batches)):
            for name, side in sides.items():
                began = time.perf_counter()
                side.losses.append(bench.step(name, number))
                side.seconds.append(time.perf_counter() - began)
    return sides


def peak(case: str, batch_size: int, batches: int, sides: Iterable[str]) -> dict[str, float]:
    """GiB of a process that takes one side alone."""
    found = {}
    for side in HELD.keys() & set(sides):
        command = [sys.executable, __file__, "--case", case, "--memory", side]
        command += ["--batch", str(batch_size), "--batches", str(batches)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[side] = float(done.stdout.split()[-1])
    return found


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, default="llm")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", choices=HELD, help="that side alone, its peak")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    bench = Bench(given.case, given.batch, given.batches)
    if given.memory:
        memory.release_freed_memory()
        memory.reset_peak(torch.device("cpu"))  # what loading took
        for number in range(given.batches):
            bench.step(given.memory, number)
        print(memory.peak_bytes(torch.device("cpu")) / 2**30)
        return
    sides = measured(bench, given.rounds)
    held = peak(given.case, given.batch, given.batches, sides)
    row = summary(given.case, given.batch, sides, held)
    print(text_of(row))
    if given.out:
        given.out.write_text(json.dumps(row, indent=1), encoding="utf-8")


def summary(
    case: str, batch: int, sides: dict[str, Side], memory: dict[str, float]
) -> dict[str, Any]:
    """Ratios of the medians, what counting allows, and how far the losses are apart."""
    theirs, blip2 = sides["theirs"], sides["blip2"]
    row: dict[str, Any] = {"case": case, "batch": batch, "GiB": memory}
    for name in NAMES.keys() & sides.keys():
        ours = sides[name]
        each = [a / b for a, b in zip(theirs.seconds, ours.seconds, strict=True)]
        quarter = statistics.quantiles(each, n=4)
        peer = sides["blip2_compiled"] if name in COMPILED else blip2
        row[name] = {
            "times": statistics.median(each),
            "quartiles": [quarter[0], quarter[2]],
            "bound": theirs.flops / ours.flops,
            "seconds": statistics.median(ours.seconds),
            "against_blip2": statistics.median(peer.seconds) / statistics.median(ours.seconds),
            "loss_apart": apart(theirs, ours),
        }
    row["theirs_seconds"] = statistics.median(theirs.seconds)
    row["blip2"] = {
        "seconds": statistics.median(blip2.seconds),
        "bound": blip2.flops / sides["later"].flops,
        "loss_apart": apart(theirs, blip2),
    }
    return row


def apart(one: Side, other: Side) -> float:
    """The greatest difference of losses of the same batches."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def text_of(row: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{row['case']}, batch {row['batch']}: {row['theirs_seconds']:.2f} s a step before"]
    lines.append(
        f"transformers' BLIP-2: {row['blip2']['seconds']:.2f} s; losses at most "
        f"{row['blip2']['loss_apart']:.1e} apart"
    )
    for name, label in NAMES.items():
        if name not in row:
            continue
        one = row[name]
        low, high = one["quartiles"]
        lines.append(
            f"{label}: {one['seconds']:.2f} s, {one['times']:.2f} times ({low:.2f}–{high:.2f}), "
            f"{one['against_blip2']:.2f} times as fast as BLIP-2"
            f"{' compiled' if name in COMPILED else ''}; "
            f"counted operations allow {one['bound']:.2f}, so {one['times'] / one['bound']:.0%} of "
            f"it; losses at most {one['loss_apart']:.1e} apart"
        )
    held = [f"{label} {row['GiB'][s]:.2f}" for s, label in HELD.items() if s in row["GiB"]]
    lines.append(f"peak memory, GiB: {', '.join(held)}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_main(main))
