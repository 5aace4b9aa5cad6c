"""Tokens per second in training, and the fraction of the hardware's peak operations used.

    python benchmarks/utilisation.py [--shape tiny|mini|vicuna] [--batch 16] [--steps 10]

Weights are random, features are as the cache provides them, and rows have random lengths. Stage 1
trains Q-Former and linear layer on short texts, stage 2 linear layer and LoRA on reports. Per token
of the LLM, 4 operations are counted for each frozen parameter and 6 for each trained one (Chowdhery
et al. 2022, without the weight gradient of frozen parts); the output layer counts at answer tokens
only; attention, padding and recomputation do not count. The sum is divided by `--peak` in TFLOP/s;
without it, by the datasheet of a known card, dense in bfloat16; on other devices, by the speed of a
large matrix product measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from xraygpt.common import memory
from xraygpt.common.cli import run_main
from xraygpt.datasets.base import Batch, MediaRun
from xraygpt.models.llm.small_llm import LoraSettings, add_lora
from xraygpt.models.qformer_llm.model import XrayGPT
from xraygpt.models.qformer_llm.qformer import QFormerConfig
from xraygpt.prompting.renderer import IGNORE_INDEX, IMAGE_TOKEN_ID

# TFLOP/s, dense in bfloat16; the first name that occurs in the device's name applies.
CARDS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362}


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    llm: dict[str, Any]
    qformer: QFormerConfig
    width: int  # of the features
    patches: int

    @property
    def queries(self) -> int:
        """Tokens of one image."""
        return self.qformer.num_queries


LLAMA = {"max_position_embeddings": 2048, "tie_word_embeddings": False}
SHAPES = {
    "tiny": Shape(
        {**LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
         "num_attention_heads": 2, "vocab_size": 1000},
        QFormerConfig(num_queries=4, layers=1, hidden=64), 64, 16,
    ),
    "mini": Shape(
        {**LLAMA, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
         "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
        QFormerConfig(num_queries=16, layers=4, hidden=384, cross_attention_every=1), 320, 64,
    ),
    "vicuna": Shape(
        {**LLAMA, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
         "num_attention_heads": 32, "vocab_size": 32000},
        QFormerConfig(num_queries=32), 1408, 257,
    ),
}  # fmt: skip
STAGES = {1: (20, 60), 2: (80, 200)}  # minimum and maximum tokens of an answer
PROMPT = 12  # tokens before the answer, without the image's


class Bench:
    """A model with random weights in one training stage, with batches and an optimizer."""

    def __init__(self, shape: Shape, stage: int, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        config = XrayGPT.Config.from_keys(
            vit_model="precomputed",
            vit_width=shape.width,
            qformer=shape.qformer,
            freeze_qformer=stage == 2,
        )
        self.model: Any = XrayGPT(config)
        with torch.device(device):
            default = torch.get_default_dtype()
            torch.set_default_dtype(torch.bfloat16)
            llm = LlamaForCausalLM(LlamaConfig(**shape.llm))
            torch.set_default_dtype(default)
        self.model.llm = llm.requires_grad_(False)
        self.model.proj = nn.Linear(shape.qformer.hidden, shape.llm["hidden_size"])
        self.model.average_tokens = torch.zeros(shape.queries, shape.llm["hidden_size"])
        if stage == 2:
            add_lora(self.model.llm, LoraSettings(r=16, target=["q_proj", "v_proj"]))
        self.model.caches_queries = stage == 2  # tokens of a frozen Q-Former are cached
        self.model.to(device).train()
        self.device, self.shape, self.stage = device, shape, stage
        self.batches = [self._batch(batch_size, seed) for seed in range(4)]
        trained = [p for _, p in self.model.trainable_parameters()]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def _batch(self, count: int, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        shortest, longest = STAGES[self.stage]
        lengths = torch.randint(shortest, longest + 1, (count,), generator=generator)
        head = self.shape.queries + PROMPT
        ids_shape = (count, head + int(lengths.max()))
        ids = torch.randint(10, self.shape.llm["vocab_size"], ids_shape, generator=generator)
        ids[:, 2 : 2 + self.shape.queries] = IMAGE_TOKEN_ID
        mask = torch.arange(ids.shape[1])[None] < (head + lengths)[:, None]
        labels = ids.masked_fill(~mask, IGNORE_INDEX)
        labels[:, :head] = IGNORE_INDEX
        size = (count, self.shape.patches, self.shape.width)
        if self.model.caches_queries:
            size = (count, self.shape.queries, self.shape.qformer.hidden)
        batch: Any = {
            "input_ids": ids.to(self.device),
            "labels": labels.to(self.device),
            "attention_mask": mask.long().to(self.device),
            "runs": [MediaRun(row, "image", 2, self.shape.queries) for row in range(count)],
            "sample_id": [str(row) for row in range(count)],
            "media_inputs": {"features": torch.randn(size, generator=generator).to(self.device)},
        }
        return batch

    def tokens(self, batch: Batch) -> int:
        """Number of tokens without padding, including image tokens."""
        return int(batch["attention_mask"].sum())

    def flops(self, batch: Batch) -> float:
        """Operations of a step, as described at the top of this file."""
        tokens = self.tokens(batch)
        answers = int((batch["labels"] != IGNORE_INDEX).sum())
        images = len(batch["input_ids"]) * self.shape.queries
        total = 0.0
        for name, parameter in self.model.named_parameters():
            if "embed_tokens" in name:
                continue  # looked up, not multiplied
            if name.startswith("qformer.") and self.model.caches_queries:
                continue
            count = tokens if name.startswith("llm.") else images
            count = answers if "lm_head" in name else count
            operations = 6 if parameter.requires_grad else 4
            total += float(operations) * parameter.numel() * count
        return total

    def step(self, batch: Batch) -> None:
        """Forward pass, backward pass and update in bfloat16."""
        with torch.autocast(self.device.type, torch.bfloat16):
            output = self.model(batch)
        (output.loss / output.num_targets.sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def wait(self) -> None:
        """Wait until the GPU has finished."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def peak_flops(device: torch.device, tflops: float | None) -> tuple[float, str]:
    """Peak operations per second of a device, and the source of the number."""
    if tflops is not None:
        return tflops * 1e12, "--peak"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for card, dense in CARDS.items():
            if card in name:
                return dense * 1e12, f"datasheet of {card}"
    size = 4096 if device.type == "cuda" else 1536
    matrix = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        product = matrix @ matrix
        float(product[0, 0])
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds), f"product of {size} × {size} matrices"


