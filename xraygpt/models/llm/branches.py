"""Sampling of many answers to one prompt, in which equal beginnings are computed once.

A branch is a distinct beginning of one or more answers. A model that writes standard sentences
repeats many beginnings, and the logits after a beginning do not depend on which answers share it.

Notation: R answers of which U begin differently, t new tokens; V is the size of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor


class Branches:
    """The distinct beginnings of answers that have not ended, each in a slot of a cache.

    Attributes:
        ids: (U, t) int64, the tokens of each branch; branch i is in slot i.
        of_row: (R,) int64, the branch of each answer that has not ended.
    """

    def __init__(self, rows: int) -> None:
        self.ids = torch.zeros(1, 0, dtype=torch.long)
        self.of_row = torch.zeros(rows, dtype=torch.long)

    def extend(
        self, tokens: Tensor, scores: Tensor, has_ended: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Append a token to every answer and drop the answers that end with it.

        Args:
            tokens: (R,) int64, the next token of each answer.
            scores: (R, V), from which the tokens were sampled.
            has_ended: Maps (U, t) tokens and the scores to (U,) bool.

        Returns:
            (R,) bool, which of the answers have ended; and the slots whose contents must be copied,
            as sources and targets. A target is never a source.
        """
        vocab_size = scores.shape[-1]
        keys, new_of_row = torch.unique(self.of_row * vocab_size + tokens, return_inverse=True)
        parents = keys // vocab_size
        ids = torch.cat([self.ids[parents], (keys % vocab_size)[:, None]], dim=1)
        ended = has_ended(ids, scores)
        row_ended = ended[new_of_row]
        live = (~ended).nonzero().squeeze(1)
        slots, sources, targets = _assign_slots(parents[live].tolist())
        self.ids = torch.empty(len(live), ids.shape[1], dtype=torch.long)
        self.ids[slots] = ids[live]
        slot_of_key = torch.zeros(len(keys), dtype=torch.long)
        slot_of_key[live] = slots
        self.of_row = slot_of_key[new_of_row][~row_ended]
        return row_ended, sources, targets


def _assign_slots(parents: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Assign the slots 0 to U − 1 to branches so that few have to be copied.

    Args:
        parents: The slot of each branch's beginning, in ascending order.

    Returns:
        The slot of each branch, and the sources and targets of the copies.
    """
    count, kept = len(parents), set[int]()
    slots = [-1] * count
    for branch, parent in enumerate(parents):
        if parent < count and parent not in kept:
            slots[branch] = parent
            kept.add(parent)
    free = iter(slot for slot in range(count) if slot not in kept)
    sources, targets = [], []
    for branch, parent in enumerate(parents):
        if slots[branch] < 0:
            slots[branch] = next(free)
            sources.append(parent)
            targets.append(slots[branch])
    as_index = partial(torch.tensor, dtype=torch.long)
    return as_index(slots), as_index(sources), as_index(targets)
