"""Memory of a training step of XrayGPT with Vicuna-7B, counted without a GPU or weights.

    python benchmarks/fit.py [--shape vicuna] [--batches 1 4 16 64] [--cards 24 40 80]

All tensors of a step are created without content (torch's fake tensors), and the peak of their
total size is computed: bfloat16 weights of the LLM, the longest rows of each stage of
`utilisation.py`, features as the cache provides them, AdamW. The CUDA context (about 0.5 GB),
kernel workspaces and memory fragmentation come on top. This is a calculation, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import LlamaConfig, LlamaForCausalLM
from utilisation import PROMPT, SHAPES, STAGES, Shape

from xraygpt.common.cli import run_main
from xraygpt.models.qformer_llm.qformer import QFormer

MARGIN = 1.5  # GB of a card reserved for what is not counted


class MemoryCounter(TorchDispatchMode):
    """Counts the bytes of all live storages, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self.storages: Any = WeakIdKeyDictionary()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage once, until it is freed."""
        storage = tensor.untyped_storage()
        if storage in self.storages:
            return
        size = storage.nbytes()
        self.storages[storage] = size
        self.current += size
        self.peak = max(self.peak, self.current)
        weakref.finalize(storage, self._remove, size)

    def _remove(self, size: int) -> None:
        self.current -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its results."""
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return output


class LoraLinear(nn.Module):
    """LoRA of rank 16 as in peft, which does not work with fake tensors."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 16, bias=False)
        self.up = nn.Linear(16, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, H) -> (N, T, O)."""
        output: torch.Tensor = self.base(x) + self.up(self.down(x.float()))
        return output


class StepModel(nn.Module):
    """The computations of `XrayGPT.forward` with stored features."""

    def __init__(self, shape: Shape, stage: int, checkpointing: bool) -> None:
        super().__init__()
        self.shape = shape
        self.llm: Any = LlamaForCausalLM(LlamaConfig(**shape.llm)).requires_grad_(False)
        if stage == 2:
            for layer in self.llm.model.layers:
                attention = layer.self_attn
                attention.q_proj = LoraLinear(attention.q_proj)
                attention.v_proj = LoraLinear(attention.v_proj)
        self._cast_frozen_weights()
        if checkpointing:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
            self.llm.train()
        self.qformer = QFormer(
            shape.qformer, vision_width=shape.width, num_patches=None
        ).requires_grad_(stage == 1)
        self.proj = nn.Linear(shape.qformer.hidden, shape.llm["hidden_size"])

    def _cast_frozen_weights(self) -> None:
        """Replace frozen weights by bfloat16; fake tensors cannot be cast in place."""
        for module in self.llm.modules():
            for name, weight in module._parameters.items():
                if weight is not None and not weight.requires_grad:
                    half = torch.empty_like(weight, dtype=torch.bfloat16)
                    module._parameters[name] = nn.Parameter(half, requires_grad=False)

    def forward(self, features: torch.Tensor, ids: torch.Tensor, answer: int) -> torch.Tensor:
        """(N, L, D) features and (N, T) ids -> () loss on the last `answer` ids of each row."""
        images = self.proj(self.qformer(features))
        text = self.llm.get_input_embeddings()(ids)
        embeds = torch.cat([images.to(text), text], dim=1)
        hidden = self.llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = self.llm.lm_head(hidden[:, -answer:]).float()
        loss: torch.Tensor = functional.cross_entropy(
            logits.flatten(0, 1), ids[:, -answer:].flatten()
        )
        return loss


def peak_gb(shape: Shape, stage: int, batch: int, checkpointing: bool) -> float:
    """Peak memory of a training step in GB."""
    answer = STAGES[stage][1]
    with FakeTensorMode():
        step = StepModel(shape, stage, checkpointing)
        trained = [p for p in step.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        features = torch.randn(batch, shape.patches, shape.width)
        ids = torch.ones(batch, PROMPT + answer, dtype=torch.long)
        counter = MemoryCounter()
        for tensor in (*step.parameters(), *step.buffers(), features, ids):
            counter.add(tensor)
        with counter:
            for _ in range(2):  # the optimizer's state exists from the second step on
                with torch.autocast("cpu", torch.bfloat16):
                    loss = step(features, ids, answer)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return counter.peak / 1e9


def main() -> None:
    """Calculate and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="vicuna")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--cards", type=int, nargs="+", default=[24, 40, 80], help="GB")
    parser.add_argument("--out", type=Path, help="JSON file")
    args = parser.parse_args()
    heads = " | ".join(f"batch {b}" for b in args.batches)
    cards = " | ".join(f"{c} GB" for c in args.cards)
    print(f"| stage | checkpointing | {heads} | {cards} |")
    print("|---" * (2 + len(args.batches) + len(args.cards)) + "|")
    rows = []
    for stage in STAGES:
        for checkpointing in (False, True):
            sizes = [peak_gb(SHAPES[args.shape], stage, b, checkpointing) for b in args.batches]
            per_row = (sizes[-1] - sizes[0]) / (args.batches[-1] - args.batches[0])
            fits = [
                int(max(0.0, (card - MARGIN - sizes[0]) / per_row + args.batches[0]))
                for card in args.cards
            ]
            rows.append({"stage": stage, "checkpointing": checkpointing, "GB": sizes, "fits": fits})
            cells = [f"{size:.1f} GB" for size in sizes] + [f"{count} rows" for count in fits]
            answer = "yes" if checkpointing else "no"
            print(f"| {stage} | {answer} | {' | '.join(cells)} |", flush=True)
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
