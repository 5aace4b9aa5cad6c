"""A running mean of the weights, which is measured and saved in place of the last step's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from xraygpt.models.base import BaseModel


class Average:
    """Exponential moving average of what is trained, and of the running statistics with it.

    Step k weighs the mean before it with ``min(decay, k / (k + 9))``, so that the random weights
    of the beginning are soon forgotten. It smooths the last steps as a longer, lower learning rate
    would (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).

    Args:
        model: Its weights of now are where the mean begins.
        decay: In [0, 1).
    """

    def __init__(self, model: BaseModel, decay: float) -> None:
        self.model, self.decay = model, decay
        self.mean = {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def _changing(self) -> dict[str, Tensor]:
        """Trained parameters and floating buffers, of the model itself."""
        trained = dict(self.model.trainable_parameters())
        buffers = {n: b for n, b in self.model.named_buffers() if b.is_floating_point()}
        return {**trained, **buffers}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step`, counted from 1."""
        kept = min(self.decay, step / (step + 9))
        for name, tensor in self._changing().items():
            self.mean[name].lerp_(tensor, 1 - kept)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Inside, the model has the mean; after it, its own weights again."""
        own = self.own()
        self._put(self.mean)
        try:
            yield
        finally:
            self._put(own)

    def own(self) -> dict[str, Tensor]:
        """A copy of the model's weights of now, for a checkpoint that holds the mean."""
        return {name: tensor.detach().clone() for name, tensor in self._changing().items()}

    def load_state(self, own: Mapping[str, Tensor]) -> None:
        """The model holds a checkpoint's mean: keep it, and give the model its own weights."""
        self.mean = self.own()
        self._put(own)

    @torch.no_grad()
    def _put(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self._changing().items():
            tensor.copy_(state[name])
