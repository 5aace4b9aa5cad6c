"""Contrastive training of a vision encoder on images and their texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch, Sample, reference_text
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import Output
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.vision.image_text import Pair, code_id, code_parts
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.vocabulary import Vocabulary, get_vocabulary

_binary_cross_entropy = functional.binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Blend:
    """Mixup of a batch: image i is ``weight * image[i] + (1 - weight) * image[partner[i]]``."""

    weight: float
    partner: Tensor  # (R,) int64


@registry.register_task("image_text_contrastive")
class ImageTextContrastive(BaseTask):
    """Semantic matching as in MedCLIP or pair matching as in CLIP, plus a loss on findings."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of the losses."""

        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Vocabulary whose labeller reads findings in texts."""
        matching: Literal["semantic", "pairs"] = "semantic"
        """`semantic`: an image matches every text of the batch in proportion to the similarity of
        their findings (Wang et al. 2022, MedCLIP). `pairs`: an image matches only its own text
        (InfoNCE; Radford et al. 2021, CLIP)."""
        matching_weight: float = 1.0
        """Weight of the matching loss; 0 disables it."""
        target_temperature: float = 0.2
        """`semantic`: divisor of the similarities (cosines of findings, in [0, 1]) before the
        softmax. MedCLIP's value of 1 makes all targets nearly equal."""
        label_weight: float = 1.0
        """Weight of the loss of the findings head, summed over findings and divided by 10; 0
        disables it."""
        code_weight: float = 0.0
        """Weight of the loss on the corpus's codes (`fields.codes`), each heading alone and with
        its qualifiers, summed and divided by 10; studies without codes are not counted."""
        mixup: float = 0.0
        """Alpha of mixup (Zhang et al. 2018), applied to the images and targets of a batch; 0
        disables it."""

        def __post_init__(self) -> None:
            weights = ("matching_weight", "label_weight", "code_weight")
            with Checks(self) as check:
                check.at_least(0, *weights, "mixup")
                check.above(0, "target_temperature")
                idle = not any(getattr(self, name) for name in weights)
                nothing = "is 0, as are label_weight and code_weight, so there is nothing to learn"
                check.refuse(idle, "matching_weight", nothing, *weights)

    config: Config
    generates = False
    loss_unit = "nats per row"

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return the targets of the losses.

        `findings` (B, F) float32: 1 for findings that the labeller affirms or suspects in the text.
        `codes` (B, K) int64: ids of the study's codes, padded with 0.
        """
        vocabulary = get_vocabulary(self.config.vocabulary)
        targets = {
            "findings": torch.stack(
                [findings_of(reference_text(s["turns"]), vocabulary) for s in samples]
            ),
        }
        if self.config.code_weight:
            ids = [
                torch.tensor(
                    [code_id(p) for p in sorted(code_parts(s["meta"].get("codes") or ()))],
                    dtype=torch.long,
                )
                for s in samples
            ]
            targets["codes"] = pad_sequence(ids, batch_first=True)
        return targets

    def count_targets(self, batch: Batch) -> int:
        """Return the number of rows."""
        return sum(bool(name) for name in batch["sample_id"])

    def loss(self, model: Any, batch: Batch) -> Output:
        """Sum the loss over rows; a row without an image only contributes its text to others."""
        batch, blend = self._mix_images(batch, model.training)
        pair = model(batch)
        rows = torch.zeros(len(batch["sample_id"]), device=pair.text.device)
        if len(pair.rows) and "findings" in batch["extra"]:
            rows = rows.index_add(0, pair.rows, self._row_loss(pair, batch["extra"], blend))
        # Parameters need a gradient even without images, because other processes have one.
        unused = pair.text.sum() + pair.findings.sum() + pair.codes.sum()
        unused = unused + pair.image.sum() + pair.scale
        loss = rows.sum() + 0 * unused
        targets = torch.tensor([int(bool(n)) for n in batch["sample_id"]], device=rows.device)
        return Output(loss=loss, row_loss=rows.detach(), num_targets=targets)

    def _row_loss(self, pair: Pair, extra: dict[str, Tensor], blend: Blend | None) -> Tensor:
        """Return the loss (R,) of each row with an image."""
        config, truth = self.config, extra["findings"].to(pair.text)
        loss = torch.zeros(len(pair.rows), device=pair.text.device)
        if config.matching_weight:
            loss = loss + config.matching_weight * self.matching_loss(pair, truth, blend)
        if config.label_weight:
            target = _mix(truth[pair.rows], blend)
            losses = _binary_cross_entropy(pair.findings, target, reduction="none")
            loss = loss + config.label_weight / 10 * losses.sum(dim=1)
        if config.code_weight and "codes" in extra:
            ids = extra["codes"].to(pair.code_ids)[pair.rows]
            present = (ids.unsqueeze(-1) == pair.code_ids).any(dim=1).float()
            # A mixed image counts in proportion to its coded parts; only their targets are used.
            coded = _mix((ids > 0).any(dim=1).float(), blend)
            target = _mix(present, blend) / coded.clamp(min=1e-6).unsqueeze(1)
            losses = _binary_cross_entropy(
                pair.codes, target, reduction="none", pos_weight=pair.code_weight
            )
            loss = loss + config.code_weight / 10 * coded * losses.sum(dim=1)
        return loss

    def _mix_images(self, batch: Batch, training: bool) -> tuple[Batch, Blend | None]:
        """Apply mixup in training, unless some row does not have exactly one image."""
        pixels = batch["media_inputs"].get("pixel_values")
        if pixels is None or not (training and self.config.mixup):
            return batch, None
        if 0 in images_per_row(batch) or len(pixels) != len(batch["input_ids"]):
            return batch, None
        weight = float(torch.distributions.Beta(self.config.mixup, self.config.mixup).sample())
        partner = torch.randperm(len(pixels)).to(pixels.device)
        mixed = pixels * weight + pixels[partner] * (1 - weight)
        return {**batch, "media_inputs": {"pixel_values": mixed}}, Blend(weight, partner)

    def matching_loss(self, pair: Pair, truth: Tensor, blend: Blend | None = None) -> Tensor:
        """Return the mean of the image-to-text and text-to-image losses (R,) of rows with an image.

        Args:
            pair: Embeddings of images and texts.
            truth: (B, F) findings of the texts, 0 or 1.
            blend: Mixup of the images, if any.
        """
        logits = pair.scale * (pair.image @ pair.text.T).float()  # (R, B)
        paired = torch.zeros_like(logits)
        paired[torch.arange(len(pair.rows)), pair.rows] = 1
        if self.config.matching == "pairs":
            text_target = _mix(paired, blend)
            image_target = text_target.T / text_target.T.sum(dim=1, keepdim=True).clamp(min=1e-6)
        else:
            unit = functional.normalize(truth, dim=-1)
            similarity = _mix((unit[pair.rows] @ unit.T).float().maximum(paired), blend)
            text_target = (similarity / self.config.target_temperature).softmax(dim=1)
            image_target = (similarity.T / self.config.target_temperature).softmax(dim=1)
        to_text = -(text_target * logits.log_softmax(dim=1)).sum(dim=1)
        to_image = -(image_target * logits.T.log_softmax(dim=1)).sum(dim=1)
        return (to_text + to_image[pair.rows]) / 2

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Return no scores; the runner reports the loss, and `xraygpt.probe` tests the encoder."""
        return []


def _mix(rows: Tensor, blend: Blend | None) -> Tensor:
    """Apply mixup to values (R, …) of each image."""
    if blend is None:
        return rows
    return rows * blend.weight + rows[blend.partner] * (1 - blend.weight)


def findings_of(text: str, vocabulary: Vocabulary) -> Tensor:
    """Return (F,) float32: 1 for each finding that a text affirms or suspects."""
    positive = vocabulary.positive(text)
    return torch.tensor([float(name in positive) for name in vocabulary.findings])
