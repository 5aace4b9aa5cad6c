"""Visual question answering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from xraygpt.common.registry import registry
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.vqa import normalise, vqa_scores
from xraygpt.models.base import Generation
from xraygpt.tasks.base import BaseTask, Comparison, Prediction


@registry.register_task("vqa")
class Vqa(BaseTask):
    """Answers questions, scored by normalised accuracy overall, for closed and for open ones."""

    page_title = "answers"

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of visual question answering."""

        generate: Generation = field(default_factory=lambda: Generation(max_new_tokens=24))
        """How answers are decoded in evaluation."""
        answer_type: str = "answer_type"
        """Record field whose value is CLOSED or OPEN; list it in `fields.keep`. Without it, a
        question is closed if its answer is yes or no."""

    config: Config
    routes_questions = True
    deciding_scores: ClassVar[Mapping[str, str]] = {"accuracy": "accuracy"}

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute the accuracy over all, closed and open questions."""
        kinds = [p.meta.get(self.config.answer_type) for p in predictions]
        return vqa_scores(
            [p.prediction for p in predictions],
            [p.reference for p in predictions],
            kinds,
            [p.study_id for p in predictions],
        )

    def compare(self, prediction: Prediction) -> Comparison:
        """Return whether the answer is right."""
        right = normalise(prediction.prediction) == normalise(prediction.reference)
        return Comparison(agreed=["right answer"]) if right else Comparison(missed=["right answer"])
