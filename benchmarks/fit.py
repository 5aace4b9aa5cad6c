"""Memory of a training step of XrayGPT with Vicuna-7B, counted without a GPU or weights.

    python benchmarks/fit.py [--shape vicuna] [--batches 1 4 16 64] [--cards 24 40 80]

Every tensor of a step is made without content (torch's fake tensors) and its room is counted, for
what lives longest at once: bfloat16 weights of the LLM, the longest rows of each stage of
`utilisation.py`, features as the cache gives them, AdamW. What a CUDA context (about 0.5 GB), its
kernels' workspace and holes between tensors take comes on top. This is arithmetic, not a
measurement.
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

MARGIN = 1.5  # GB of a card for what is not counted


class Held(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: Any = WeakIdKeyDictionary()

    def note(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage, once, until it is gone."""
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        size = storage.nbytes()
        self.known[storage] = size
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count what an operation returns."""
        out = func(*args, **(kwargs or {}))
        for one in tree_leaves(out):
            if isinstance(one, torch.Tensor):
                self.note(one)
        return out


class Adapted(nn.Module):
    """LoRA of rank 16 as peft computes it; peft itself cannot be made of fake tensors."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 16, bias=False)
        self.up = nn.Linear(16, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, T, H) -> (N, T, O)."""
        changed: torch.Tensor = self.base(x) + self.up(self.down(x.float()))
        return changed


class Step(nn.Module):
    """What a training step computes, as `XrayGPT.forward` does with stored features."""

    def __init__(self, shape: Shape, stage: int, checkpointing: bool) -> None:
        super().__init__()
        self.shape = shape
        self.llm: Any = LlamaForCausalLM(LlamaConfig(**shape.llm)).requires_grad_(False)
        if stage == 2:
            for layer in self.llm.model.layers:
                attention = layer.self_attn
                attention.q_proj = Adapted(attention.q_proj)
                attention.v_proj = Adapted(attention.v_proj)
        self._halve()
        if checkpointing:
            self.llm.gradient_checkpointing_enable({"use_reentrant": False})
            self.llm.train()
        self.qformer = QFormer(
            shape.qformer,
            vision_width=shape.width,
            num_patches=None,
            num_query_token=shape.queries,
        ).requires_grad_(stage == 1)
        self.proj = nn.Linear(shape.qformer.hidden, shape.llm["hidden_size"])

    def _halve(self) -> None:
        """bfloat16 for what is frozen; fake tensors cannot be cast in place."""
        for module in self.llm.modules():
            for name, weight in module._parameters.items():
                if weight is not None and not weight.requires_grad:
                    half = torch.empty_like(weight, dtype=torch.bfloat16)
                    module._parameters[name] = nn.Parameter(half, requires_grad=False)

    def forward(self, features: torch.Tensor, ids: torch.Tensor, answer: int) -> torch.Tensor:
        """(N, L, D) features, (N, T) ids, the last `answer` of which are targets -> ()."""
        images = self.proj(self.qformer(features))
        text = self.llm.get_input_embeddings()(ids)
        embeds = torch.cat([images.to(text), text], dim=1)
        hidden = self.llm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
        logits = self.llm.lm_head(hidden[:, -answer:]).float()
        loss: torch.Tensor = functional.cross_entropy(
            logits.flatten(0, 1), ids[:, -answer:].flatten()
        )
        return loss


def counted(shape: Shape, stage: int, batch: int, checkpointing: bool) -> float:
    """GB of a step at its fullest."""
    answer = STAGES[stage][1]
    with FakeTensorMode():
        step = Step(shape, stage, checkpointing)
        trained = [p for p in step.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        features = torch.randn(batch, shape.patches, shape.width)
        ids = torch.ones(batch, PROMPT + answer, dtype=torch.long)
        held = Held()
        for tensor in (*step.parameters(), *step.buffers(), features, ids):
            held.note(tensor)
        with held:
            for _ in range(2):  # the optimizer's state is there from the second step on
                with torch.autocast("cpu", torch.bfloat16):
                    loss = step(features, ids, answer)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return held.most / 1e9


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="vicuna")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--cards", type=int, nargs="+", default=[24, 40, 80], help="GB")
    parser.add_argument("--out", type=Path, help="JSON file")
    given = parser.parse_args()
    heads = " | ".join(f"batch {b}" for b in given.batches)
    cards = " | ".join(f"{c} GB" for c in given.cards)
    print(f"| stage | checkpointing | {heads} | {cards} |")
    print("|---" * (2 + len(given.batches) + len(given.cards)) + "|")
    rows = []
    for stage in STAGES:
        for checkpointing in (False, True):
            each = [counted(SHAPES[given.shape], stage, b, checkpointing) for b in given.batches]
            one = (each[-1] - each[0]) / (given.batches[-1] - given.batches[0])  # of a row
            fits = [
                int(max(0.0, (card - MARGIN - each[0]) / one + given.batches[0]))
                for card in given.cards
            ]
            rows.append({"stage": stage, "checkpointing": checkpointing, "GB": each, "fits": fits})
            sizes = " | ".join(f"{x:.1f} GB" for x in each)
            most = " | ".join(f"{n} rows" for n in fits)
            print(
                f"| {stage} | {'yes' if checkpointing else 'no'} | {sizes} | {most} |", flush=True
            )
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_main(main))
