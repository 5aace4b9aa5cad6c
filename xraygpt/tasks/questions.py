"""Ask other questions about the media of a batch, and score fixed answers by likelihood.

Notation: B rows, T prompt tokens, A answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xraygpt.datasets.base import Batch
from xraygpt.datasets.collate import pad_rows
from xraygpt.prompting.content import MediaPart, Part, Turn, build_turn, plain_text
from xraygpt.prompting.renderer import IGNORE_INDEX, Run


@torch.no_grad()
def yes_probability(model: Any, prompts: Batch, yes: str, no: str) -> Tensor:
    """Return P(yes), (B,) float32, from the likelihoods of both answers with their end token."""
    losses = [
        model(append_answer(prompts, model.renderer.answer_ids(text))).row_loss
        for text in (yes, no)
    ]
    return torch.stack([-loss.float() for loss in losses], dim=1).softmax(dim=1)[:, 0]


def replace_questions(
    model: Any, prompts: Batch, questions: Sequence[str], captions: Sequence[str] = ()
) -> Batch:
    """Return the same media with other questions.

    Args:
        model: Model whose renderer writes the prompts.
        prompts: Left-padded prompts with one question per row.
        questions: Question for each row, placed after the media.
        captions: Caption for each row, placed next to the last medium; empty for none.
    """
    renderer, ids = model.renderer, prompts["input_ids"]
    row_runs: list[list[Run]] = [[] for _ in questions]
    for run in prompts["runs"]:
        row_runs[run.row].append(Run(run.length, run.kind))
    captions = captions or [""] * len(row_runs)
    turns = [
        _question_turn(question, len(runs), caption)
        for question, runs, caption in zip(questions, row_runs, captions, strict=True)
    ]
    rows = [renderer.render([t], runs) for t, runs in zip(turns, row_runs, strict=True)]
    pad = renderer.tokenizer.pad_token_id
    pad = renderer.tokenizer.eos_token_id if pad is None else pad
    input_ids, labels, mask, placed_runs = pad_rows(rows, pad, left=True)
    return {
        **prompts,
        "input_ids": input_ids.to(ids.device),
        "labels": labels.to(ids.device),
        "attention_mask": mask.to(ids.device),
        "runs": placed_runs,
        "question": [" ".join(plain_text(t).split()) for t in turns],
    }


def _question_turn(question: str, media_count: int, caption: str) -> Turn:
    """Build a turn of media placeholders, with the caption in the last, and the question."""
    parts: list[Part] = []
    for i in range(media_count):
        parts += [MediaPart(caption=caption if i + 1 == media_count else ""), " "]
    return build_turn("user", [*parts, question] if question else parts[:-1])


def append_answer(prompts: Batch, answer: Sequence[int]) -> Batch:
    """Append the same answer tokens to each row of a left-padded batch, with labels on them.

    (B, T) tensors become (B, T + A).
    """
    ids: Tensor = prompts["input_ids"]
    answer_ids = torch.tensor(list(answer), device=ids.device).expand(len(ids), -1)
    ignored = torch.full_like(ids, IGNORE_INDEX)
    mask = prompts["attention_mask"]
    return {
        **prompts,
        "input_ids": torch.cat([ids, answer_ids], dim=1),
        "labels": torch.cat([ignored, answer_ids], dim=1),
        "attention_mask": torch.cat([mask, torch.ones_like(answer_ids)], dim=1),
    }
