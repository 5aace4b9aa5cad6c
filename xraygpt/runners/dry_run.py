"""A rehearsal of a training step: shapes, loss and memory, without changing any weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xraygpt.common import memory
from xraygpt.datasets.mixture import longest_rows
from xraygpt.runners.budget import estimate

if TYPE_CHECKING:
    from xraygpt.runners.train_loop import Runner


def dry_run(runner: Runner) -> dict[str, Any]:
    """Run one forward and backward pass on the longest rows; only features are written to disk.

    With `run.budget`, `budget.estimate` counts what the run will take elsewhere instead.

    Returns:
        `rows`, `tokens` and `targets` of the batch, its `loss` in nats per target token, the
        run's `steps`, the number of `trained_parameters`, and `peak_gib`: the maximum memory that
        training will need on the GPU, or without a GPU in the whole process, in 2**30 bytes.
    """
    if runner.config.budget is not None:
        return estimate(runner, runner.config.budget)
    runner.cache_features()
    runner.wrapped.train()
    train = runner.splits["train"]
    longest = longest_rows(train, runner.config.batch_size_train)
    batch = runner.to_device(runner.collate([train[i] for i in longest]))
    memory.reset_peak(runner.device)
    with runner.autocast():
        output = runner.task.loss(runner.wrapped, batch)
    runner.stepper.backward(output.loss)
    rows, width = batch["input_ids"].shape
    trained = sum(p.numel() for _, p in runner.model.trainable_parameters())
    # The memory that the first optimizer step will allocate in addition.
    later = runner.stepper.bytes_to_come() + (4 * trained if runner.average else 0)
    targets = int(output.num_targets.sum())
    return {
        "rows": rows,
        "tokens": width,
        "targets": targets,
        "loss": float(output.loss.detach()) / max(targets, 1),
        "steps": runner.max_steps,
        "trained_parameters": trained,
        "peak_gib": round((memory.peak_bytes(runner.device) + later) / 2**30, 2),
    }
