"""What a training run will take on an accelerator that need not be at hand: memory, time, price.

Floating-point operations are counted as 6 for each trained weight and token, 2 for each frozen one,
and 12 · layers · width · length for attention (Kaplan et al. 2020, arXiv:2001.08361; Chowdhery et
al. 2022, arXiv:2204.02311, appendix B). Embedding tables cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from xraygpt.common.checks import Checks
from xraygpt.datasets.mixture import longest_rows

if TYPE_CHECKING:
    from xraygpt.runners.train_loop import Runner

_MEASURED_ROWS = 2
_SAMPLES = 200  # whose mean length is taken for that of all


@dataclass(kw_only=True)
class Budget:
    """The accelerator that `--dry-run` computes time and price for."""

    tflops: float = 989.0
    """Peak of each device in 10¹² operations per second; 989 is an H100 SXM in bfloat16, dense
    (NVIDIA's data sheet)."""
    utilization: float = 0.25
    """Share of the peak that training reaches, in (0, 1]; small models reach less than large
    ones."""
    price_per_hour: float = 2.5
    """Price of each device per hour, in any currency."""
    memory_gib: float = 80.0
    """Memory of each device in 2**30 bytes."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.above(0, "tflops", "memory_gib")
            check.at_least(0, "price_per_hour")
            wrong = not 0 < self.utilization <= 1
            check.refuse(wrong, "utilization", f"must be in (0, 1], got {self.utilization}")


def estimate(runner: Runner, budget: Budget) -> dict[str, Any]:
    """Count a run's operations and memory, from a few rows on this machine.

    Returns:
        `steps`, `tokens_per_step` (of all processes), `tokens`, `trained_parameters`,
        `petaflops` (10¹⁵ operations in total), `hours`, `price` (of all devices), and for each
        device `memory_gib`, and whether that `fits`.
    """
    tokens = mean_tokens(runner)
    per_token = flops_per_token(runner.model, tokens)
    per_step = tokens * runner.global_batch
    total = per_token * per_step * runner.max_steps
    world = runner.accelerator.num_processes
    hours = total / (budget.tflops * 1e12 * budget.utilization * world) / 3600
    memory = memory_bytes(runner) / 2**30
    return {
        "steps": runner.max_steps,
        "tokens_per_step": round(per_step),
        "tokens": round(per_step * runner.max_steps),
        "trained_parameters": sum(p.numel() for _, p in runner.model.trainable_parameters()),
        "petaflops": round(total / 1e15, 3),
        "hours": round(hours, 3),
        "price": round(hours * world * budget.price_per_hour, 2),
        "memory_gib": round(memory, 2),
        "fits": memory < budget.memory_gib,
    }


def mean_tokens(runner: Runner) -> float:
    """Return the mean number of tokens of evenly spread training samples."""
    train = runner.splits["train"]
    step = max(1, len(train) // _SAMPLES)
    samples = [train[i] for i in range(0, len(train), step)]
    lengths = [int(runner.collate([s])["attention_mask"].sum()) for s in samples if s is not None]
    return sum(lengths) / max(len(lengths), 1)


def flops_per_token(model: nn.Module, length: float) -> float:
    """Return the operations of a forward and backward pass for each token of a text."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    heads = getattr(getattr(model, "llm", None), "get_output_embeddings", lambda: None)()
    if heads is not None:
        tables.discard(id(heads.weight))  # a tied table is multiplied with, too
    counted = [p for p in model.parameters() if id(p) not in tables]
    trained = sum(p.numel() for p in counted if p.requires_grad)
    frozen = sum(p.numel() for p in counted if not p.requires_grad)
    config = getattr(getattr(model, "llm", None), "config", None)
    layers = getattr(config, "num_hidden_layers", 0)
    width = getattr(config, "hidden_size", 0)
    return 6 * trained + 2 * frozen + 12 * layers * width * length


def memory_bytes(runner: Runner) -> float:
    """Return the bytes of weights, gradients, optimizer state and activations of the longest rows.

    What the backward pass needs is counted on a few rows, and taken to grow with their number.
    """
    train = runner.splits["train"]
    rows = min(_MEASURED_ROWS, runner.config.batch_size_train, len(train))
    batch = runner.to_device(runner.collate([train[i] for i in longest_rows(train, rows)]))
    runner.wrapped.train()
    weights = {p.untyped_storage().data_ptr() for p in runner.model.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), runner.autocast():
        output = runner.task.loss(runner.wrapped, batch)
    activations = sum(saved.values()) / rows * runner.config.batch_size_train
    del output
    parameters = sum(p.nbytes for p in runner.model.parameters())
    gradients = sum(p.nbytes for _, p in runner.model.trainable_parameters())
    for _, weight in runner.model.trainable_parameters():
        weight.grad = torch.zeros_like(weight)
    state = runner.stepper.bytes_to_come()
    runner.optimizer.zero_grad(set_to_none=True)
    return parameters + gradients + state + activations
