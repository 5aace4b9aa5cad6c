"""Computes the validation loss during training, with the true images and with wrong images."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator

from xraygpt.common import distributed
from xraygpt.common.errors import TrainingError
from xraygpt.datasets import controls
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.mixture import Mixture
from xraygpt.models.base import BaseModel
from xraygpt.runners.settings import RunSettings
from xraygpt.tasks.base import BaseTask


class Validator:
    """Measures the loss of a model on held-out samples.

    Args:
        config: The batch size, the number of samples and the precision.
        accelerator: The processes that samples are distributed over.
        model: The model, not wrapped for distributed training.
        task: The task, which defines the loss.
        collate: The function that makes batches.
    """

    def __init__(
        self,
        config: RunSettings,
        accelerator: Accelerator,
        model: BaseModel,
        task: BaseTask,
        collate: Collator,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.model, self.task, self.collate = model, task, collate
        self._bits_per_byte: float | None = None

    @torch.no_grad()
    def losses(self, data: Mixture) -> dict[str, float]:
        """Compute the loss, the loss with shuffled images, and their difference, in nats per token.

        Returns:
            `val/loss`; with a byte-level tokenizer, also `val/bits_per_byte`; for tasks with
            images, also `val/loss_shuffled` and `val/image_gap`, which is about 0 for a model that
            ignores the image.
        """
        self.model.eval()
        self._bits_per_byte = None
        values = {"val/loss": self.mean_loss(data)}
        if self._bits_per_byte is not None:
            values["val/bits_per_byte"] = self._bits_per_byte
        if self.task.uses_images:
            shuffled = Mixture([controls.shuffled(part, seed=0) for part in data.parts])
            values["val/loss_shuffled"] = self.mean_loss(shuffled)
            values["val/image_gap"] = values["val/loss_shuffled"] - values["val/loss"]
        return values

    def mean_loss(self, data: Mixture) -> float:
        """Compute the nats per target token, with each sample used once over all processes.

        Raises:
            TrainingError: No remaining sample has a target token.
        """
        loss, count, byte_loss, num_bytes = self._sums(data)
        if count == 0:
            raise TrainingError("val has no target token: all its samples were skipped")
        self._bits_per_byte = byte_loss / (math.log(2) * num_bytes) if num_bytes else None
        return loss / count

    def _sums(self, data: Mixture) -> list[float]:
        """Sum nats and tokens, and nats and bytes of the tokens that stand for bytes."""
        world, rank = int(self.accelerator.num_processes), self.accelerator.process_index
        size = self.config.batch_size_eval
        indices = list(range(len(data)))[: self.config.eval_samples]
        mine = indices[rank::world]
        sums = [0.0, 0.0, 0.0, 0.0]
        # Every process runs the same number of batches, some of them stand-ins whose loss is not
        # counted: a sharded LLM is gathered by all processes together.
        for i in range(0, math.ceil(len(indices) / world), size):
            chosen = mine[i : i + size]
            batch = self.collate([data[j] for j in chosen or indices[:1]])
            batch = distributed.to_device(batch, self.accelerator.device)
            with distributed.autocast(self.accelerator.device, self.config.amp):
                output = self.task.loss(self.model, batch)
            if chosen:
                sums[0] += float(output.loss)
                sums[1] += float(output.num_targets.sum())
                if output.byte_loss is not None and output.num_bytes is not None:
                    sums[2] += float(output.byte_loss.sum())
                    sums[3] += float(output.num_bytes.sum())
        return distributed.sum_over_processes(self.accelerator, sums)
