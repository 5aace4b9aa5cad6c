"""Image -> report, and the first stage's image -> short texts: same loss, same scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xraygpt.common.registry import registry
from xraygpt.metrics.drawn import drawn_scores
from xraygpt.metrics.reports import positive_findings, report_scores
from xraygpt.metrics.statistics import Score
from xraygpt.tasks.base import BaseTask, Comparison, Prediction


@registry.register_task("report_generation")
class ReportGeneration(BaseTask):
    """Write the report; scored by overlap of words and by the findings it names."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of report generation: those of every task."""

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """BLEU, ROUGE, finding labels against the text and the coding; phantoms also as drawn."""
        said, studies = [p.prediction for p in predictions], [p.study_id for p in predictions]
        scores = report_scores(
            said,
            [p.reference for p in predictions],
            [p.meta.get("codes") for p in predictions],
            studies,
        )
        if all(str(p.meta.get("source", "")).startswith("SYNTHETIC") for p in predictions):
            scores += drawn_scores(said, [p.meta["labels"] for p in predictions], studies)
        return scores

    def compare(self, prediction: Prediction) -> Comparison:
        """Findings that both texts affirm or suspect, and those only one of them does."""
        said, true = (positive_findings(t) for t in (prediction.prediction, prediction.reference))
        return Comparison(sorted(said & true), sorted(true - said), sorted(said - true))


@registry.register_task("image_text_pretrain")
class ImageTextPretrain(ReportGeneration):
    """Learn to read images from many short texts; evaluation takes the loss and decodes nothing."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of the first stage: those of every task."""

    generates = False
