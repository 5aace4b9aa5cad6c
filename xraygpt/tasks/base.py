"""What a task offers: what to ask, how to score. It owns no loop, no device and no path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from xraygpt.common.registry import TASKS, Plugin, Registry
from xraygpt.datasets.base import Batch, Sample
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import BaseModel, Generation, Output
from xraygpt.prompting.renderer import IGNORE_INDEX
from xraygpt.tasks.payload import Answer, FoundBox, Prediction, in_words

__all__ = ["Answer", "BaseTask", "Cell", "Comparison", "Prediction"]

CONTROLS = ("shuffled", "blank", "mirrored", "most_common", "nearest")


@dataclass(frozen=True)
class Comparison:
    """How one answer compares with its reference, in names a reader understands."""

    agreed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """What the result page shows of one answer.

    Attributes:
        prediction: In words.
        reference: In words.
        boxes: Predicted, drawn on the pictures.
        reference_boxes: True ones, drawn beside them.
        mask: Predicted classes, (H, W) uint8, drawn over the first picture.
        reference_mask: True ones, drawn beside them.
    """

    prediction: str
    reference: str = ""
    boxes: Sequence[FoundBox] = ()
    reference_boxes: Sequence[FoundBox] = ()
    mask: np.ndarray | None = None
    reference_mask: np.ndarray | None = None


class BaseTask(Plugin):
    """Chooses what is asked of a model and what counts as good."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings of every task."""

        kind: ClassVar[Registry] = TASKS

        generate: Generation = field(default_factory=Generation)
        """How answers are decoded in evaluation."""

    config: Config
    uses_images = True
    whole_studies = False  # whether the control gives all questions of an image the same other one
    generates = True  # whether evaluation decodes answers, or only takes the loss
    controls: ClassVar[tuple[str, ...]] = CONTROLS
    """Controls that make sense for it, see `runners.evaluation`."""
    default_controls: ClassVar[tuple[str, ...]] = ("shuffled", "blank", "most_common", "nearest")
    """Those that are run where a YAML names none."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.left_out: dict[str, str] = {}  # scores the last `score` could not take, and why
        self.asked: list[str] = []  # what the last `predict` asked instead of each row's question

    def fit(self, training: Callable[[], Sequence[str]]) -> None:
        """Take from the training answers what scoring needs; by default nothing."""

    def fitted(self) -> dict[str, object]:
        """What `fit` took, for a JSON file beside the predictions."""
        return {}

    def load_state(self, fitted: dict[str, Any]) -> None:
        """What `fitted` gave, in another process; by default nothing."""

    def go_offline(self) -> None:
        """Ask nobody outside this machine: scoring again a folder of somebody else's."""

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """What the loss wants of the samples beside tokens and images, each (B, …)."""
        return {}

    def count(self, batch: Batch) -> int:
        """How many targets the loss is divided by: tokens of answers."""
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def loss(self, model: BaseModel, batch: Batch) -> Output:
        """Summed loss and number of target tokens; the runner divides once."""
        output: Output = model(batch)
        return output

    def predict(self, model: BaseModel, prompts: Batch) -> Sequence[Answer | str]:
        """One answer per row of a left-padded batch; a text stands for an answer of text alone."""
        return model.generate(prompts, self.config.generate)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Every metric of this task, each with its n and interval."""
        raise NotImplementedError

    def compare(self, prediction: Prediction) -> Comparison:
        """What one answer has right and wrong; nothing where a task cannot say."""
        return Comparison()

    def cell(self, prediction: Prediction) -> Cell:
        """What the result page shows of one answer."""
        return Cell(
            in_words(prediction), prediction.reference, boxes=prediction.payload.get("boxes", ())
        )
