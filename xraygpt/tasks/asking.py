"""Putting other questions to the images of a batch, and weighing answers instead of decoding them.

Notation: B rows, T tokens of the prompts, A of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from xraygpt.common.checks import Checks
from xraygpt.common.distributed import to_device
from xraygpt.common.errors import InputError
from xraygpt.datasets.base import Batch, Sample
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.targets import NORMAL, finding_question
from xraygpt.metrics.findings import FINDINGS
from xraygpt.processors.prompts import (
    IGNORE_INDEX,
    IMAGE,
    IMAGE_TOKEN_ID,
    Turn,
    findings_mark,
    without_marks,
)


@dataclass(kw_only=True)
class Plan:
    """What is asked before a report is written."""

    by: Literal["answers", "head"] = "answers"
    """Who says what is there: the LLM by its P(yes), or the head on the encoder's features
    (`model.finding_head`)."""
    findings: list[str] = field(
        default_factory=lambda: [n for n in FINDINGS if n not in ("no_finding", "other_finding")]
    )
    """The labeller's findings; those the model was trained to be asked about, or the head has."""
    threshold: float | None = None
    """A finding goes into the report from this probability on; null takes the head's own of each
    finding, and 0.5 of answers."""
    thresholds: dict[str, float] = field(default_factory=dict)
    """The same of single findings; those not named have `threshold`."""
    yes: str = "yes."
    """How the model was trained to affirm."""
    no: str = "no."
    """How it was trained to deny."""

    def __post_init__(self) -> None:
        none = f"is none of {', '.join(FINDINGS)}"
        with Checks(self) as check:
            for number, name in enumerate(self.findings):
                check.refuse(name not in FINDINGS, f"findings.{number}", f"{name} {none}")
            check.share("threshold")
            for name, value in self.thresholds.items():
                where = f"thresholds.{name}"
                check.refuse(name not in FINDINGS, where, f"{name} {none}")
                check.refuse(not 0 <= value <= 1, where, f"must lie in [0, 1], got {value}")


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
    pixels = prompts["image_inputs"].get("pixel_values")
    if pixels is not None:  # encoded once for all questions
        prompts = {**prompts, "image_inputs": {"features": model.encode_frozen(pixels)}}
    held = (_held_by_head if plan.by == "head" else _held_by_answers)(model, prompts, plan)
    return [words or [NORMAL] for words in held]


def _held_by_answers(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    held: list[list[str]] = [[] for _ in prompts["input_ids"]]
    least = 0.5 if plan.threshold is None else plan.threshold
    for name in plan.findings:
        asked = ask(model, prompts, [f"{IMAGE} {finding_question(name)}"] * len(held))
        for row, p in enumerate(yes_probability(model, asked, plan.yes, plan.no).tolist()):
            if p >= plan.thresholds.get(name, least):
                held[row].append(name.replace("_", " "))
    return held


def _held_by_head(model: Any, prompts: Batch, plan: Plan) -> list[list[str]]:
    head = getattr(model, "finding_head", None)
    if head is None:
        raise InputError(
            "run.task.plan.by is head, and the model has none: set model.finding_head to what "
            "`python -m xraygpt.probe … --save` wrote"
        )
    if not prompts["image_inputs"]:
        return [[] for _ in prompts["input_ids"]]
    places = (prompts["input_ids"] == IMAGE_TOKEN_ID).sum(dim=1) // model.config.num_query_token
    least = {
        name: plan.thresholds.get(name, own if plan.threshold is None else plan.threshold)
        for name, own in zip(head.names, head.threshold.tolist(), strict=True)
        if name in plan.findings
    }
    held: list[list[str]] = head.in_words(
        head(prompts["image_inputs"]["features"], places.tolist()), least
    )
    return held


def with_plan(model: Any, prompts: Batch, plan: Plan) -> Batch:
    """The same images and questions, with what the model found told beside the images.

    Rows that ask something of their own, other than the model's prompts, are left as they are.
    """
    plain = {"", *(" ".join(without_marks(p).split()) for p in model.renderer.prompts)}
    held = held_likely(model, prompts, plan)
    told = [w if q in plain else [] for w, q in zip(held, prompts["question"], strict=True)]
    texts = [
        f"{IMAGE}{findings_mark(words)} {question}"
        for words, question in zip(told, prompts["question"], strict=True)
    ]
    return {**ask(model, prompts, texts), "told": told}


def planned_question(model: Any, plan: Plan, images: Sequence[Tensor], question: str) -> str:
    """A question about one study as `with_plan` would write it, after the marks of its images.

    Args:
        model: Has the packer and renderer.
        plan: What to ask first.
        images: As the model's image processor made them.
        question: What to ask for a report with.
    """
    marks = " ".join([IMAGE] * len(images))
    turns = [Turn(role="user", text=f"{marks} ?"), Turn(role="assistant", text="")]
    sample = Sample(sample_id="", study_id="", images=list(images), turns=turns, meta={}, draw="")
    batch = Collator(model.renderer, model.packer, max_len=model.context_len).prompts([sample])
    batch = to_device(batch, model.device)
    return f"{findings_mark(held_likely(model, batch, plan)[0])} {question}"


def ask(model: Any, prompts: Batch, texts: Sequence[str]) -> Batch:
    """Another question to the images of each row.

    Args:
        model: Its renderer writes the prompts.
        prompts: Left-padded, of one question a row.
        texts: Of each row, ``<image>`` in the place of all its images.
    """
    renderer, ids = model.renderer, prompts["input_ids"]
    rows = []
    for row, text in zip(ids.tolist(), texts, strict=True):
        runs = _runs(row)
        marks = " ".join([IMAGE] * len(runs))
        turn = Turn(role="user", text=text.replace(IMAGE, marks).strip())
        rows.append(renderer.render([turn], runs)["input_ids"])
    width = max(map(len, rows))
    pad = renderer.tokenizer.pad_token_id
    filled = torch.full((len(rows), width), renderer.tokenizer.eos_token_id if pad is None else pad)
    mask = torch.zeros_like(filled)
    for i, row in enumerate(rows):
        filled[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    return {
        **prompts,
        "input_ids": filled.to(ids.device),
        "labels": torch.full_like(filled, IGNORE_INDEX).to(ids.device),
        "attention_mask": mask.to(ids.device),
        "question": [" ".join(without_marks(t).split()) for t in texts],
    }


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


def _runs(ids: Sequence[int]) -> list[int]:
    """Lengths of the runs of image tokens; images that touch count as one."""
    runs: list[int] = []
    before = None
    for i in ids:
        if i == IMAGE_TOKEN_ID:
            if before == IMAGE_TOKEN_ID:
                runs[-1] += 1
            else:
                runs.append(1)
        before = i
    return runs
