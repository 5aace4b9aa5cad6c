"""A plug-in without text: a network that predicts masks, with its task and its score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch, Sample
from xraygpt.media.masks import mask_to_original, mask_to_processed
from xraygpt.metrics.statistics import Score, mean_score
from xraygpt.models.base import BaseModel, Output
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.processors.image import ImageSpec
from xraygpt.tasks.base import Answer, BaseTask, CaseDisplay, Prediction
from xraygpt.tasks.payload import read_mask


@registry.register_model("tiny_segmenter")
class TinySegmenter(BaseModel):
    """Two convolutions."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """A network without settings."""

    unsupported: Mapping[str, str] = {"chat": "it predicts masks and no text"}

    def __init__(self, config: Any, **_: Any) -> None:
        super().__init__(config)
        self.net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)
        )
        self.media_collator = QueryCollator(1)
        self.image_spec = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=0)

    def forward(self, batch: Batch, return_logits: bool = False) -> Any:
        return self.net(batch["media_inputs"]["pixel_values"])

    def checkpoint_state(self) -> dict[str, Tensor]:
        return dict(self.state_dict())


@registry.register_task("segment")
class Segment(BaseTask):
    """Predicts classes of pixels; scored by Dice."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of every task."""

    shuffle_per_image = True
    controls = default_controls = ("shuffled", "blank", "mirrored")
    deciding_scores: ClassVar[Mapping[str, str]] = {"dice": "Dice"}

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        masks = [mask_to_processed(read_mask(s["meta"]["mask"]), s["media"][0]) for s in samples]
        return {"mask": torch.from_numpy(np.stack(masks)).long()}

    def count_targets(self, batch: Batch) -> int:
        return sum(map(bool, batch["sample_id"]))

    def loss(self, model: Any, batch: Batch) -> Output:
        pixels = nn.functional.cross_entropy(model(batch), batch["extra"]["mask"], reduction="none")
        rows = pixels.mean((1, 2))
        return Output(rows.sum(), rows.detach(), torch.ones(len(rows), dtype=torch.long))

    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        masks = model(prompts).argmax(1).to(torch.uint8).numpy()
        pairs = zip(masks, prompts["originals"], strict=True)
        masks = [mask_to_original(m, o.geometry, o.height, o.width) for m, o in pairs]
        return [Answer(mask=m, payload={"numbers": {"area_px": m.sum()}}) for m in masks]

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        dice = []
        for p in predictions:
            mask, reference = p.mask(), read_mask(p.meta["mask"])
            overlap = 2 * int((mask & reference).sum())
            dice.append(overlap / max(int(mask.sum()) + int(reference.sum()), 1))
        return [mean_score("dice", dice, "class 1", [p.study_id for p in predictions])]

    def display(self, prediction: Prediction) -> CaseDisplay:
        path = prediction.meta.get("mask")
        reference = None if path is None else read_mask(path)
        return CaseDisplay("mask", mask=prediction.mask(), reference_mask=reference)
