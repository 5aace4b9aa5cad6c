"""Learning-rate schedules: pure functions of the step, counted over the whole run from 0.

Schedules may use the validation losses before the step, which checkpoints keep. Warm-up happens
once per run, not once per epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xraygpt.common.registry import registry


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers a schedule may use.

    `decay_rate` is a factor, which applies once per epoch in the step schedule, and each time
    `plateau_patience` evaluations in a row bring no new best in the plateau schedule. `val_losses`
    lists the (step, value of `best_metric`) of all evaluations so far.
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int
    decay_rate: float
    plateau_patience: int = 3
    val_losses: tuple[tuple[int, float], ...] = ()


LONG_WARMUP, SHORT_WARMUP = 0.2, 0.1
"""A warm-up above the first share of a run is shortened to the second share."""


def capped_warmup(warmup_steps: int, total_steps: int) -> int:
    """Return the steps of warm-up, at most a tenth of the run if more than a fifth is asked for."""
    if warmup_steps <= LONG_WARMUP * total_steps:
        return warmup_steps
    return int(SHORT_WARMUP * total_steps)


def _warmup(step: int, s: Schedule) -> float:
    return s.warmup_lr + (s.init_lr - s.warmup_lr) * step / max(s.warmup_steps, 1)


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(step: int, s: Schedule) -> float:
    """Rise linearly from `warmup_lr` to `init_lr`, then follow half a cosine down to `min_lr`."""
    if step < s.warmup_steps:
        return _warmup(step, s)
    done = (step - s.warmup_steps) / max(s.total_steps - s.warmup_steps, 1)
    return s.min_lr + (s.init_lr - s.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@registry.register_lr_scheduler("linear_warmup_linear_lr")
def linear_warmup_linear_lr(step: int, s: Schedule) -> float:
    """Rise linearly from `warmup_lr` to `init_lr`, then fall linearly to `min_lr`."""
    if step < s.warmup_steps:
        return _warmup(step, s)
    done = (step - s.warmup_steps) / max(s.total_steps - s.warmup_steps, 1)
    return s.init_lr + (s.min_lr - s.init_lr) * min(done, 1.0)


@registry.register_lr_scheduler("linear_warmup_step_lr")
def linear_warmup_step_lr(step: int, s: Schedule) -> float:
    """Rise linearly to `init_lr`, then multiply by `decay_rate` each epoch, down to `min_lr`."""
    if step < s.warmup_steps:
        return _warmup(step, s)
    return max(s.min_lr, s.init_lr * s.decay_rate ** (step // max(s.steps_per_epoch, 1)))


@registry.register_lr_scheduler("constant_lr")
def constant_lr(step: int, s: Schedule) -> float:
    """Warm up linearly, then return `init_lr` throughout."""
    return _warmup(step, s) if step < s.warmup_steps else s.init_lr


@registry.register_lr_scheduler("reduce_on_plateau_lr")
def reduce_on_plateau_lr(step: int, s: Schedule) -> float:
    """Warm up linearly, then multiply by `decay_rate` at every plateau, down to `min_lr`.

    A plateau is `plateau_patience` evaluations in a row without a new best; counting restarts
    after it. Evaluations during warm-up may set the best but are not counted.
    """
    if step < s.warmup_steps:
        return _warmup(step, s)
    best, stale, cuts = math.inf, 0, 0
    for evaluated_at, loss in s.val_losses:
        if evaluated_at > step:
            break
        if loss < best:
            best, stale = loss, 0
        elif evaluated_at > s.warmup_steps:
            stale += 1
        if stale == s.plateau_patience:
            cuts, stale = cuts + 1, 0
    return max(s.min_lr, s.init_lr * s.decay_rate**cuts)
