"""Image -> report, and the first stage's image -> short texts: same loss, same scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from xraygpt.common.config import Choice
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch
from xraygpt.metrics.coco import coco_scores
from xraygpt.metrics.drawn import drawn_scores
from xraygpt.metrics.protocols import R2Gen
from xraygpt.metrics.reports import report_scores
from xraygpt.metrics.statistics import Score
from xraygpt.models.base import BaseModel
from xraygpt.tasks import plan
from xraygpt.tasks.base import BaseTask, Comparison, Prediction
from xraygpt.tasks.clinical import Clinical, ClinicalMetrics
from xraygpt.vocabulary import vocabulary_of


@registry.register_task("report_generation")
class ReportGeneration(BaseTask):
    """Write the report; scored by overlap of words and by the findings it names."""

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of report generation."""

        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Reads findings in reports and codes."""
        protocol: Literal["r2gen"] | None = None
        """How the COCO scores cut texts into words. `r2gen`: as published for IU X-ray, rare words
        of the training reports unknown, at most 60 words; null: the same words, all and uncut."""
        plan: plan.Plan | None = None
        """First ask the model about each finding, then let it write up what it holds likely; for
        models trained with `findings_in_prompt`. null asks for the report alone."""
        meteor: bool = False
        """Take METEOR too; it starts a Java program for every condition."""
        clinical: ClinicalMetrics = field(default_factory=ClinicalMetrics)
        """Weights of BERTScore, CheXbert, RadGraph, RadCliQ and GREEN."""

    config: Config

    def predict(self, model: BaseModel, prompts: Batch) -> list[str]:
        """One answer per row; where no question of the user's own is asked, after the plan."""
        self.asked, bonus = [], None
        if self.config.plan is not None:
            prompts, bonus = plan.with_plan(model, prompts, self.config.plan)
            self.asked = prompts["question"]
        return model.generate(prompts, self.config.generate, bonus)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.words = R2Gen(None, None)
        self.clinical = Clinical(config.clinical)

    def fit(self, training: Callable[[], Sequence[str]]) -> None:
        """The protocol's vocabulary."""
        if self.config.protocol == "r2gen":
            self.words = R2Gen.fit(training())

    def fitted(self) -> dict[str, Any]:
        """The words of the protocol."""
        return {"words": self.words.as_row()}

    def load_state(self, fitted: dict[str, Any]) -> None:
        """The words of the protocol, as `fitted` gave them."""
        self.words = R2Gen.from_row(fitted["words"])

    def go_offline(self) -> None:
        """No judge is asked."""
        settings = replace(self.config.clinical, judge_url=None, judge_model=None)
        self.clinical = Clinical(settings)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """BLEU, ROUGE, COCO's, findings against the text and the coding; phantoms also as drawn."""
        said, studies = [p.prediction for p in predictions], [p.study_id for p in predictions]
        scores = report_scores(
            said,
            [p.reference for p in predictions],
            [p.meta.get("codes") for p in predictions],
            studies,
            vocabulary_of(self.config.vocabulary),
        )
        coco, self.left_out = coco_scores(
            said,
            [p.reference for p in predictions],
            self.words,
            studies,
            meteor=self.config.meteor,
        )
        clinical, without = self.clinical.score(said, [p.reference for p in predictions], studies)
        scores += coco + clinical
        self.left_out |= without
        if all(str(p.meta.get("source", "")).startswith("SYNTHETIC") for p in predictions):
            scores += drawn_scores(said, [p.meta["labels"] for p in predictions], studies)
        return scores

    def compare(self, prediction: Prediction) -> Comparison:
        """Findings that both texts affirm or suspect, and those only one of them does."""
        known = vocabulary_of(self.config.vocabulary)
        said, true = (known.positive(t) for t in (prediction.prediction, prediction.reference))
        return Comparison(sorted(said & true), sorted(true - said), sorted(said - true))


@registry.register_task("image_text_pretrain")
class ImageTextPretrain(ReportGeneration):
    """Learn to read images from many short texts; evaluation takes the loss and decodes nothing."""

    @dataclass(kw_only=True)
    class Config(ReportGeneration.Config):
        """Settings of the first stage: those of report generation."""

    generates = False
