"""The plan of a report: findings the model decides on first, passed to it in the prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import combinations
from typing import Annotated, Any, Literal

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.errors import InputError
from xraygpt.common.registry import VOCABULARIES
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch
from xraygpt.models.base import Bonus
from xraygpt.models.capabilities import FrozenFeatures, PredictsFindings, supports
from xraygpt.models.findings import FindingScores
from xraygpt.processors.text import lacks_word, split_sentences
from xraygpt.prompting.content import strip_marks
from xraygpt.tasks.questions import replace_questions, yes_probability
from xraygpt.tasks.report_review import contradict, named_findings, repeats
from xraygpt.vocabulary import Vocabulary, get_vocabulary
from xraygpt.vocabulary.questions import coded_sides, codes_in_words

CONTRADICTION, FLAW = 0.06, 0.01
"""What a contradiction, and what a repetition or a missing word costs a candidate, in similarity to
the others."""


@dataclass(kw_only=True)
class Plan:
    """How findings are decided before a report is written."""

    by: Literal["answers", "head"] = "answers"
    """Source of the decisions: the LLM's P(yes), or the linear head on the encoder's features
    (`model.finding_head`)."""
    vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
    """Vocabulary that names the findings and words them in questions and prompts."""
    findings: list[str] | None = None
    """Findings to decide on. The model must have been trained on questions about them, or the head
    must predict them. null means all findings that questions can name."""
    threshold: float | None = None
    """Minimum probability of a planned finding. null means the head's own threshold for each
    finding, or 0.5 for the LLM's P(yes)."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """Thresholds for individual findings; the others use `threshold`."""
    yes: str = "yes."
    """The affirmative answer used in training."""
    no: str = "no."
    """The negative answer used in training."""
    agreement: float = 0.0
    """With several candidates (`generate.candidates`): weight of the F1 between the findings that
    a candidate names and the plan, relative to its F1 with the other candidates. If it is not 0,
    contradictions, repetitions and missing words count against a candidate."""

    def __post_init__(self) -> None:
        names = get_vocabulary(self.vocabulary).findings
        unknown = f"is not one of {', '.join(names)}"
        with Checks(self) as check:
            for number, name in enumerate(self.findings or ()):
                check.refuse(name not in names, f"findings.{number}", f"{name} {unknown}")
            check.at_least(0, "agreement")
            check.fraction("threshold")
            for name, value in self.thresholds.items():
                where = f"thresholds.{name}"
                check.refuse(name not in names, where, f"{name} {unknown}")
                check.refuse(not 0 <= value <= 1, where, f"must be in [0, 1], got {value}")

    @property
    def considered_findings(self) -> list[str]:
        """Names of the findings to decide on."""
        if self.findings is not None:
            return self.findings
        return get_vocabulary(self.vocabulary).askable_findings


