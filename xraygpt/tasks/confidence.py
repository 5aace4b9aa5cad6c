"""How sure a model is of the parts of its answers: probabilities of their tokens.

Notation: B rows, T prompt tokens, A tokens of the longest answer, V tokens in the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from xraygpt.datasets.base import Batch
from xraygpt.models.capabilities import ComputesLoss, supports
from xraygpt.prompting.renderer import IGNORE_INDEX


@dataclass(frozen=True)
class TokenProbabilities:
    """The tokens of an answer.

    Attributes:
        ends: For each token, the position in the text after its last character; the end token has
            none.
        logs: Natural logarithm of each token's probability, given all before it.
    """

    ends: Sequence[int]
    logs: Sequence[float]

    def of(self, start: int, end: int) -> float:
        """Return the geometric mean of the probabilities of the tokens in a part of the text."""
        begins = (0, *self.ends[:-1])
        spans = zip(begins, self.ends, self.logs, strict=True)
        logs = [p for first, last, p in spans if first < end and last > start]
        return math.exp(sum(logs) / len(logs)) if logs else 0.0


@torch.no_grad()
def token_probabilities(
    model: Any, prompts: Batch, answers: Sequence[str]
) -> list[TokenProbabilities] | None:
    """Compute the probability of each token of given answers.

    Args:
        model: Any model; only those that compute a loss have probabilities.
        prompts: A left-padded batch of B prompts.
        answers: One answer for each row.

    Returns:
        One for each row; None if the model returns texts only.
    """
    if not supports(model, ComputesLoss):
        return None
    tokenizer = model.renderer.tokenizer
    ids = [list(model.renderer.answer_ids(text)) for text in answers]  # with the end
    longest = max(map(len, ids), default=0)
    if not longest:
        return [TokenProbabilities((), ()) for _ in answers]
    device, width = prompts["input_ids"].device, prompts["input_ids"].shape[1]
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    rows = torch.tensor([row + [pad] * (longest - len(row)) for row in ids], device=device)
    kept = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
    labels = rows.masked_fill(kept == 0, IGNORE_INDEX)
    ignored = torch.full_like(prompts["input_ids"], IGNORE_INDEX)
    batch = {
        **prompts,
        "input_ids": torch.cat([prompts["input_ids"], rows], dim=1),
        "labels": torch.cat([ignored, labels], dim=1),
        "attention_mask": torch.cat([prompts["attention_mask"], kept], dim=1),
    }
    logits = model(batch, return_logits=True).logits[:, width - 1 : -1].float()
    logs = logits.log_softmax(dim=-1).gather(2, rows[..., None].to(logits.device))[..., 0].tolist()
    return [
        TokenProbabilities(_ends(tokenizer, row, text), logs[i][: len(row)])
        for i, (row, text) in enumerate(zip(ids, answers, strict=True))
    ]


def _ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """Return the position in the text after each token, by decoding ever longer beginnings."""
    ends = [
        len(tokenizer.decode(list(ids[: i + 1]), skip_special_tokens=True)) for i in range(len(ids))
    ]
    scale = len(text) / ends[-1] if ends and ends[-1] else 1.0
    return [min(round(end * scale), len(text)) for end in ends]
