"""Losses per character of the references, which do not depend on the tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from xraygpt.common import distributed
from xraygpt.common.logging import progress
from xraygpt.datasets.base import StudyDataset, reference_text
from xraygpt.datasets.collate import Collator
from xraygpt.evaluation.conditions import BLANK, MIRRORED, SHUFFLED, TRUE
from xraygpt.metrics.statistics import ratio_score
from xraygpt.models.base import BaseModel
from xraygpt.tasks.base import BaseTask


@torch.no_grad()
def sample_losses(
    task: BaseTask,
    model: BaseModel,
    collate: Collator,
    data: StudyDataset,
    *,
    device: torch.device,
    batch_size: int,
    label: str,
) -> np.ndarray:
    """Compute the loss of each sample.

    Returns (n, 5) float64: loss in nats, target tokens, characters of the reference; then the loss
    in nats of the tokens that stand for bytes, and the number of these bytes, or 0 if none do.

    Args:
        task: Task that computes the loss.
        model: Model to evaluate.
        collate: Function that builds batches.
        data: Samples of one condition.
        device: Device to which batches are moved.
        batch_size: Number of rows per batch.
        label: Name of the condition, for the progress bar.
    """
    rows: list[list[float]] = []
    starts = range(0, len(data), batch_size)
    for start in progress(starts, f"loss, {label}", unit="batch"):
        indices = range(start, min(start + batch_size, len(data)))
        samples = [s for s in (data[i] for i in indices) if s is not None]
        batch: Any = distributed.to_device(collate(samples), device)
        output = task.loss(model, batch)
        for i, sample in enumerate(samples):
            characters = len(reference_text(sample["turns"]))
            row = [float(output.row_loss[i]), float(output.num_targets[i]), characters, 0.0, 0.0]
            if output.byte_loss is not None and output.num_bytes is not None:
                row[3:] = [float(output.byte_loss[i]), float(output.num_bytes[i])]
            rows.append(row)
    return np.array(rows)


def loss_rows(losses: Mapping[str, np.ndarray], studies: Sequence[str]) -> list[dict[str, Any]]:
    """Return each condition's loss per character and its paired difference from the true images.

    With a byte-level tokenizer, each condition's bits per byte of the references are added.

    Args:
        losses: Results of `sample_losses` by condition, empty for a model without losses; shuffled
            seeds are averaged.
        studies: Study of each sample, the unit of bootstrap resampling.
    """
    if not losses:
        return []
    true = losses[TRUE]
    groups = {TRUE: [true]}
    groups[SHUFFLED] = [v for k, v in losses.items() if k.startswith(SHUFFLED)]
    for name in (BLANK, MIRRORED):
        groups[name] = [losses[name]] if name in losses else []
    rows = []
    for name, seeds in groups.items():
        if not seeds:
            continue
        mean = np.mean([v[:, 0] for v in seeds], axis=0)
        rows.append(_per_character(f"loss_{name}", mean, true[:, 2], studies))
        if true[:, 4].all():
            nats = np.mean([v[:, 3] for v in seeds], axis=0)
            rows.append(_bits_per_byte(f"bits_per_byte_{name}", nats, true[:, 4], studies))
        if name != TRUE:
            difference = mean - true[:, 0]
            rows.append(_per_character(f"loss_{name}_minus_true", difference, true[:, 2], studies))
    return rows


def _per_character(
    name: str, loss: np.ndarray, characters: np.ndarray, studies: Sequence[str]
) -> dict[str, Any]:
    """Divide the sum of the losses by the sum of the characters, and compute the interval."""
    score = ratio_score(
        name,
        np.stack([loss, characters], axis=1),
        lambda c: float(c[0] / max(c[1], 1)),
        "nats per reference character",
        studies,
    )
    return score.as_row()


def _bits_per_byte(
    name: str, nats: np.ndarray, num_bytes: np.ndarray, studies: Sequence[str]
) -> dict[str, Any]:
    """Divide the sum of the losses, in bits, by the sum of the bytes, with its interval."""
    score = ratio_score(
        name,
        np.stack([nats / np.log(2), num_bytes], axis=1),
        lambda c: float(c[0] / max(c[1], 1)),
        "bits per byte of the reference",
        studies,
    )
    return score.as_row()
