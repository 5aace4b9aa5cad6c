"""Answers questions with a model and a task, whichever program asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch

from xraygpt.answering import wording
from xraygpt.answering.routes import Kind, Route, find_route, normalise_question
from xraygpt.common.distributed import to_device
from xraygpt.datasets.base import Batch, Sample
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import Media
from xraygpt.models.base import BaseModel, Bonus
from xraygpt.models.capabilities import PredictsFindings, supports
from xraygpt.models.findings import PredictedFinding
from xraygpt.prompting.content import IMAGE, Turn, strip_marks
from xraygpt.tasks.base import BaseTask
from xraygpt.tasks.payload import Answer, Payload, as_answers
from xraygpt.tasks.plan import Plan, describe_sides, encode_once, plan_question
from xraygpt.tasks.questions import replace_questions, yes_probability
from xraygpt.tasks.report_review import finding_payload, report_payload
from xraygpt.vocabulary import get_vocabulary


@dataclass(frozen=True)
class Prepared:
    """A question of a conversation, ready for the language model or already answered.

    Attributes:
        question: Text for the language model.
        kind: Which part of the model answers.
        caption: Predicted findings, placed next to the last image.
        bonus: Scores candidates, in addition to their agreement with each other.
        answer: The answer, if the language model is not needed.
        findings: The findings predicted from the images.
    """

    question: str
    kind: Kind = Kind.FREE
    caption: str = ""
    bonus: Bonus | None = None
    answer: Answer | None = None
    findings: Sequence[PredictedFinding] = field(default_factory=list)


class Answerer:
    """Answers questions about studies.

    Args:
        model: Model on its device, in evaluation mode.
        task: Task that generates the answers of the language model.

    Attributes:
        abilities: What the model was trained to do.
        predictable: Findings whose probability can be computed.
    """

    def __init__(self, model: BaseModel, task: BaseTask) -> None:
        self.model, self.task, self.abilities = model, task, model.abilities
        self.plan: Plan | None = getattr(task.config, "plan", None)
        name = getattr(task.config, "vocabulary", self.abilities.vocabulary)
        self.vocabulary = get_vocabulary(name)
        has_classifier = supports(model, PredictsFindings)
        self._classifier = cast("PredictsFindings", model) if has_classifier else None
        names: Sequence[str] = self.abilities.findings
        if self._classifier is not None:
            names = self._classifier.predictable_findings()
        askable = set(self.vocabulary.askable_findings)
        self.predictable = [name for name in names if name in askable]
        self.collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)

    @property
    def report_prompt(self) -> str:
        """The model's own prompt for a report; empty if it has none."""
        prompts = self.model.renderer.prompts
        return " ".join(strip_marks(prompts[0]).split()) if prompts else ""

    def example_questions(self) -> list[str]:
        """Return questions to offer, all of which the model can answer."""
        return [
            question
            for question in self.vocabulary.example_questions
            if self.route(question, 1).kind is not Kind.UNSUPPORTED
        ]

    def route(self, question: str, num_media: int) -> Route:
        """Decide how a question about this many media is answered."""
        if not self.task.routes_questions:
            return Route(Kind.FREE)
        return find_route(
            question,
            num_media,
            self.abilities,
            self.vocabulary,
            prompts=self.model.renderer.prompts,
            predictable=self.predictable,
        )

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        """Answer one question about each study.

        Args:
            samples: The studies; the last user turn of each is the question.

        Raises:
            DataError: A sample does not fit into the model's context.
        """
        answers: list[Answer | None] = [None] * len(samples)
        generated: list[int] = []
        for i, sample in enumerate(samples):
            question, media = _question_of(sample), sample["media"]
            route = self.route(question, len(media))
            if route.kind.is_generated or self._needs_report(route):
                generated.append(i)
            else:
                answers[i] = self._answer_directly(route, question, media)
        for i, answer in zip(
            generated, self._generate([samples[i] for i in generated]), strict=True
        ):
            answers[i] = answer
        return [answer for answer in answers if answer is not None]

    def prepare(self, question: str, media: Sequence[Media], report: str = "") -> Prepared:
        """Prepare a question of a conversation: plan the report, or answer without the LLM.

        Args:
            question: The question; empty asks for the report.
            media: All media of the conversation.
            report: The report of these media, if the conversation contains one.
        """
        route = self.route(question, len(media))
        if route.kind is Kind.FREE:
            return Prepared(question)
        if route.kind is Kind.REPORT:
            return self._prepare_report(media, question)
        if self._needs_report(route):
            if not report:
                report = self._generate([make_sample(media, "")])[0].text
            text = wording.from_report(route.findings, report, self.vocabulary)
            return Prepared(question, route.kind, answer=Answer(text))
        return Prepared(question, route.kind, answer=self._answer_directly(route, question, media))

    def complete(self, text: str, findings: Sequence[PredictedFinding]) -> Payload:
        """Return the payload of a report: findings, probabilities and remarks."""
        return report_payload(text, findings, self.vocabulary)

    def _prepare_report(self, media: Sequence[Media], question: str) -> Prepared:
        prompt, findings = self.report_prompt or question, list[PredictedFinding]()
        if not media or (self._classifier is None and self.plan is None):
            return Prepared(prompt, Kind.REPORT)
        batch = self._batch(media)
        if self._classifier is not None:
            findings = self._askable(next(self._classifier.finding_scores(batch).rows()))
        if self.plan is None:
            return Prepared(prompt, Kind.REPORT, findings=findings)
        planned = plan_question(self.model, self.plan, batch, prompt)
        return Prepared(prompt, Kind.REPORT, planned.caption, planned.bonus, findings=findings)

    def _needs_report(self, route: Route) -> bool:
        return route.kind is Kind.FINDINGS and not self.predictable

    def _generate(self, samples: Sequence[Sample]) -> list[Answer]:
        """Answer with the language model; questions about findings are answered from the report."""
        if not samples:
            return []
        routes = [self.route(_question_of(s), len(s["media"])) for s in samples]
        asked = [
            make_sample(s["media"], "", s) if r.kind is not Kind.FREE else s
            for s, r in zip(samples, routes, strict=True)
        ]
        prompts = self.collate.prompts(asked)
        prompts["task"] = self.task.name
        batch = to_device(prompts, self.model.device)
        answers = as_answers(self.task.predict(self.model, batch))
        return [
            Answer(wording.from_report(route.findings, answer.text, self.vocabulary))
            if route.kind is Kind.FINDINGS
            else answer
            for answer, route in zip(answers, routes, strict=True)
        ]

    def _answer_directly(self, route: Route, question: str, media: Sequence[Media]) -> Answer:
        """Answer without generating text."""
        if route.kind is Kind.NO_IMAGE:
            return Answer(wording.no_image(self.abilities))
        if route.kind is Kind.UNSUPPORTED:
            text = wording.unsupported(
                normalise_question(question), self.abilities, self.predictable, self.vocabulary
            )
            return Answer(text)
        if self._classifier is None:
            findings, sides = self._ask_llm(route.findings or self.predictable, media), {}
        else:
            scores = self._classifier.finding_scores(self._batch(media))
            findings = self._askable(next(scores.rows()))
            sides = describe_sides(scores, self.vocabulary)[0]
        if route.kind is Kind.OVERVIEW:
            text = wording.overview(normalise_question(question), findings, sides, self.vocabulary)
        else:
            asked = [finding for finding in findings if finding.name in route.findings]
            text = wording.finding_answer(
                normalise_question(question), asked, sides, self.vocabulary
            )
        return Answer(text, finding_payload(findings))

    def _askable(self, findings: Sequence[PredictedFinding]) -> list[PredictedFinding]:
        return [finding for finding in findings if finding.name in self.predictable]

    def _ask_llm(self, names: Sequence[str], media: Sequence[Media]) -> list[PredictedFinding]:
        """Compute P(yes) of the language model for each finding, with the threshold 0.5."""
        prompts = self._batch(media)
        plan = self.plan or Plan()
        findings = []
        for name in names:
            batch = replace_questions(self.model, prompts, [self.vocabulary.question(name)])
            p = float(yes_probability(self.model, batch, plan.yes, plan.no)[0])
            findings.append(PredictedFinding(name, p, 0.5))
        return findings

    @torch.no_grad()
    def _batch(self, media: Sequence[Media]) -> Batch:
        """Build a batch of one study whose images are encoded once for all that is asked."""
        batch = to_device(self.collate.prompts([make_sample(media, "?")]), self.model.device)
        return encode_once(self.model, batch)


def make_sample(media: Sequence[Media], question: str, like: Sample | None = None) -> Sample:
    """Build a sample that asks one question about media.

    Args:
        media: The media of the study.
        question: The question; empty asks for the report with the model's prompt.
        like: Sample whose ids are copied.
    """
    marks = " ".join([IMAGE] * len(media))
    return Sample(
        sample_id=like["sample_id"] if like else "",
        study_id=like["study_id"] if like else "",
        media=list(media),
        turns=[Turn(role="user", text=f"{marks} {question}".strip())],
        meta=like["meta"] if like else {},
        rng_key=like["rng_key"] if like else "",
    )


def _question_of(sample: Sample) -> str:
    texts = [turn["text"] for turn in sample["turns"] if turn["role"] == "user"]
    return strip_marks(texts[-1]) if texts else ""
