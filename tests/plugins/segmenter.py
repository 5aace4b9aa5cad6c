"""A plug-in: a network that writes masks, its task and its score; no text anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xraygpt.common.registry import registry
from xraygpt.datasets.base import Batch, Sample
from xraygpt.media.masks import mask_back, mask_on
from xraygpt.metrics.statistics import Score, mean_score
from xraygpt.models.base import BaseModel, Output
from xraygpt.models.qformer_llm.query_collator import QueryCollator
from xraygpt.processors.image import ImageSpec
from xraygpt.tasks.base import Answer, BaseTask, Cell, Prediction
from xraygpt.tasks.payload import read_mask


@registry.register_model("tiny_segmenter")
class TinySegmenter(BaseModel):
    """Two convolutions."""

    @dataclass(kw_only=True)
    class Config(BaseModel.Config):
        """A network without settings."""

    unsupported: Mapping[str, str] = {"chat": "it writes masks and no text"}

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
    """Classes of pixels, scored by Dice."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """A task without settings of its own."""

    whole_studies = True
    controls = default_controls = ("shuffled", "blank", "mirrored")

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        masks = [mask_on(read_mask(s["meta"]["mask"]), s["media"][0]) for s in samples]
        return {"mask": torch.from_numpy(np.stack(masks)).long()}

    def count(self, batch: Batch) -> int:
        return sum(map(bool, batch["sample_id"]))

    def loss(self, model: Any, batch: Batch) -> Output:
        each = nn.functional.cross_entropy(model(batch), batch["extra"]["mask"], reduction="none")
        rows = each.mean((1, 2))
        return Output(rows.sum(), rows.detach(), torch.ones(len(rows), dtype=torch.long))

    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        masks = model(prompts).argmax(1).to(torch.uint8).numpy()
        pairs = zip(masks, prompts["originals"], strict=True)
        whole = [mask_back(m, o.geometry, o.height, o.width) for m, o in pairs]
        return [Answer(mask=m, payload={"numbers": {"area_px": m.sum()}}) for m in whole]

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        dice = []
        for p in predictions:
            said, true = p.mask(), read_mask(p.meta["mask"])
            both = 2 * int((said & true).sum())
            dice.append(both / max(int(said.sum()) + int(true.sum()), 1))
        return [mean_score("dice", dice, "class 1", [p.study_id for p in predictions])]

    def cell(self, prediction: Prediction) -> Cell:
        true = prediction.meta.get("mask")
        known = None if true is None else read_mask(true)
        return Cell("mask", mask=prediction.mask(), reference_mask=known)
