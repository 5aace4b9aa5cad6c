"""Tables of the tokens in the corpora of a YAML file, before training."""

from __future__ import annotations

from collections.abc import Iterator

from xraygpt.datasets.collate import Collator
from xraygpt.datasets.token_budget import TokenBudget, count_tokens
from xraygpt.experiment import Training
from xraygpt.models.base import Collation
from xraygpt.runners.train_loop import Runner


def of_runner(experiment: Training, runner: Runner) -> Iterator[TokenBudget]:
    """Yield the table of each corpus and split of a run, as its own collator counts.

    Args:
        experiment: The configuration.
        runner: Its runner, before it caches features.
    """
    splits: dict[str, list[str]] = {"train": list(runner.config.train_splits), "val": ["val"]}
    for mixture, names in splits.items():
        labels = [f"{label} {split}" for split in names for label in experiment.datasets]
        for label, part in zip(labels, runner.splits[mixture].parts, strict=True):
            budget = count_tokens(label, part, runner.collate)
            if budget is not None:
                yield budget


def collator_of(collation: Collation) -> Collator:
    """Return the collator of a model's training batches."""
    return Collator(collation.renderer, collation.media_collator, max_len=collation.context_len)
