"""Which split a study belongs to: said by the corpus, hashed, or published.

The 590 studies of IU X-ray's published test split are `test` wherever they appear, so that neither
training, nor a tokenizer, nor a phantom ever sees their text.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from xraygpt.common.checks import Checks
from xraygpt.common.keyed_random import keyed_int
from xraygpt.vocabulary.openi import is_published_test


@dataclass(kw_only=True)
class SplitRule:
    """How a corpus is split into train, val and test; always by study."""

    field: str | None = "split"
    """Name of the record's field that says the split; null ignores it and hashes instead."""
    train: list[str] = dataclasses.field(default_factory=lambda: ["train"])
    """Values of that field that mean train."""
    val: list[str] = dataclasses.field(
        default_factory=lambda: ["val", "validate", "validation", "dev"]
    )
    """Values of that field that mean val."""
    test: list[str] = dataclasses.field(default_factory=lambda: ["test"])
    """Values of that field that mean test."""
    val_fraction: float = 0.0
    """Share of studies without a said split that go to val, in [0, 1)."""
    test_fraction: float = 0.0
    """Share of studies without a said split that go to test, in [0, 1)."""
    folds: int | None = None
    """Cross-validation: studies without a said split are hashed into so many folds, of which `fold`
    is val and the others train."""
    fold: int = 0
    """Which fold is val, from 0."""
    seed: int = 0
    """Another seed, another hashed split."""

    def __post_init__(self) -> None:
        shares, both = ("val_fraction", "test_fraction"), self.val_fraction + self.test_fraction
        with Checks(self) as check:
            check.at_least(0, *shares)
            nothing = f"leaves nothing to train on: with test_fraction it is {both}, not below 1"
            check.refuse(both >= 1, "val_fraction", nothing, "test_fraction")
            if self.folds is not None:
                check.at_least(2, "folds")
                below = f"must be at least 0 and below folds ({self.folds}), got {self.fold}"
                check.refuse(not 0 <= self.fold < self.folds, "fold", below, "folds")
                alone = "goes without val_fraction and test_fraction"
                check.refuse(both > 0, "folds", alone, *shares)

    def of(self, study_id: str, said: str | None) -> str | None:
        """``train``, ``val`` or ``test``; None if the field says what this rule does not use."""
        if is_published_test(study_id):
            return "test"
        if self.field is not None and said:
            splits = ("train", self.train), ("val", self.val), ("test", self.test)
            for split, values in splits:
                if said in values:
                    return split
            return None
        point = keyed_int("split", self.seed, study_id) / 2**63
        if self.folds is not None:
            return "val" if int(point * self.folds) == self.fold else "train"
        if point < self.test_fraction:
            return "test"
        return "val" if point < self.test_fraction + self.val_fraction else "train"
