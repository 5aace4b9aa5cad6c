"""Images and texts drawn together: the task that makes a vision encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch, Sample, reference_of
from xraygpt.metrics.findings import FINDINGS, label
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import Output
from xraygpt.tasks.base import BaseTask, Prediction


@registry.register_task("image_text_contrastive")
class ImageTextContrastive(BaseTask):
    """Semantic matching as in MedCLIP, or plain pairs as in CLIP; beside it, findings by name."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of the losses."""

        matching: Literal["semantic", "pairs"] = "semantic"
        """`semantic`: every image goes with every text of the batch as far as their findings are
        alike (Wang et al. 2022, MedCLIP), paired or not. `pairs`: with its own text alone (InfoNCE;
        Radford et al. 2021, CLIP)."""
        matching_weight: float = 1.0
        """Of that loss; 0 leaves it out."""
        target_temperature: float = 0.2
        """`semantic`: likenesses, cosines of findings in [0, 1], are divided by it before the
        softmax. MedCLIP's 1 asks nearly the same of every pair."""
        label_weight: float = 1.0
        """Of the loss of the findings' head, summed over findings and divided by 10; 0 leaves it
        out."""

        def __post_init__(self) -> None:
            if min(self.matching_weight, self.label_weight) < 0 or self.target_temperature <= 0:
                raise ValueError("weights must not be negative, target_temperature above 0")
            if not self.matching_weight and not self.label_weight:
                raise ValueError("matching_weight and label_weight are both 0: nothing to learn")

    config: Config
    generates = False

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`findings` (B, F): what the labeller reads in each text; doubted ones count."""
        return {
            "findings": torch.stack([findings_of(reference_of(s["turns"])) for s in samples]),
        }

    def count(self, batch: Batch) -> int:
        """Rows."""
        return sum(bool(name) for name in batch["sample_id"])

    def loss(self, model: Any, batch: Batch) -> Output:
        """Summed over rows; those without an image bring their text alone."""
        pair = model(batch)
        rows = torch.zeros(len(batch["sample_id"]), device=pair.text.device)
        if len(pair.rows) and "findings" in batch["extra"]:
            truth = batch["extra"]["findings"].to(pair.text)
            if self.config.matching_weight:
                rows = rows.index_add(
                    0, pair.rows, self.config.matching_weight * self.matching(pair, truth)
                )
            if self.config.label_weight:
                heads = functional.binary_cross_entropy_with_logits(
                    pair.findings, truth[pair.rows], reduction="none"
                )
                rows = rows.index_add(
                    0, pair.rows, self.config.label_weight / 10 * heads.sum(dim=1)
                )
        # A batch without an image still touches every parameter, as other processes' steps do.
        unused = pair.text.sum() + pair.findings.sum() + pair.image.sum() + pair.scale
        loss = rows.sum() + 0 * unused
        counted = torch.tensor([int(bool(n)) for n in batch["sample_id"]], device=rows.device)
        return Output(loss=loss, row_loss=rows.detach(), num_targets=counted)

    def matching(self, pair: Any, truth: Tensor) -> Tensor:
        """(R,) of each row with an image: mean of the loss from images to texts and back.

        Args:
            pair: Vectors of both sides.
            truth: (B, F) findings of the texts, 0 or 1.
        """
        logits = pair.scale * (pair.image @ pair.text.T).float()  # (R, B)
        own = torch.zeros_like(logits)
        own[torch.arange(len(pair.rows)), pair.rows] = 1
        if self.config.matching == "pairs":
            there, back = own, own.T
        else:
            length = functional.normalize(truth, dim=-1)
            alike = (length[pair.rows] @ length.T).float().maximum(own)
            there = (alike / self.config.target_temperature).softmax(dim=1)
            back = (alike.T / self.config.target_temperature).softmax(dim=1)
        to_text = -(there * logits.log_softmax(dim=1)).sum(dim=1)
        to_image = -(back * logits.T.log_softmax(dim=1)).sum(dim=1)
        return (to_text + to_image[pair.rows]) / 2

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Nothing but the loss, which the runner takes; `xraygpt.probe` measures the encoder."""
        return []


def findings_of(text: str) -> Tensor:
    """(F,) float32, 1 for each finding the labeller reads in a text, affirmed or doubted."""
    found = label(text)
    return torch.tensor([float(found.get(name, "negative") != "negative") for name in FINDINGS])
