"""The finding head as part of a Q-Former model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xraygpt.datasets.base import Batch
from xraygpt.models.findings import FindingScores
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.vision.finding_head import FindingHead


class WithFindingHead:
    """Predicts findings from the features of the model's frozen encoder."""

    config: Any
    finding_head: FindingHead | None

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode (N, C, H, W) images as (N, L, D)."""
        raise NotImplementedError

    def predictable_findings(self) -> list[str]:
        """Return the findings of the finding head; empty without one."""
        return [] if self.finding_head is None else self.finding_head.names

    @torch.no_grad()
    def finding_scores(self, batch: Batch) -> FindingScores:
        """Compute the finding head's probabilities from each row's images.

        Raises:
            ValueError: The model has no finding head, or the batch has no images.
        """
        inputs = batch["media_inputs"]
        if self.finding_head is None or not inputs:
            raise ValueError("findings are predicted by a finding head, from images")
        features = inputs.get("features")
        if features is None:
            features = self.encode(inputs["pixel_values"])
        images = images_per_row(batch, self.config.qformer.num_queries)
        return self.finding_head.score(features, images)
