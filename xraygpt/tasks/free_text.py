"""Answers in free text to questions about images and clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from xraygpt.common.registry import registry
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.text import bleu_scores, rouge_scores
from xraygpt.metrics.vqa import normalise, vqa_scores
from xraygpt.models.base import Generation
from xraygpt.tasks.base import BaseTask, Comparison, Prediction


@registry.register_task("free_text")
class FreeText(BaseTask):
    """Questions of any kind, scored by their overlap with the reference and by exact answers."""

    page_title = "answers"

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of free-text answers."""

        generate: Generation = field(default_factory=lambda: Generation(max_new_tokens=256))
        """How answers are decoded in evaluation."""

    config: Config
    deciding_scores: ClassVar[Mapping[str, str]] = {
        "accuracy": "accuracy",
        "ROUGE-L": "ROUGE-L",
    }

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute exact accuracy, BLEU and ROUGE."""
        texts = [p.prediction for p in predictions]
        references = [p.reference for p in predictions]
        studies = [p.study_id for p in predictions]
        exact = vqa_scores(texts, references, [None] * len(texts), studies)
        overlap = [f(texts, references, studies) for f in (bleu_scores, rouge_scores)]
        exact = [score for score in exact if score.n]  # there may be no closed questions
        return [*exact, *overlap[0], *overlap[1]]

    def compare(self, prediction: Prediction) -> Comparison:
        """Return whether the answer is that of the reference, word for word."""
        right = normalise(prediction.prediction) == normalise(prediction.reference)
        return Comparison(agreed=["same answer"]) if right else Comparison(missed=["same answer"])
