"""Putting other questions to the images of a batch, and weighing answers instead of decoding them.

Notation: B rows, T tokens of the prompts, A of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from xraygpt.common.checks import Checks
from xraygpt.common.config import Choice
from xraygpt.common.distributed import to_device
from xraygpt.common.errors import InputError
from xraygpt.common.registry import VOCABULARIES
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Batch, Sample
from xraygpt.datasets.collate import Collator, padded
from xraygpt.media.base import Media
from xraygpt.models.base import Bonus
from xraygpt.models.capabilities import FrozenFeatures, supports
from xraygpt.models.media_tokens import images_per_row
from xraygpt.models.vision.finding_head import FindingHead
from xraygpt.prompting.content import (
    IMAGE,
    MediaPart,
    Part,
    Turn,
    plain_text,
    turn_of,
    without_marks,
)
from xraygpt.prompting.renderer import IGNORE_INDEX, Run
from xraygpt.vocabulary import Vocabulary, vocabulary_of
from xraygpt.vocabulary.questions import spoken


@dataclass(kw_only=True)
class Plan:
    """What is asked before a report is written."""

    by: Literal["answers", "head"] = "answers"
    """Who says what is there: the LLM by its P(yes), or the head on the encoder's features
    (`model.finding_head`)."""
    vocabulary: Annotated[str, Choice(VOCABULARIES)] = DEFAULT_VOCABULARY
    """Names of findings, and how they are asked about and told."""
    findings: list[str] | None = None
    """Findings of the vocabulary that the model was trained to be asked about, or the head has;
    null takes all that have a name."""
    threshold: float | None = None
    """A finding goes into the report from this probability on; null takes the head's own of each
    finding, and 0.5 of answers."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """The same of single findings; those not named have `threshold`."""
    yes: str = "yes."
    """How the model was trained to affirm."""
    no: str = "no."
    """How it was trained to deny."""
    agreement: float = 0.0
    """Of several drawn answers (`generate.candidates`): how much naming the planned findings, and
    no others, counts beside being like the others; both are an F1. No effect on one answer."""

    def __post_init__(self) -> None:
        known = vocabulary_of(self.vocabulary).findings
        none = f"is none of {', '.join(known)}"
        with Checks(self) as check:
            for number, name in enumerate(self.findings or ()):
                check.refuse(name not in known, f"findings.{number}", f"{name} {none}")
            check.at_least(0, "agreement")
            check.share("threshold")
            for name, value in self.thresholds.items():
                where = f"thresholds.{name}"
                check.refuse(name not in known, where, f"{name} {none}")
                check.refuse(not 0 <= value <= 1, where, f"must lie in [0, 1], got {value}")

    @property
    def asked(self) -> list[str]:
        """Findings that are decided."""
        return vocabulary_of(self.vocabulary).nameable if self.findings is None else self.findings


@torch.no_grad()
def yes_probability(model: Any, prompts: Batch, yes: str, no: str) -> Tensor:
    """(B,) float32 P(yes) by the likelihoods of either answer with its end."""
    losses = [
        model(answered(prompts, model.renderer.answer_ids(text))).row_loss for text in (yes, no)
    ]
    return torch.stack([-loss.float() for loss in losses], dim=1).softmax(dim=1)[:, 0]


def held_likely(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    """Of each row what the model holds likely in its images, in words; at least "normal".

    Raises:
        InputError: The head is to be asked, and the model has none.
    """
    pixels = prompts["media_inputs"].get("pixel_values")
    alone = set(prompts["media_inputs"]) == {"pixel_values"}
    if alone and supports(model, FrozenFeatures):  # encoded once for all questions
        prompts = {**prompts, "media_inputs": {"features": model.encode_frozen(pixels)}}
    held = (_held_by_head if plan.by == "head" else _held_by_answers)(model, prompts, plan)
    normal = vocabulary_of(plan.vocabulary).normal
    return [words or [normal] for words in held]


def _held_by_answers(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    held: list[list[str]] = [[] for _ in prompts["input_ids"]]
    least = 0.5 if plan.threshold is None else plan.threshold
    vocabulary = vocabulary_of(plan.vocabulary)
    for name in plan.asked:
        asked = ask(model, prompts, [vocabulary.question(name)] * len(held))
        for row, p in enumerate(yes_probability(model, asked, plan.yes, plan.no).tolist()):
            if p >= plan.thresholds.get(name, least):
                held[row].append(vocabulary.in_words(name))
    return held


def _held_by_head(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    head = getattr(model, "finding_head", None)
    if head is None:
        raise InputError(
            "run.task.plan.by is head, and the model has none: set model.finding_head to what "
            "`python -m xraygpt.probe … --save` wrote"
        )
    if not prompts["media_inputs"]:
        return [[] for _ in prompts["input_ids"]]
    images = images_per_row(prompts, model.config.num_query_token)
    least = {
        name: plan.thresholds.get(name, own if plan.threshold is None else plan.threshold)
        for name, own in zip(head.names, head.threshold.tolist(), strict=True)
        if name in plan.asked
    }
    said = head(prompts["media_inputs"]["features"], images)
    return in_words(head, vocabulary_of(plan.vocabulary), said, least)


def in_words(
    head: FindingHead, vocabulary: Vocabulary, said: Tensor, least: Mapping[str, float]
) -> list[list[str]]:
    """What is there, each finding by the likeliest of the codes that mean it.

    Args:
        head: Whose answers these are.
        vocabulary: Of its names.
        said: (B, F + K), as the head gives it.
        least: From which P on a finding is there; others are not looked at.

    Returns:
        Of each study codes in words, ``["cardiomegaly, mild"]``; a finding that no code means by
        its name.

    Raises:
        InputError: The head names something that is no finding of the vocabulary.
    """
    unknown = [n for n in head.names if n not in vocabulary.findings]
    if unknown:
        raise InputError(f"model.finding_head names {unknown[0]}, which is no finding of the plan")
    meant = [vocabulary.findings_of([code]) for code in head.codes]
    return [_in_words(head, vocabulary, meant, row, least) for row in said.tolist()]


def _in_words(
    head: FindingHead,
    vocabulary: Vocabulary,
    meant: Sequence[set[str]],
    row: Sequence[float],
    least: Mapping[str, float],
) -> list[str]:
    held = [n for n, p in zip(head.names, row, strict=False) if p >= least.get(n, math.inf)]
    codes: list[int] = []
    plain: list[str] = []
    for name in held:
        ways = [k for k, findings in enumerate(meant) if name in findings]
        if any(name in meant[k] for k in codes):
            continue  # told already, with another finding
        if ways:
            codes.append(max(ways, key=lambda k: row[len(head.names) + k]))
        else:
            plain.append(vocabulary.in_words(name))
    return sorted([*spoken([head.codes[k] for k in codes]), *plain])


def agreement_with(told: Sequence[Sequence[str]], weight: float, vocabulary: Vocabulary) -> Bonus:
    """How well a report follows what its writer was told, by the vocabulary's labeller.

    Args:
        told: Of each row findings in words, ``["cardiomegaly, mild"]``; none at all judges nothing.
        weight: What full agreement is worth.
        vocabulary: Reads reports.

    Returns:
        Row and text -> weight times the F1 of the findings named, in [0, weight].
    """
    wanted = [vocabulary.coded_findings(w.replace(", ", "/") for w in words) for words in told]

    def bonus(row: int, text: str) -> float:
        want = wanted[row]
        named = vocabulary.positive(text) - {vocabulary.other_finding}
        if not want:
            return 0.0
        return weight * 2 * len(named & want) / (len(named) + len(want))

    return bonus


def with_plan(model: Any, prompts: Batch, plan: Plan) -> tuple[Batch, Bonus | None]:
    """The same images and questions, with what the model found told beside the images.

    Rows that ask something of their own, other than the model's prompts, are left as they are.

    Returns:
        The prompts, and what speaks for an answer that follows the plan; None where that has no
        weight.
    """
    plain = {"", *(" ".join(without_marks(p).split()) for p in model.renderer.prompts)}
    held = held_likely(model, prompts, plan)
    told = [w if q in plain else [] for w, q in zip(held, prompts["question"], strict=True)]
    planned = ask(model, prompts, prompts["question"], [_caption(words) for words in told])
    return planned, _bonus(told, plan)


@dataclass(frozen=True)
class Planned:
    """A question about one study after its plan.

    Attributes:
        question: What to ask for a report with.
        caption: What was found, to be told beside the last image.
        bonus: What speaks for an answer that follows the plan; None where that has no weight.
    """

    question: str
    caption: str = ""
    bonus: Bonus | None = None


def planned_question(model: Any, plan: Plan, media: Sequence[Media], question: str) -> Planned:
    """A question about one study as `with_plan` would ask it.

    Args:
        model: Has the packer and renderer.
        plan: What to ask first.
        media: As the model's image processor made them.
        question: What to ask for a report with.
    """
    marks = " ".join([IMAGE] * len(media))
    turns = [Turn(role="user", text=f"{marks} ?"), Turn(role="assistant", text="")]
    sample = Sample(sample_id="", study_id="", media=list(media), turns=turns, meta={}, rng_key="")
    batch = Collator(model.renderer, model.media_collator, max_len=model.context_len).prompts(
        [sample]
    )
    words = held_likely(model, to_device(batch, model.device), plan)[0]
    return Planned(question, _caption(words), _bonus([words], plan))


def _caption(words: Sequence[str]) -> str:
    return "; ".join(w.replace("<", "") for w in words)


def _bonus(told: Sequence[Sequence[str]], plan: Plan) -> Bonus | None:
    if not plan.agreement:
        return None
    return agreement_with(told, plan.agreement, vocabulary_of(plan.vocabulary))


def ask(
    model: Any, prompts: Batch, questions: Sequence[str], captions: Sequence[str] = ()
) -> Batch:
    """Another question to the media of each row.

    Args:
        model: Its renderer writes the prompts.
        prompts: Left-padded, of one question a row.
        questions: Of each row, asked after its media.
        captions: Of each row what to tell beside the last of its media; empty tells nothing.
    """
    renderer, ids = model.renderer, prompts["input_ids"]
    runs: list[list[Run]] = [[] for _ in questions]
    for run in prompts["runs"]:
        runs[run.row].append(Run(run.length, run.kind))
    turns = [
        _question(question, len(own), caption)
        for question, own, caption in zip(
            questions, runs, captions or [""] * len(runs), strict=True
        )
    ]
    rows = [renderer.render([t], own) for t, own in zip(turns, runs, strict=True)]
    pad = renderer.tokenizer.pad_token_id
    pad = renderer.tokenizer.eos_token_id if pad is None else pad
    filled, labels, mask, placed = padded(rows, pad, left=True)
    return {
        **prompts,
        "input_ids": filled.to(ids.device),
        "labels": labels.to(ids.device),
        "attention_mask": mask.to(ids.device),
        "runs": placed,
        "question": [" ".join(plain_text(t).split()) for t in turns],
    }


def _question(question: str, media: int, caption: str) -> Turn:
    """A question after the places of its media, the last with a caption."""
    parts: list[Part] = []
    for i in range(media):
        parts += [MediaPart(caption=caption if i + 1 == media else ""), " "]
    return turn_of("user", [*parts, question] if question else parts[:-1])


def answered(prompts: Batch, answer: Sequence[int]) -> Batch:
    """A left-padded batch of prompts with the same answer after each, and labels on it."""
    ids: Tensor = prompts["input_ids"]
    said = torch.tensor(list(answer), device=ids.device).expand(len(ids), -1)
    silent = torch.full_like(ids, IGNORE_INDEX)
    mask = prompts["attention_mask"]
    return {
        **prompts,
        "input_ids": torch.cat([ids, said], dim=1),
        "labels": torch.cat([silent, said], dim=1),
        "attention_mask": torch.cat([mask, torch.ones_like(said)], dim=1),
    }
