"""Models whose weights are elsewhere: at a server, or in a program of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from xraygpt.datasets.base import Batch
from xraygpt.models.base import BaseModel, Output
from xraygpt.models.capabilities import ComputesLoss, require


class RemoteModel(BaseModel):
    """A model without parameters in this process; it answers, but computes no loss."""

    @property
    def device(self) -> torch.device:
        """The CPU, as the parameters are elsewhere."""
        return torch.device("cpu")

    def forward(self, batch: Batch, return_logits: bool = False) -> Output:
        """Refuse to compute the loss.

        Raises:
            InputError: Always.
        """
        require(self, ComputesLoss)
        raise AssertionError("unreachable: `unsupported` lists the loss")

    def checkpoint_state(self) -> dict[str, Tensor]:
        """Return nothing, as the weights are elsewhere."""
        return {}
