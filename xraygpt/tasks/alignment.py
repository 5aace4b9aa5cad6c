"""The Q-Former's warm-up: which text goes with which image, and does this one."""

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
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch, Sample, reference_of
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import Output
from xraygpt.models.qformer_llm.alignment import Aligned
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.contrastive import findings_of
from xraygpt.vocabulary import vocabulary_of


@registry.register_task("qformer_alignment")
class QFormerAlignmentTask(BaseTask):
    """Contrast and matching of BLIP-2's first stage (Li et al. 2023); `arch: qformer_alignment`."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of the losses."""

        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Reads findings in texts."""
        matching: Literal["semantic", "pairs"] = "semantic"
        """What the contrast asks for: `pairs`, its own text alone, as BLIP-2; `semantic`, each text
        as far as its findings are alike, for reports that many studies share word for word."""
        target_temperature: float = 0.2
        """`semantic`: likenesses, in [0, 1], are divided by it before the softmax."""
        label_smoothing: float = 0.1
        """Of the contrast's targets, in [0, 1); BLIP-2's."""
        contrast_weight: float = 1.0
        """Of the contrast; 0 leaves it out."""
        match_weight: float = 1.0
        """Of the matching of pairs and hard wrong pairs; 0 leaves it out."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(0, "contrast_weight", "match_weight")
                check.above(0, "target_temperature")
                check.share_below_one("label_smoothing")
                idle = not self.contrast_weight and not self.match_weight
                nothing = "is 0, and so is match_weight: nothing to learn"
                check.refuse(idle, "contrast_weight", nothing, "match_weight")

    config: Config
    generates = False

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """`findings` (B, F) float32: what the labeller reads in each text."""
        known = vocabulary_of(self.config.vocabulary)
        return {
            "findings": torch.stack(
                [findings_of(reference_of(s["turns"]), known) for s in samples]
            ),
        }

    def count(self, batch: Batch) -> int:
        """Rows."""
        return sum(bool(name) for name in batch["sample_id"])

    def loss(self, model: Any, batch: Batch) -> Output:
        """Summed over rows; those without an image bring their text alone."""
        found: Aligned = model(batch)
        rows = torch.zeros(len(batch["sample_id"]), device=found.similarity.device)
        if batch["media_inputs"] and len(rows) > 1:
            own = self.config.contrast_weight * self.contrast(found, batch["extra"]["findings"])
            own = own + self.config.match_weight * self.matched(found)
            rows = rows.index_add(0, found.rows, own)
        unused = found.similarity.sum() + found.matched.sum() + found.scale
        counted = torch.tensor([int(bool(n)) for n in batch["sample_id"]], device=rows.device)
        return Output(loss=rows.sum() + 0 * unused, row_loss=rows.detach(), num_targets=counted)

    def contrast(self, found: Aligned, findings: Tensor) -> Tensor:
        """(R,) mean of the loss from each image to the texts and back."""
        logits = found.similarity * found.scale
        target = torch.zeros_like(logits)
        target[torch.arange(len(found.rows)), found.rows] = 1
        back = target.T
        if self.config.matching == "semantic":
            length = functional.normalize(findings.to(logits), dim=-1)
            alike = (length[found.rows] @ length.T).maximum(target)
            target = (alike / self.config.target_temperature).softmax(dim=1)
            back = (alike.T / self.config.target_temperature).softmax(dim=1)
        there = self._cross_entropy(logits, target)
        return (there + self._cross_entropy(logits.T, back)[found.rows]) / 2

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        smooth = self.config.label_smoothing
        target = target * (1 - smooth) + smooth / logits.shape[1]
        return -(target * logits.log_softmax(dim=1)).sum(dim=1)

    def matched(self, found: Aligned) -> Tensor:
        """(R,) mean of the binary losses of own pair, wrong text and wrong image."""
        truth = torch.zeros_like(found.matched)
        truth[:, 0] = 1
        each = functional.binary_cross_entropy_with_logits(found.matched, truth, reduction="none")
        return each.mean(dim=1)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Nothing but the loss, which the runner takes."""
        return []
