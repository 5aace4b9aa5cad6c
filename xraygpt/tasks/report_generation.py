"""Report generation, and training on short texts in the first stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.registry import VOCABULARIES, registry
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch
from xraygpt.metrics.coco import coco_scores
from xraygpt.metrics.echovlm import load_echovlm_rules
from xraygpt.metrics.phantom_reports import phantom_report_scores
from xraygpt.metrics.protocols import R2Gen
from xraygpt.metrics.reports import report_scores
from xraygpt.metrics.statistics import Score
from xraygpt.metrics.verdicts import Kind, Question
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import PredictsFindings, require, supports
from xraygpt.models.findings import PredictedFinding
from xraygpt.tasks import plan
from xraygpt.tasks.base import Answer, BaseTask, Comparison, Prediction
from xraygpt.tasks.clinical import ClinicalMetrics, ClinicalScorer
from xraygpt.tasks.judged import judged_scores, report_key
from xraygpt.tasks.payload import Payload
from xraygpt.tasks.report_review import report_payload
from xraygpt.tasks.trait_scoring import TraitSettings, sample_traits, score_traits
from xraygpt.vocabulary import get_vocabulary


@registry.register_task("report_generation")
class ReportGeneration(BaseTask):
    """Writes the report, which is scored by text overlap and by the findings it names."""

    page_title = "AI drafts"

    @dataclass(kw_only=True)
    class Config(BaseTask.Config):
        """Settings of report generation."""

        vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
        """Vocabulary whose labeller reads findings in reports and codes."""
        protocol: Literal["r2gen"] | None = None
        """Tokenization for the COCO scores. `r2gen`: as published for IU X-ray, cut to 60 words and
        with words that are rare in the training reports replaced as unknown; null: all words."""
        plan: plan.Plan | None = None
        """Decide on findings first and pass them to the model in the prompt; for models trained
        with `findings_in_prompt`. null asks for the report directly."""
        meteor: bool = False
        """Whether to compute METEOR, which starts a Java program for every condition."""
        clinical: ClinicalMetrics = field(default_factory=ClinicalMetrics)
        """Model weights for BERTScore, CheXbert, RadGraph, RadCliQ and GREEN."""
        traits: TraitSettings = field(default_factory=TraitSettings)
        """Scores of traits, for vocabularies that have them, such as `echo`."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                alone = self.traits.samples and not get_vocabulary(self.vocabulary).traits
                why = f"needs a vocabulary with traits; {self.vocabulary} has none"
                check.refuse(alone, "traits.samples", why, "vocabulary")

    config: Config
    routes_questions = True
    answer_noun = "report"
    judges = ("green", "crimson")
    deciding_scores: ClassVar[Mapping[str, str]] = {
        "drawn_macro_F1": "macro F1 of findings",
        "traits_balanced_accuracy": "mean balanced accuracy of traits",
        "frequent_coding_macro_F1": "macro F1 of findings",
        "frequent_text_macro_F1": "macro F1 of findings",
        "findings_text_F1": "micro F1 of findings",
        "ROUGE-L": "ROUGE-L",  # for corpora in which the labeller finds nothing
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.protocol = R2Gen(None, None)
        self.clinical = ClinicalScorer(config.clinical)

    def predict(self, model: BaseModel, prompts: Batch) -> list[Answer]:
        """Write one report per row, following the plan if there is one."""
        prompts, bonus = plan.encode_once(model, prompts), None
        questions = prompts["question"]
        findings = self._predict_findings(model, prompts)
        if self.config.plan is not None:
            prompts, bonus = plan.add_plan(model, prompts, self.config.plan)
        texts = model.generate(prompts, self.config.generate, bonus)
        vocabulary = get_vocabulary(self.config.vocabulary)
        samples = sample_traits(
            model, prompts, self.config.generate, self.config.traits, vocabulary
        )
        is_report = plan.standard_questions(model)
        payloads = [
            report_payload(text, row, vocabulary) if question in is_report else Payload()
            for text, row, question in zip(texts, findings, questions, strict=True)
        ]
        for payload, sampled in zip(payloads, samples, strict=True):
            if sampled:
                payload["trait_samples"] = sampled
        return [
            Answer(text, payload, prompt=prompt if prompt != question else "")
            for text, payload, question, prompt in zip(
                texts, payloads, questions, prompts["question"], strict=True
            )
        ]

    def _predict_findings(self, model: BaseModel, prompts: Batch) -> list[list[PredictedFinding]]:
        """Return each row's findings by the model's classifier; empty lists without one."""
        if not supports(model, PredictsFindings) or not prompts["media_inputs"]:
            return [[] for _ in prompts["question"]]
        names = get_vocabulary(self.config.vocabulary).askable_findings
        rows = require(model, PredictsFindings).finding_scores(prompts).rows()
        return [[finding for finding in row if finding.name in names] for row in rows]

    def fit(self, training: Callable[[], Sequence[str]]) -> None:
        """Collect the protocol's word list from the training reports.

        Raises:
            InputError: The rules for echovlm's average are invalid.
        """
        if self.config.traits.echovlm_rules is not None:
            load_echovlm_rules(self.config.traits.echovlm_rules)  # before anything is decoded
        if self.config.protocol == "r2gen":
            self.protocol = R2Gen.fit(training())

    def fitted_state(self) -> dict[str, Any]:
        """Return the protocol's word list."""
        return {"words": self.protocol.as_row()}

    def load_fitted_state(self, state: dict[str, Any]) -> None:
        """Restore the protocol's word list."""
        self.protocol = R2Gen.from_row(state["words"])

    def go_offline(self) -> None:
        """Disable the judge of GREEN."""
        settings = replace(self.config.clinical, judge_url=None, judge_model=None)
        self.clinical = ClinicalScorer(settings)

    def score(self, predictions: Sequence[Prediction]) -> list[Score]:
        """Compute BLEU, ROUGE, COCO and clinical scores, and scores for findings by text and codes.

        Predictions for phantoms are also compared with the findings drawn in them.
        """
        texts, references = [p.prediction for p in predictions], [p.reference for p in predictions]
        studies = [p.study_id for p in predictions]
        scores = report_scores(
            texts,
            references,
            [p.meta.get("codes") for p in predictions],
            studies,
            get_vocabulary(self.config.vocabulary),
        )
        coco, coco_left_out = coco_scores(
            texts, references, self.protocol, studies, meteor=self.config.meteor
        )
        clinical, clinical_left_out = self.clinical.score(texts, references, studies)
        traits, traits_left_out = score_traits(
            predictions, self.config.traits, get_vocabulary(self.config.vocabulary)
        )
        judged, judged_left_out = judged_scores(predictions)
        scores += coco + clinical + traits
        # A judge that runs while scoring and stored verdicts may both give GREEN.
        scores += [score for score in judged if score.name not in {s.name for s in clinical}]
        self.left_out = coco_left_out | clinical_left_out | traits_left_out | judged_left_out
        if any(score.name == "GREEN" for score in judged):
            self.left_out.pop("GREEN", None)
        if all(_is_phantom(prediction) for prediction in predictions):
            labels = [p.meta["labels"] for p in predictions]
            scores += phantom_report_scores(texts, labels, studies)
        return scores

    def judge_questions(self, kind: Kind, predictions: Sequence[Prediction]) -> Iterator[Question]:
        """Yield each report with its reference."""
        for p in predictions:
            texts = {"reference": p.reference or "(empty)", "candidate": p.prediction or "(empty)"}
            yield Question(report_key(kind, p), texts, p.sample_id)

    def compare(self, prediction: Prediction) -> Comparison:
        """Return the findings that both texts, or only one of them, affirm or suspect."""
        vocabulary = get_vocabulary(self.config.vocabulary)
        predicted = vocabulary.positive(prediction.prediction)
        reference = vocabulary.positive(prediction.reference)
        return Comparison(
            sorted(predicted & reference),
            sorted(reference - predicted),
            sorted(predicted - reference),
        )


def _is_phantom(prediction: Prediction) -> bool:
    """Return whether a prediction is for a drawn chest X-ray with known findings."""
    source = str(prediction.meta.get("source", ""))
    return source.startswith("SYNTHETIC") and "labels" in prediction.meta


@registry.register_task("image_text_pretrain")
class ImageTextPretrain(ReportGeneration):
    """First stage, which trains on many short texts; evaluation computes only the loss."""

    @dataclass(kw_only=True)
    class Config(ReportGeneration.Config):
        """Settings of the first stage, which are those of report generation."""

    generates = False
