"""Learning-rate schedules: a step of the whole run -> the learning rate. Pure functions.

Warm-up is counted over the run, never restarted with an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xraygpt.common.registry import registry


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The numbers a schedule may use; learning rates per step, steps counted from 0.

    `decay_rate` is used by the step schedule only: the factor per epoch of `steps_per_epoch` steps.
    """

    init_lr: float
    min_lr: float
    warmup_lr: float
    warmup_steps: int
    total_steps: int
    steps_per_epoch: int
    decay_rate: float


def _warmup(step: int, s: Schedule) -> float:
    return s.warmup_lr + (s.init_lr - s.warmup_lr) * step / max(s.warmup_steps, 1)


@registry.register_lr_scheduler("linear_warmup_cosine_lr")
def linear_warmup_cosine_lr(step: int, s: Schedule) -> float:
    """Linear from `warmup_lr` to `init_lr`, then half a cosine to `min_lr` at the last step."""
    if step < s.warmup_steps:
        return _warmup(step, s)
    done = (step - s.warmup_steps) / max(s.total_steps - s.warmup_steps, 1)
    return s.min_lr + (s.init_lr - s.min_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


@registry.register_lr_scheduler("linear_warmup_step_lr")
def linear_warmup_step_lr(step: int, s: Schedule) -> float:
    """Linear from `warmup_lr` to `init_lr`, then × `decay_rate` each epoch, not below `min_lr`."""
    if step < s.warmup_steps:
        return _warmup(step, s)
    return max(s.min_lr, s.init_lr * s.decay_rate ** (step // max(s.steps_per_epoch, 1)))


@registry.register_lr_scheduler("constant_lr")
def constant_lr(step: int, s: Schedule) -> float:
    """Linear warm-up, then `init_lr` throughout."""
    return _warmup(step, s) if step < s.warmup_steps else s.init_lr
