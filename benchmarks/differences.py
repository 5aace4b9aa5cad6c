"""What each saving changes: greatest difference of losses and gradients, with it and without.

    python benchmarks/differences.py [--batch 4]

The model is `mini` with LoRA and a trained Q-Former on reports of IU X-ray's train split
(XRAYGPT_DATA), in float32 without dropout. The reference encodes pixels, pads rows to the longest
and computes all logits. Each saving is then put on alone. A gradient's difference is the norm of
the difference of all that is trained, in parts of the norm. What `draft` does to a JPEG is said in
parts of the range of grey.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from images import SPEC, films
from torch import Tensor
from training import ROOT

from xraygpt.common.cli import run_main
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Batch, read_media
from xraygpt.datasets.collate import Collator
from xraygpt.experiment import Training, build_model
from xraygpt.media.base import MediaRef
from xraygpt.models.llm import answer_loss
from xraygpt.processors.image import XrayImage
from xraygpt.runners import compiling

OPTIONS = [
    "model.freeze_qformer=false",
    "model.qformer.dropout=0",
    "model.lora={r: 8, alpha: 16, target: [q_proj, k_proj, v_proj, o_proj]}",
]
Result = tuple[float, dict[str, Tensor]]


class Bench:
    """A model, a batch, and its loss and gradients."""

    def __init__(self, batch_size: int) -> None:
        experiment = load(Training, ROOT / "benchmarks" / "training.yaml", OPTIONS)
        self.model: Any = build_model(experiment, 0).train()
        with torch.no_grad():  # LoRA begins at zero: let it count
            for name, parameter in self.model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.02)
        (corpus,) = experiment.datasets.values()
        data = corpus.build(image_spec=self.model.image_spec, seed=0).build("train")
        collate = Collator(
            self.model.renderer, self.model.media_collator, max_len=self.model.context_len
        )
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0)).tolist()
        samples = [data[i] for i in order[:batch_size]]
        self.batch: Batch = collate(samples)

    def result(self, batch: Batch, *, saving: bool) -> Result:
        """Mean loss of an answer's token, and the gradient of all that is trained.

        Args:
            batch: Images and rows.
            saving: Whether rows are packed and logits taken at answers alone.
        """
        output = self.model(batch, return_logits=not saving)
        loss = output.loss / output.num_targets.sum()
        loss.backward()
        found = {n: p.grad for n, p in self.model.trainable_parameters() if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach()), found

    def with_features(self, dtype: torch.dtype) -> Batch:
        """The batch as the feature cache gives it."""
        pixels = self.batch["media_inputs"]["pixel_values"]
        features = self.model.encode_frozen(pixels).to(dtype).float()
        return {**self.batch, "media_inputs": {"features": features}}


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Attention in plain operations."""
    before = model.llm.config._attn_implementation
    model.llm.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.llm.set_attn_implementation(before)


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Gradient checkpointing."""
    model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    model.llm.train()
    try:
        yield
    finally:
        model.llm.gradient_checkpointing_disable()


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """The LLM's layers compiled."""
    compiling.compile_layers(model.decoder_layers(), torch.device("cpu"))
    try:
        yield
    finally:
        compiling.uncompile_layers(model.decoder_layers())


@contextmanager
def unpacked() -> Iterator[None]:
    """Answers' logits alone, rows as they are padded."""
    whole = answer_loss.plan_packing
    answer_loss.plan_packing = lambda mask, *_: SimpleNamespace(shape=tuple(mask.shape))  # type: ignore
    try:
        yield
    finally:
        answer_loss.plan_packing = whole


def apart(one: Result, other: Result) -> dict[str, float]:
    """Differences of loss and of gradients."""
    if one[1].keys() != other[1].keys():
        raise InputError(f"no gradient for {sorted(one[1].keys() ^ other[1].keys())[:3]}")
    before, after = (torch.cat([r[1][n].flatten() for n in sorted(r[1])]) for r in (one, other))
    return {
        "loss": abs(one[0] - other[0]),
        "gradient": float((before - after).norm() / before.norm()),
    }


def cases(bench: Bench) -> dict[str, Callable[[], dict[str, float]]]:
    """Each saving, on alone against the reference."""
    model, batch = bench.model, bench.batch
    reference = bench.result(batch, saving=False)

    def against(batch: Batch = batch, saving: bool = False, within: Any = None) -> dict[str, float]:
        with within or nullcontext():
            return apart(reference, bench.result(batch, saving=saving))

    def queries() -> dict[str, float]:
        model.qformer.requires_grad_(False)
        before = bench.result(batch, saving=False)
        model.caches_queries = True
        after = bench.result(bench.with_features(torch.float32), saving=False)
        model.caches_queries = False
        model.qformer.requires_grad_(True)
        return apart(before, after)

    return {
        "rows packed, answers' logits alone": lambda: against(saving=True),
        "answers' logits alone": lambda: against(saving=True, within=unpacked()),
        "stored features": lambda: against(bench.with_features(torch.float32)),
        "stored features in float16": lambda: against(bench.with_features(torch.float16)),
        "stored query tokens (Q-Former frozen)": queries,
        "gradient checkpointing": lambda: against(within=recomputed(model)),
        "fused attention, against eager": lambda: against(within=eager(model)),
        "layers compiled": lambda: against(within=compiled(model)),
        "bfloat16 (amp: bf16)": lambda: against(within=torch.autocast("cpu", torch.bfloat16)),
    }


def draft() -> float:
    """Mean difference of a SYNTHETIC film's tensor read whole and read by `draft`, in its range."""
    with tempfile.TemporaryDirectory() as folder:
        film = MediaRef(films(Path(folder))["JPEG"])
        whole, less = (
            read_media(film, "", XrayImage.Config(draft=d).build(image_spec=SPEC))
            for d in (False, True)
        )
    return float((whole - less).abs().mean() / (whole.max() - whole.min()))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    bench = Bench(given.batch)
    rows = {}
    print("| saving | loss | gradient |\n|---|---|---|")
    for name, measure in cases(bench).items():
        rows[name] = row = measure()
        print(f"| {name} | {row['loss']:.1e} | {row['gradient']:.1e} |", flush=True)
    print(f"| JPEG of 2,000 × 2,400 read by `draft`, mean of pixels | {draft():.1e} | |")
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
