"""Tokens of media put into the places their text keeps for them: in training, answers and chat.

Notation: B rows of T tokens, H the LLM's width, L tokens of one medium.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Batch, MediaRun


def place_media(
    embeds: Tensor, runs: Sequence[MediaRun], tokens: Sequence[Tensor], names: Sequence[str]
) -> Tensor:
    """(B, T, H) embedded text -> the same with every medium's tokens in its run.

    Args:
        embeds: What stands at the placeholders is replaced.
        runs: Where the media stand.
        tokens: (L, H) of each, in the order of `runs`.
        names: Of the B samples, for messages.

    Raises:
        DataError: A medium has other tokens than placeholders, or there are other media than runs.
    """
    if len(tokens) != len(runs):
        raise DataError(
            f"samples {', '.join(names)}: the model encoded {len(tokens)} media, and their text "
            f"has places for {len(runs)}"
        )
    for run, one in zip(runs, tokens, strict=True):
        if len(one) != run.length:
            raise DataError(
                f"sample {names[run.row]}: the model makes {len(one)} tokens of this {run.kind}, "
                f"and its text has {run.length} placeholders for them: plan() and the encoder of "
                "the model disagree"
            )
    if not runs:
        return embeds
    device = embeds.device
    rows = [torch.full((run.length,), run.row, device=device) for run in runs]
    columns = [torch.arange(run.start, run.start + run.length, device=device) for run in runs]
    values = torch.cat([one.to(embeds) for one in tokens])
    return embeds.index_put((torch.cat(rows), torch.cat(columns)), values)


def images_per_row(batch: Batch, tokens_each: int = 1) -> list[int]:
    """How many images each row of a batch has, frames of clips counted one by one.

    Args:
        batch: Packed so that every image takes as many tokens.
        tokens_each: So many.
    """
    counts = [0] * len(batch["input_ids"])
    for run in batch["runs"]:
        counts[run.row] += run.length // tokens_each
    return counts


def split_by_run(tokens: Tensor, batch: Batch, tokens_each: int) -> list[Tensor]:
    """(N, Q, H) tokens of all images, frames of clips in a row -> (frames · Q, H) of each medium.

    Args:
        tokens: As encoded.
        batch: Whose images they are.
        tokens_each: Placeholders of one image; Q, if the model keeps its word.

    Raises:
        DataError: There are more or fewer images than the text has places for.
    """
    frames = [run.length // tokens_each for run in batch["runs"]]
    if sum(frames) != len(tokens):
        raise DataError(
            f"samples {', '.join(batch['sample_id'])}: {len(tokens)} encoded images, and their "
            f"text has places for {sum(frames)}"
        )
    return [part.flatten(0, 1) for part in tokens.split(frames)] if frames else []
