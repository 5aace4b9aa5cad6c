"""An exponential moving average of the weights, which is validated and saved in their place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from xraygpt.models.base import BaseModel


class Average:
    """Exponential moving average of the trained weights and floating-point buffers.

    Step k weights the previous average with ``min(decay, k / (k + 9))``, so that the initial
    weights soon lose their influence (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    Args:
        model: The model, whose current weights initialise the average.
        decay: Decay per step, in [0, 1).
    """

    def __init__(self, model: BaseModel, decay: float) -> None:
        self.model, self.decay = model, decay
        self.mean = {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def _changing(self) -> dict[str, Tensor]:
        """Return the model's trained parameters and floating-point buffers by name."""
        trained = dict(self.model.trainable_parameters())
        buffers = {n: b for n, b in self.model.named_buffers() if b.is_floating_point()}
        return {**trained, **buffers}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Include the weights after `step`, which is counted from 1."""
        decay = min(self.decay, step / (step + 9))
        for name, tensor in self._changing().items():
            self.mean[name].lerp_(tensor, 1 - decay)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Context manager that swaps the averaged weights into the model."""
        own = self.own()
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def own(self) -> dict[str, Tensor]:
        """Return a copy of the current weights, before averaging."""
        return {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def load_state(self, own: Mapping[str, Tensor]) -> None:
        """Take the average from the model, then load the trained weights, `own`, into it."""
        self.mean = self.own()
        self._put(own)

    @torch.no_grad()
    def _put(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._changing().items():
            tensor.copy_(state[name])
