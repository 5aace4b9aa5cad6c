"""Runs the backward pass and the optimizer step, on one process or several."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from xraygpt.models.base import BaseModel
from xraygpt.runners import optimizers
from xraygpt.runners.settings import RunSettings


class Stepper:
    """Trains on a single process, or on several with DDP, each with all trained weights.

    Args:
        accelerator: The processes.
        model: The model, on the accelerator's device.
        optimizer: The optimizer for the trained weights.
        config: Settings, of which `grad_clip` limits the gradient norm.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: BaseModel,
        optimizer: torch.optim.Optimizer,
        config: RunSettings,
    ) -> None:
        self.accelerator, self.model = accelerator, model
        self.optimizer, self.config = optimizer, config
        self.wrapped: Any = self._wrap()
        """The model wrapped for distributed training, which the loop must call."""

    def _wrap(self) -> Any:
        # The optimizer is not prepared: the loop itself accumulates micro-batches.
        several = self.accelerator.num_processes > 1
        return self.accelerator.prepare(self.model) if several else self.model

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Context manager for a forward and backward pass; only the last reduces gradients."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of `loss`, summed over processes."""
        # DDP averages over processes; multiplying by their number gives the sum.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def step(self, check: Callable[[float], None]) -> float:
        """Clip the gradients, update the weights and reset the gradients.

        Args:
            check: A function that is called with the gradient norm before the update and raises to
                stop the run.

        Returns:
            The gradient norm before clipping.
        """
        parameters = [p for _, p in self.model.trainable_parameters()]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip or math.inf))
        check(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def bytes_to_come(self) -> int:
        """Return how many bytes of optimizer state the first step will still allocate."""
        return optimizers.bytes_to_come(self.optimizer)

    def state(self) -> dict[str, Any]:
        """Return the optimizer's state as a single process has it; all ranks must call this."""
        return self.optimizer.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state` after the model's weights have been loaded."""
        self.optimizer.load_state_dict(state)
