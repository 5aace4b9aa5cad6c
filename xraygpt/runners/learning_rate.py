"""Sets the learning rate of every parameter group before a step."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from xraygpt.common.registry import registry
from xraygpt.runners.schedules import Schedule, capped_warmup
from xraygpt.runners.settings import RunSettings


def warmup_steps(config: RunSettings, max_steps: int) -> int:
    """Return the number of warm-up steps that a configuration asks for."""
    if config.warmup_ratio is None:
        return config.warmup_steps
    return math.ceil(config.warmup_ratio * max_steps)


class LearningRate:
    """A run's schedule, applied to an optimizer.

    Args:
        config: The schedule's name and its settings.
        optimizer: The optimizer, whose groups may have `lr_scale`, a factor on the learning rate.
        max_steps: Length of the run in optimizer steps.
        steps_per_epoch: Length of an epoch in optimizer steps.
    """

    def __init__(
        self,
        config: RunSettings,
        optimizer: torch.optim.Optimizer,
        *,
        max_steps: int,
        steps_per_epoch: int,
    ) -> None:
        self.config, self.optimizer = config, optimizer
        self.max_steps, self.steps_per_epoch = max_steps, steps_per_epoch
        # Kept here because loading a checkpoint replaces the optimizer's groups.
        self.scales = [group.get("lr_scale", 1.0) for group in optimizer.param_groups]

    @property
    def warmup_steps(self) -> int:
        """Number of warm-up steps that the configuration asks for."""
        return warmup_steps(self.config, self.max_steps)

    def apply(self, step: int, val_losses: Sequence[tuple[int, float]]) -> float:
        """Set the learning rate for `step` (counted from 0) and return it, before group factors."""
        config = self.config
        schedule = Schedule(
            init_lr=config.init_lr,
            min_lr=config.min_lr,
            warmup_lr=config.warmup_lr,
            warmup_steps=capped_warmup(self.warmup_steps, self.max_steps),
            total_steps=self.max_steps,
            steps_per_epoch=self.steps_per_epoch,
            decay_rate=config.lr_decay_rate,
            plateau_patience=config.lr_plateau_patience,
            val_losses=tuple(val_losses),
        )
        lr: float = registry.get_lr_scheduler_class(config.lr_sched)(step, schedule)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = lr * scale
        return lr
