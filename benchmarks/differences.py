"""Numerical effect of each optimisation: differences of loss and gradients with and without it.

    python benchmarks/differences.py [--batch 4]

The model is `mini` with LoRA and a trained Q-Former, on reports of IU X-ray's train split
(XRAYGPT_DATA), in float32 without dropout. The reference encodes pixels, pads rows to the longest
and computes all logits. Each optimisation is then enabled alone. The difference of gradients is the
norm of the difference over all trained weights, relative to the norm of the reference gradient. The
effect of `draft` on a JPEG is relative to the range of its processed values.
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
from images import SPEC, write_pictures
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
    """A model and a batch, and their loss and gradients."""

    def __init__(self, batch_size: int) -> None:
        experiment = load(Training, ROOT / "benchmarks" / "training.yaml", OPTIONS)
        self.model: Any = build_model(experiment, 0).train()
        with torch.no_grad():  # LoRA is initialised at zero and would have no effect
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

    def loss_and_gradients(self, batch: Batch, *, optimised: bool) -> Result:
        """Mean loss per target token, and the gradients of all trained weights.

        Args:
            batch: A training batch.
            optimised: Pack rows and compute logits at target tokens only.
        """
        output = self.model(batch, return_logits=not optimised)
        loss = output.loss / output.num_targets.sum()
        loss.backward()
        trained = self.model.trainable_parameters()
        gradients = {n: p.grad for n, p in trained if p.grad is not None}
        self.model.zero_grad(set_to_none=True)
        return float(loss.detach()), gradients

    def with_features(self, dtype: torch.dtype) -> Batch:
        """The batch with features as the cache provides them."""
        pixels = self.batch["media_inputs"]["pixel_values"]
        features = self.model.encode_frozen(pixels).to(dtype).float()
        return {**self.batch, "media_inputs": {"features": features}}


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """Compute attention without fused kernels."""
    before = model.llm.config._attn_implementation
    model.llm.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.llm.set_attn_implementation(before)


@contextmanager
def recomputed(model: Any) -> Iterator[None]:
    """Enable gradient checkpointing."""
    model.llm.gradient_checkpointing_enable({"use_reentrant": False})
    model.llm.train()
    try:
        yield
    finally:
        model.llm.gradient_checkpointing_disable()


@contextmanager
def compiled(model: Any) -> Iterator[None]:
    """Compile the LLM's layers."""
    compiling.compile_layers(model.decoder_layers(), torch.device("cpu"))
    try:
        yield
    finally:
        compiling.uncompile_layers(model.decoder_layers())


@contextmanager
def unpacked() -> Iterator[None]:
    """Disable packing, so that only the restriction of logits to targets remains."""
    original = answer_loss.plan_packing
    answer_loss.plan_packing = lambda mask, *_: SimpleNamespace(shape=tuple(mask.shape))  # type: ignore
    try:
        yield
    finally:
        answer_loss.plan_packing = original


def difference(reference: Result, result: Result) -> dict[str, float]:
    """Absolute difference of losses and relative difference of gradients.

    Raises:
        InputError: One of the results has a gradient that the other lacks.
    """
    (loss, gradients), (other_loss, other_gradients) = reference, result
    if gradients.keys() != other_gradients.keys():
        unmatched = sorted(gradients.keys() ^ other_gradients.keys())
        raise InputError(f"only one side has a gradient for {unmatched[:3]}")
    before = torch.cat([gradients[name].flatten() for name in sorted(gradients)])
    after = torch.cat([other_gradients[name].flatten() for name in sorted(other_gradients)])
    return {
        "loss": abs(loss - other_loss),
        "gradient": float((before - after).norm() / before.norm()),
    }


def cases(bench: Bench) -> dict[str, Callable[[], dict[str, float]]]:
    """A function for each optimisation that compares it, enabled alone, with the reference."""
    model, batch = bench.model, bench.batch
    reference = bench.loss_and_gradients(batch, optimised=False)

    def compare(
        batch: Batch = batch, optimised: bool = False, context: Any = None
    ) -> dict[str, float]:
        with context or nullcontext():
            result = bench.loss_and_gradients(batch, optimised=optimised)
        return difference(reference, result)

    def compare_cached_queries() -> dict[str, float]:
        model.qformer.requires_grad_(False)
        before = bench.loss_and_gradients(batch, optimised=False)
        model.caches_queries = True
        cached = bench.with_features(torch.float32)
        after = bench.loss_and_gradients(cached, optimised=False)
        model.caches_queries = False
        model.qformer.requires_grad_(True)
        return difference(before, after)

    return {
        "rows packed, answers' logits alone": lambda: compare(optimised=True),
        "answers' logits alone": lambda: compare(optimised=True, context=unpacked()),
        "stored features": lambda: compare(bench.with_features(torch.float32)),
        "stored features in float16": lambda: compare(bench.with_features(torch.float16)),
        "stored query tokens (Q-Former frozen)": compare_cached_queries,
        "gradient checkpointing": lambda: compare(context=recomputed(model)),
        "fused attention, against eager": lambda: compare(context=eager(model)),
        "layers compiled": lambda: compare(context=compiled(model)),
        "bfloat16 (amp: bf16)": lambda: compare(context=torch.autocast("cpu", torch.bfloat16)),
    }


def draft_difference() -> float:
    """Mean difference between a JPEG read in full and with `draft`, relative to the value range."""
    with tempfile.TemporaryDirectory() as folder:
        picture = MediaRef(write_pictures(Path(folder))["JPEG"])
        full, draft = (
            read_media(picture, "", XrayImage.Config(draft=draft).build(image_spec=SPEC)).data
            for draft in (False, True)
        )
    return float((full - draft).abs().mean() / (full.max() - full.min()))


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    bench = Bench(args.batch)
    rows = {}
    print("| optimisation | loss | gradient |\n|---|---|---|")
    for name, measure in cases(bench).items():
        rows[name] = row = measure()
        print(f"| {name} | {row['loss']:.1e} | {row['gradient']:.1e} |", flush=True)
    print(
        f"| JPEG of 2,000 × 2,400 read with `draft`, mean of pixels | {draft_difference():.1e} | |"
    )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
