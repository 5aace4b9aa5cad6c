"""How the gradients of a step come together and change the weights."""

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
    """One process, or several with the whole of what is trained on each (DDP).

    Args:
        accelerator: The processes.
        model: On the accelerator's device.
        optimizer: Over what is trained.
        config: Its `grad_clip` bounds the gradients' norm.
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
        """The model as it is called in training."""

    def _wrap(self) -> Any:
        # Not `prepare(optimizer)`: the loop steps once per fetched group of micro-batches itself.
        several = self.accelerator.num_processes > 1
        return self.accelerator.prepare(self.model) if several else self.model

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """What surrounds forward and backward of one; processes meet in the last of a step."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, which are summed over processes."""
        # DDP averages over processes; times their number that is a sum again.
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def step(self, check: Callable[[float], None]) -> float:
        """Clip the gradients, change the weights, begin anew.

        Args:
            check: Told the norm before anything is changed; raises if this cannot go on.

        Returns:
            The norm before it was clipped.
        """
        parameters = [p for _, p in self.model.trainable_parameters()]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, self.config.grad_clip or math.inf))
        check(norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def bytes_to_come(self) -> int:
        """What the optimizer will remember after the first step, beyond what it has by now."""
        return optimizers.bytes_to_come(self.optimizer)

    def state(self) -> dict[str, Any]:
        """Of the optimizer, as one process would have it; a collective call."""
        return self.optimizer.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`; the model has its weights already."""
        self.optimizer.load_state_dict(state)
