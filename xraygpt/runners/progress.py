"""A run's progress, which is part of every checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The steps taken and the validation results.

    Attributes:
        step: Number of optimizer steps taken.
        best: Lowest value of `best_metric`: nats per target token, or bits per byte.
        best_step: The step at which `best` was reached; -1 before the first evaluation.
        stale: Number of evaluations since `best`.
        val_losses: (step, value of `best_metric`) of every evaluation.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = -1
    stale: int = 0
    val_losses: list[tuple[int, float]] = field(default_factory=list)

    def record(self, loss: float) -> bool:
        """Add an evaluation of the current step and return whether it is the best so far."""
        self.val_losses.append((self.step, loss))
        self.stale += 1
        if loss >= self.best:
            return False
        self.best, self.best_step, self.stale = loss, self.step, 0
        return True

    def state(self) -> dict[str, Any]:
        """Return the fields for a checkpoint."""
        return dict(vars(self))

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Restore from a checkpoint; checkpoints from early versions have no `val_losses`."""
        self.step, self.best, self.best_step = saved["step"], saved["best"], saved["best_step"]
        self.stale, self.val_losses = saved["stale"], list(saved.get("val_losses", ()))
