"""Base class of tasks. A task has no loop, no device and no paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from xraygpt.common.registry import TASKS, Plugin, Registry
from xraygpt.datasets.base import Batch, Sample
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.verdicts import Kind, Question
from xraygpt.models.base import BaseModel, Generation, Output
from xraygpt.prompting.renderer import IGNORE_INDEX
from xraygpt.tasks.payload import (
    Answer,
    LabelledBox,
    Prediction,
    payload_notes,
    prediction_text,
)

__all__ = ["Answer", "BaseTask", "CaseDisplay", "Comparison", "Prediction"]

CONTROLS = ("shuffled", "blank", "mirrored", "no_image", "most_common", "nearest")


@dataclass(frozen=True)
class Comparison:
    """Readable names of the items that an answer and its reference share or disagree on."""

    agreed: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class CaseDisplay:
    """What the result page shows for one answer.

    Attributes:
        prediction: Text of the prediction.
        reference: Text of the reference.
        boxes: Predicted boxes, drawn on the images.
        reference_boxes: Ground-truth boxes, drawn in another colour.
        mask: Predicted classes, (H, W) uint8, outlined on the first image.
        reference_mask: Ground-truth classes, outlined in another colour.
        notes: Sentences shown under the prediction.
    """

    prediction: str
    reference: str = ""
    boxes: Sequence[LabelledBox] = ()
    reference_boxes: Sequence[LabelledBox] = ()
    mask: np.ndarray | None = None
    reference_mask: np.ndarray | None = None
    notes: Sequence[str] = ()


class BaseTask(Plugin):
    """Decides what a model is asked and how its answers are scored."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings common to all tasks."""

        kind: ClassVar[Registry] = TASKS

        generate: Generation = field(default_factory=Generation)
        """How answers are decoded in evaluation."""

    config: Config
    uses_images = True
    shuffle_per_image = False
    """Whether the shuffled control uses the same other image for all questions about an image."""
    routes_questions = False
    """Whether questions that a classifier answers better, or that the model was not trained on, are
    not passed to the language model (`xraygpt.answering`)."""
    page_title = "predictions"
    """What the page of `predict.py` is titled."""
    generates = True
    """Whether evaluation decodes answers; otherwise it only computes the loss."""
    controls: ClassVar[tuple[str, ...]] = CONTROLS
    """Controls that make sense for this task."""
    default_controls: ClassVar[tuple[str, ...]] = ("shuffled", "blank", "most_common", "nearest")
    """Controls that run unless the configuration names others."""

    deciding_scores: ClassVar[Mapping[str, str]] = {}
    """Scores that decide whether a model reads its images, by name, with their names in words. The
    first one that could be computed counts; without any, the loss decides. Higher is better."""
    answer_noun: ClassVar[str] = "answer"
    """What sentences about this task's answers call them."""
    judges: ClassVar[tuple[Kind, ...]] = ()
    """Judges that suit the task; see `judge_questions`."""
    loss_unit: ClassVar[str] = "nats per target token"
    """Unit of the loss, which is divided by `count_targets`."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.left_out: dict[str, str] = {}
        """Reasons, by name, why the last `score` could not compute some scores."""

    @property
    def name(self) -> str:
        """The name under which the task is registered."""
        return TASKS.name_of(type(self))

    def fit(self, training: Callable[[], Sequence[str]]) -> None:
        """Compute what scoring needs from the training answers; nothing by default."""

    def fitted_state(self) -> dict[str, object]:
        """Return the result of `fit`, which is saved as JSON next to the predictions."""
        return {}

    def load_fitted_state(self, state: dict[str, Any]) -> None:
        """Restore the result of `fitted_state`."""

    def go_offline(self) -> None:
        """Disable all network access; used when re-scoring a folder from another machine."""

    def extra(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return tensors (B, …) that the loss needs in addition to tokens and images."""
        return {}

    def count_targets(self, batch: Batch) -> int:
        """Return the divisor of the summed loss; by default the number of target tokens."""
        return int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())

    def loss(self, model: BaseModel, batch: Batch) -> Output:
        """Return the summed loss and the number of targets; the runner divides once."""
        output: Output = model(batch)
        return output

    def predict(self, model: BaseModel, prompts: Batch) -> Sequence[Answer | str]:
        """Answer each row of a left-padded batch; a plain string is an answer without payload."""
        return model.generate(prompts, self.config.generate)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute every metric of this task with its sample count and interval."""
        raise NotImplementedError

    def judge_questions(self, kind: Kind, predictions: Sequence[Prediction]) -> Iterator[Question]:
        """Yield what a judge is asked about the answers of one condition; nothing by default.

        Args:
            kind: One of `judges`.
            predictions: The answers.
        """
        yield from ()

    def compare(self, prediction: Prediction) -> Comparison:
        """Return what an answer gets right and wrong; empty if the task cannot tell."""
        return Comparison()

    def display(self, prediction: Prediction) -> CaseDisplay:
        """Return what the result page shows for one answer."""
        return CaseDisplay(
            prediction_text(prediction),
            prediction.reference,
            boxes=prediction.payload.get("boxes", ()),
            notes=payload_notes(prediction),
        )


def loss_unit(task: Any) -> str:
    """Return the unit of the loss of a task.

    Args:
        task: The section `run.task` of a saved configuration, or the name of the task. A task that
            is not known, such as a plug-in that is not imported, has the unit of `BaseTask`.
    """
    name = str(task.get("name") if isinstance(task, dict) else task)
    return str(TASKS.get(name).loss_unit if name in TASKS else BaseTask.loss_unit)
