"""Inserts media tokens at their placeholders in embedded text.

Notation: B rows of T tokens; H is the LLM's width; L is the number of tokens of one medium.
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
    """Replace the placeholders in (B, T, H) embedded text with media tokens.

    Args:
        embeds: Embedded text; values at placeholders are ignored.
        runs: Positions of the media's placeholders.
        tokens: (L, H) tokens of each medium, in the order of `runs`.
        names: Ids of the B samples, used in messages.

    Raises:
        DataError: The number of media differs from the number of runs, or a medium's number of
            tokens from its number of placeholders.
    """
    if len(tokens) != len(runs):
        raise DataError(
            f"samples {', '.join(names)}: the model encoded {len(tokens)} media, but the text "
            f"has placeholders for {len(runs)}"
        )
    for run, values in zip(runs, tokens, strict=True):
        if len(values) != run.length:
            raise DataError(
                f"sample {names[run.row]}: the model makes {len(values)} tokens of this "
                f"{run.kind}, but its text has {run.length} placeholders: media_tokens() and the "
                "collator's token_runs() disagree"
            )
    if not runs:
        return embeds
    device = embeds.device
    rows = [torch.full((run.length,), run.row, device=device) for run in runs]
    columns = [torch.arange(run.start, run.start + run.length, device=device) for run in runs]
    inserted = torch.cat([values.to(embeds) for values in tokens])
    return embeds.index_put((torch.cat(rows), torch.cat(columns)), inserted)


def images_per_row(batch: Batch, tokens_each: int = 1) -> list[int]:
    """Count the images in each row of a batch; every frame of a clip counts as one.

    Args:
        batch: A batch in which all images have the same number of tokens.
        tokens_each: The number of tokens per image.
    """
    counts = [0] * len(batch["input_ids"])
    for run in batch["runs"]:
        counts[run.row] += run.length // tokens_each
    return counts


def split_by_run(tokens: Tensor, batch: Batch, tokens_each: int) -> list[Tensor]:
    """Split the (N, Q, H) tokens of all images into (frames · Q, H) tokens for each medium.

    Args:
        tokens: The tokens in the order of the runs, with a clip's frames one after the other.
        batch: The batch that contains the images.
        tokens_each: Number of placeholders per image, which must equal Q.

    Raises:
        DataError: The text has placeholders for more or fewer images.
    """
    frames = [run.length // tokens_each for run in batch["runs"]]
    if sum(frames) != len(tokens):
        raise DataError(
            f"samples {', '.join(batch['sample_id'])}: {len(tokens)} encoded images, but their "
            f"text has placeholders for {sum(frames)}"
        )
    return [part.flatten(0, 1) for part in tokens.split(frames)] if frames else []