def predict_findings(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    """Return the texts of the findings predicted for each row, or ``["normal"]`` for none.

    Raises:
        InputError: The plan uses the head, but the model has none.
    """
    prompts = encode_once(model, prompts)
    predict = _findings_by_head if plan.by == "head" else _findings_by_questions
    normal = get_vocabulary(plan.vocabulary).normal
    return [findings or [normal] for findings in predict(model, prompts, plan)]


def encode_once(model: Any, prompts: Batch) -> Batch:
    """Replace pixels by the frozen encoder's features, so that they are encoded only once."""
    media = prompts["media_inputs"]
    if set(media) != {"pixel_values"} or not supports(model, FrozenFeatures):
        return prompts
    return {**prompts, "media_inputs": {"features": model.encode_frozen(media["pixel_values"])}}


def _findings_by_questions(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    findings: list[list[str]] = [[] for _ in prompts["input_ids"]]
    default = 0.5 if plan.threshold is None else plan.threshold
    vocabulary = get_vocabulary(plan.vocabulary)
    for name in plan.considered_findings:
        batch = replace_questions(model, prompts, [vocabulary.question(name)] * len(findings))
        for row, p in enumerate(yes_probability(model, batch, plan.yes, plan.no).tolist()):
            if p >= plan.thresholds.get(name, default):
                findings[row].append(vocabulary.in_words(name))
    return findings


def _findings_by_head(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    if not supports(model, PredictsFindings):
        raise InputError(
            "run.task.plan.by is head, but the model has none; set model.finding_head to the file "
            "written by `python -m xraygpt.probe … --save`"
        )
    if not prompts["media_inputs"]:
        return [[] for _ in prompts["input_ids"]]
    scores = model.finding_scores(prompts)
    thresholds = {
        name: plan.thresholds.get(name, default if plan.threshold is None else plan.threshold)
        for name, default in zip(scores.names, scores.thresholds, strict=True)
        if name in plan.considered_findings
    }
    return describe_findings(scores, get_vocabulary(plan.vocabulary), thresholds)


def describe_findings(
    scores: FindingScores, vocabulary: Vocabulary, thresholds: Mapping[str, float]
) -> list[list[str]]:
    """Describe each finding above its threshold by the likeliest code that implies the finding.

    Args:
        scores: Probabilities for the findings and codes of B studies.
        vocabulary: Vocabulary with these findings.
        thresholds: Minimum probability by finding; findings without one are ignored.

    Returns:
        For each row, the codes as text, for example ``["cardiomegaly, mild"]``, and the names of
        findings that no code implies.

    Raises:
        InputError: A finding is not in the vocabulary.
    """
    unknown = [n for n in scores.names if n not in vocabulary.findings]
    if unknown:
        raise InputError(f"{unknown[0]} in model.finding_head is not in the plan's vocabulary")
    code_findings = [vocabulary.findings_of([code]) for code in scores.codes]
    rows = zip(scores.probabilities.tolist(), scores.code_probabilities.tolist(), strict=True)
    return [
        _describe_row(
            [n for n, p in zip(scores.names, row, strict=True) if p >= thresholds.get(n, math.inf)],
            dict(zip(scores.codes, codes, strict=True)),
            code_findings,
            vocabulary,
        )
        for row, codes in rows
    ]


def describe_sides(scores: FindingScores, vocabulary: Vocabulary) -> list[dict[str, str]]:
    """Return, for each row, the sides of the present findings whose likeliest code has one.

    Args:
        scores: Probabilities for the findings and codes of B studies.
        vocabulary: Vocabulary with these findings.

    Returns:
        For each row, for example ``{"atelectasis": "on the left"}``.
    """
    code_findings = {code: vocabulary.findings_of([code]) for code in scores.codes}
    rows = zip(scores.rows(), scores.code_probabilities.tolist(), strict=True)
    sides: list[dict[str, str]] = []
    for findings, probabilities in rows:
        by_code = dict(zip(scores.codes, probabilities, strict=True))
        row = {}
        for finding in findings:
            matches = [code for code in by_code if finding.name in code_findings[code]]
            best = max(matches, key=by_code.__getitem__, default="")
            side = next(iter(coded_sides([best]).values()), "")
            if finding.is_present and side:
                row[finding.name] = "on both sides" if " and " in side else f"on the {side}"
        sides.append(row)
    return sides


def _describe_row(
    present: Sequence[str],
    codes: Mapping[str, float],
    code_findings: Sequence[set[str]],
    vocabulary: Vocabulary,
) -> list[str]:
    names, probabilities = list(codes), list(codes.values())
    chosen: list[int] = []
    uncoded: list[str] = []
    for name in present:
        matches = [k for k, findings in enumerate(code_findings) if name in findings]
        if any(name in code_findings[k] for k in chosen):
            continue  # implied by the code chosen for another finding
        if matches:
            chosen.append(max(matches, key=probabilities.__getitem__))
        else:
            uncoded.append(vocabulary.in_words(name))
    return sorted([*codes_in_words([names[k] for k in chosen]), *uncoded])


def agreement_bonus(
    prompt_findings: Sequence[Sequence[str]], weight: float, vocabulary: Vocabulary
) -> Bonus:
    """Build a score for how well a report follows the findings in its prompt.

    Each pair of sentences that contradict each other costs `CONTRADICTION`. Each pair that repeat
    each other, and each sentence that lacks a word, costs `FLAW`.

    Args:
        prompt_findings: Texts for each row, for example ``["cardiomegaly, mild"]``; a row without
            any scores 0.
        weight: Score for full agreement.
        vocabulary: Vocabulary whose labeller reads the reports.

    Returns:
        A function of row and text that returns `weight` times the F1 of the named findings, minus
        the costs.
    """
    planned_findings = [
        vocabulary.coded_findings(text.replace(", ", "/") for text in texts)
        for texts in prompt_findings
    ]

    # Candidates share sentences.
    read = lru_cache(10_000)(partial(named_findings, vocabulary=vocabulary))
    is_incomplete = lru_cache(10_000)(lacks_word)

    @lru_cache(100_000)
    def cost(one: str, other: str) -> float:
        """Return what a pair of sentences costs."""
        a, b = read(one), read(other)
        return CONTRADICTION if contradict(a, b) else FLAW * (repeats(a, b) or repeats(b, a))

    def bonus(row: int, text: str) -> float:
        planned, sentences = planned_findings[row], split_sentences(text)
        read_sentences = [read(sentence) for sentence in sentences]
        named = set[str]().union(*(sentence.affirmed for sentence in read_sentences))
        if {sentence.is_normal for sentence in read_sentences} - {None} == {True}:
            named.add(vocabulary.no_finding)
        f1 = 2 * len(named & planned) / (len(named) + len(planned)) if planned else 0.0
        costs = sum(cost(one, other) for one, other in combinations(sentences, 2))
        return weight * f1 - costs - FLAW * sum(map(is_incomplete, sentences))

    return bonus


def add_plan(model: Any, prompts: Batch, plan: Plan) -> tuple[Batch, Bonus | None]:
    """Add the findings that the model predicts to the prompts, next to the images.

    Rows whose question is not one of the model's prompts are unchanged.

    Returns:
        The prompts, and the bonus for answers that follow the plan, or None if the bonus has no
        weight.
    """
    standard = standard_questions(model)
    predicted = predict_findings(model, prompts, plan)
    findings = [
        texts if question in standard else []
        for texts, question in zip(predicted, prompts["question"], strict=True)
    ]
    captions = [_caption(texts) for texts in findings]
    planned = replace_questions(model, prompts, prompts["question"], captions)
    return planned, _bonus(findings, plan)


def standard_questions(model: Any) -> set[str]:
    """Return the texts that ask for a report: the model's prompts, or no text."""
    return {"", *(" ".join(strip_marks(p).split()) for p in model.renderer.prompts)}


@dataclass(frozen=True)
class PlannedQuestion:
    """A question about one study with its plan.

    Attributes:
        question: Text that asks for the report.
        caption: Predicted findings, placed next to the last image.
        bonus: Function that scores how well answers follow the plan; None if it has no weight.
    """

    question: str
    caption: str = ""
    bonus: Bonus | None = None


def plan_question(model: Any, plan: Plan, prompts: Batch, question: str) -> PlannedQuestion:
    """Plan a question about one study exactly as `add_plan` does for a batch.

    Args:
        model: Model with a renderer.
        plan: Settings of the plan.
        prompts: Batch of one row with the study's media.
        question: Text that asks for the report.
    """
    findings = predict_findings(model, prompts, plan)[0]
    return PlannedQuestion(question, _caption(findings), _bonus([findings], plan))


def _caption(findings: Sequence[str]) -> str:
    return "; ".join(text.replace("<", "") for text in findings)


def _bonus(prompt_findings: Sequence[Sequence[str]], plan: Plan) -> Bonus | None:
    if not plan.agreement:
        return None
    return agreement_bonus(prompt_findings, plan.agreement, get_vocabulary(plan.vocabulary))
