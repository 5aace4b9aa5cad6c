"""Warm-up of the Q-Former by image-text contrast and image-text matching."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch, Sample, reference_text
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import Output
from xraygpt.models.qformer_llm.alignment import Aligned
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.contrastive import findings_of
from xraygpt.vocabulary import get_vocabulary


@registry.register_task("qformer_alignment")
class QFormerAlignmentTask(BaseTask):
    """Contrast and matching losses of BLIP-2's first stage (Li et al. 2023)."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of the losses."""

        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Vocabulary whose labeller reads findings in texts."""
        matching: Literal["semantic", "pairs"] = "semantic"
        """Target of the contrast. `pairs`: only the image's own text, as in BLIP-2; `semantic`:
        every text in proportion to the similarity of its findings, for corpora in which many
        studies share the same report."""
        target_temperature: float = 0.2
        """`semantic`: divisor of the similarities, which are in [0, 1], before the softmax."""
        label_smoothing: float = 0.1
        """Label smoothing of the contrast, in [0, 1); the default is BLIP-2's."""
        contrast_weight: float = 1.0
        """Weight of the contrast; 0 disables it."""
        match_weight: float = 1.0
        """Weight of the matching of pairs and hard negatives; 0 disables it."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(0, "contrast_weight", "match_weight")
                check.above(0, "target_temperature")
                check.fraction_below_one("label_smoothing")
                idle = not self.contrast_weight and not self.match_weight
                nothing = "is 0, as is match_weight, so there is nothing to learn"
                check.refuse(idle, "contrast_weight", nothing, "match_weight")

    config: Config
    generates = False
    loss_unit = "nats per row"

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `findings`, (B, F) float32: 1 for findings that the labeller reads in the text."""
        vocabulary = get_vocabulary(self.config.vocabulary)
        return {
            "findings": torch.stack(
                [findings_of(reference_text(s["turns"]), vocabulary) for s in samples]
            ),
        }

    def count_targets(self, batch: Batch) -> int:
        """Return the number of rows."""
        return sum(bool(name) for name in batch["sample_id"])

    def loss(self, model: Any, batch: Batch) -> Output:
        """Sum the loss over rows; a row without an image only contributes its text to others."""
        aligned: Aligned = model(batch)
        rows = torch.zeros(len(batch["sample_id"]), device=aligned.similarity.device)
        if batch["media_inputs"] and len(rows) > 1:
            contrast = self.contrast_loss(aligned, batch["extra"]["findings"])
            loss = self.config.contrast_weight * contrast
            loss = loss + self.config.match_weight * self.matching_loss(aligned)
            rows = rows.index_add(0, aligned.rows, loss)
        unused = aligned.similarity.sum() + aligned.matched.sum() + aligned.scale
        targets = torch.tensor([int(bool(n)) for n in batch["sample_id"]], device=rows.device)
        return Output(loss=rows.sum() + 0 * unused, row_loss=rows.detach(), num_targets=targets)

    def contrast_loss(self, aligned: Aligned, findings: Tensor) -> Tensor:
        """Return the mean of the image-to-text and text-to-image losses, of shape (R,)."""
        logits = aligned.similarity * aligned.scale
        text_target = torch.zeros_like(logits)
        text_target[torch.arange(len(aligned.rows)), aligned.rows] = 1
        image_target = text_target.T
        if self.config.matching == "semantic":
            unit = functional.normalize(findings.to(logits), dim=-1)
            similarity = (unit[aligned.rows] @ unit.T).maximum(text_target)
            text_target = (similarity / self.config.target_temperature).softmax(dim=1)
            image_target = (similarity.T / self.config.target_temperature).softmax(dim=1)
        to_text = self._cross_entropy(logits, text_target)
        return (to_text + self._cross_entropy(logits.T, image_target)[aligned.rows]) / 2

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        smoothing = self.config.label_smoothing
        target = target * (1 - smoothing) + smoothing / logits.shape[1]
        return -(target * logits.log_softmax(dim=1)).sum(dim=1)

    def matching_loss(self, aligned: Aligned) -> Tensor:
        """Return the mean binary loss (R,) over the true pair, a wrong text and a wrong image."""
        truth = torch.zeros_like(aligned.matched)
        truth[:, 0] = 1
        losses = functional.binary_cross_entropy_with_logits(
            aligned.matched, truth, reduction="none"
        )
        return losses.mean(dim=1)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Return no scores, as the runner reports the loss."""
        return []