def measure(bench: Bench, steps: int, peak: float) -> dict[str, float]:
    """Speed, utilisation and memory of one stage."""
    memory.reset_peak(bench.device)
    for batch in bench.batches[:2]:
        bench.step(batch)
    seconds, tokens, flops = [], [], []
    for number in range(steps):
        batch = bench.batches[number % len(bench.batches)]
        bench.wait()
        start = time.perf_counter()
        bench.step(batch)
        bench.wait()
        seconds.append(time.perf_counter() - start)
        tokens.append(bench.tokens(batch) / seconds[-1])
        flops.append(bench.flops(batch) / seconds[-1])
    return {
        "seconds": statistics.median(seconds),
        "tokens_a_second": statistics.median(tokens),
        "utilisation": statistics.median(flops) / peak,
        "GiB": memory.peak_bytes(bench.device) / 2**30,
    }


def main() -> None:
    """Run the benchmark and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in bfloat16")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    device = torch.device(args.device)
    peak, source = peak_flops(device, args.peak)
    print(f"{args.shape} on {device}: {peak / 1e12:.2f} TFLOP/s ({source})")
    rows: dict[str, Any] = {"shape": args.shape, "batch": args.batch, "peak": peak}
    for stage in STAGES:
        bench = Bench(SHAPES[args.shape], stage, args.batch, device)
        row = measure(bench, args.steps, peak)
        rows[f"stage {stage}"] = row
        print(
            f"stage {stage}: {row['tokens_a_second']:.0f} tokens per second, "
            f"{row['seconds']:.3f} s per step, {row['utilisation']:.0%} of the peak operations; "
            f"{row['GiB']:.1f} GiB"
        )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
