"""Images and texts drawn together: the task that makes a vision encoder."""

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
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch, Sample, reference_of
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import Output
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.vision.image_text import Pair, code_id, code_parts
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.vocabulary import Vocabulary, vocabulary_of

_two_way = functional.binary_cross_entropy_with_logits


@dataclass(frozen=True)
class Blend:
    """Image i of a batch is `share` of itself and the rest of image `other[i]`."""

    share: float
    other: Tensor  # (R,) int64


@registry.register_task("image_text_contrastive")
class ImageTextContrastive(BaseTask):
    """Semantic matching as in MedCLIP, or plain pairs as in CLIP; beside it, findings by name."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of the losses."""

        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Reads findings in texts."""
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

        code_weight: float = 0.0
        """Of the loss of the corpus's own codes (`fields.codes`), each heading alone and with its
        sides and places, summed and divided by 10; studies without codes have no part in it."""
        mixup: float = 0.0
        """Alpha of mixup (Zhang et al. 2018): images of a batch are blended in pairs, and what is
        asked of them with them; 0 blends nothing."""

        def __post_init__(self) -> None:
            weights = ("matching_weight", "label_weight", "code_weight")
            with Checks(self) as check:
                check.at_least(0, *weights, "mixup")
                check.above(0, "target_temperature")
                idle = not any(getattr(self, name) for name in weights)
                nothing = "is 0, and so are label_weight and code_weight: nothing to learn"
                check.refuse(idle, "matching_weight", nothing, *weights)

    config: Config
    generates = False

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """What the losses are about.

        `findings` (B, F) float32: what the labeller reads in each text; doubted ones count.
        `codes` (B, K) int64: ids of what the study is coded with, 0 where there are no more.
        """
        known = vocabulary_of(self.config.vocabulary)
        found = {
            "findings": torch.stack(
                [findings_of(reference_of(s["turns"]), known) for s in samples]
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
            found["codes"] = pad_sequence(ids, batch_first=True)
        return found

    def count(self, batch: Batch) -> int:
        """Rows."""
        return sum(bool(name) for name in batch["sample_id"])

    def loss(self, model: Any, batch: Batch) -> Output:
        """Summed over rows; those without an image bring their text alone."""
        batch, blend = self._blended(batch, model.training)
        pair = model(batch)
        rows = torch.zeros(len(batch["sample_id"]), device=pair.text.device)
        if len(pair.rows) and "findings" in batch["extra"]:
            rows = rows.index_add(0, pair.rows, self._row_loss(pair, batch["extra"], blend))
        # A batch without an image still touches every parameter, as other processes' steps do.
        unused = pair.text.sum() + pair.findings.sum() + pair.codes.sum()
        unused = unused + pair.image.sum() + pair.scale
        loss = rows.sum() + 0 * unused
        counted = torch.tensor([int(bool(n)) for n in batch["sample_id"]], device=rows.device)
        return Output(loss=loss, row_loss=rows.detach(), num_targets=counted)

    def _row_loss(self, pair: Pair, extra: dict[str, Tensor], blend: Blend | None) -> Tensor:
        """(R,) of each row with an image."""
        config, truth = self.config, extra["findings"].to(pair.text)
        loss = torch.zeros(len(pair.rows), device=pair.text.device)
        if config.matching_weight:
            loss = loss + config.matching_weight * self.matching(pair, truth, blend)
        if config.label_weight:
            wanted = _mixed(truth[pair.rows], blend)
            each = _two_way(pair.findings, wanted, reduction="none")
            loss = loss + config.label_weight / 10 * each.sum(dim=1)
        if config.code_weight and "codes" in extra:
            ids = extra["codes"].to(pair.code_ids)[pair.rows]
            there = (ids.unsqueeze(-1) == pair.code_ids).any(dim=1).float()
            # A blended image counts as far as its parts were coded, and is asked for those alone.
            coded = _mixed((ids > 0).any(dim=1).float(), blend)
            wanted = _mixed(there, blend) / coded.clamp(min=1e-6).unsqueeze(1)
            each = _two_way(pair.codes, wanted, reduction="none", pos_weight=pair.code_weight)
            loss = loss + config.code_weight / 10 * coded * each.sum(dim=1)
        return loss

    def _blended(self, batch: Batch, training: bool) -> tuple[Batch, Blend | None]:
        """The batch with images blended in pairs, and how; as it was where rows are no images."""
        pixels = batch["media_inputs"].get("pixel_values")
        if pixels is None or not (training and self.config.mixup):
            return batch, None
        if 0 in images_per_row(batch) or len(pixels) != len(batch["input_ids"]):
            return batch, None
        share = float(torch.distributions.Beta(self.config.mixup, self.config.mixup).sample())
        other = torch.randperm(len(pixels)).to(pixels.device)
        mixed = pixels * share + pixels[other] * (1 - share)
        return {**batch, "media_inputs": {"pixel_values": mixed}}, Blend(share, other)

    def matching(self, pair: Pair, truth: Tensor, blend: Blend | None = None) -> Tensor:
        """(R,) of each row with an image: mean of the loss from images to texts and back.

        Args:
            pair: Vectors of both sides.
            truth: (B, F) findings of the texts, 0 or 1.
            blend: How images were blended.
        """
        logits = pair.scale * (pair.image @ pair.text.T).float()  # (R, B)
        own = torch.zeros_like(logits)
        own[torch.arange(len(pair.rows)), pair.rows] = 1
        if self.config.matching == "pairs":
            there = _mixed(own, blend)
            back = there.T / there.T.sum(dim=1, keepdim=True).clamp(min=1e-6)
        else:
            length = functional.normalize(truth, dim=-1)
            alike = _mixed((length[pair.rows] @ length.T).float().maximum(own), blend)
            there = (alike / self.config.target_temperature).softmax(dim=1)
            back = (alike.T / self.config.target_temperature).softmax(dim=1)
        to_text = -(there * logits.log_softmax(dim=1)).sum(dim=1)
        to_image = -(back * logits.T.log_softmax(dim=1)).sum(dim=1)
        return (to_text + to_image[pair.rows]) / 2

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Nothing but the loss, which the runner takes; `xraygpt.probe` measures the encoder."""
        return []


def _mixed(rows: Tensor, blend: Blend | None) -> Tensor:
    """(R, …) of each image -> the same of the blended ones."""
    if blend is None:
        return rows
    return rows * blend.share + rows[blend.other] * (1 - blend.share)


def findings_of(text: str, vocabulary: Vocabulary) -> Tensor:
    """(F,) float32, 1 for each finding the vocabulary reads in a text, affirmed or doubted."""
    found = vocabulary.positive(text)
    return torch.tensor([float(name in found) for name in vocabulary.findings])
