"""Assignment of studies to splits: as published, as listed in the corpus, or by hash.

The 590 studies of IU X-ray's published test split are always `test`, and the 200 studies of its
lockbox are always `lockbox`, so that no training, tokenizer or phantom uses their text.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from xraygpt.common.checks import Checks
from xraygpt.common.keyed_random import keyed_int
from xraygpt.vocabulary.openi import reserved_split

_SPLITS = ("train", "val", "test", "lockbox")


@dataclass(kw_only=True)
class SplitRule:
    """How a corpus is split into train, val, test and lockbox; always by study."""

    field: str | None = "split"
    """Field of a record that names its split; null ignores it and uses the hash."""
    train: list[str] = dataclasses.field(default_factory=lambda: ["train"])
    """Values of that field that mean train."""
    val: list[str] = dataclasses.field(
        default_factory=lambda: ["val", "validate", "validation", "dev"]
    )
    """Values of that field that mean val."""
    test: list[str] = dataclasses.field(default_factory=lambda: ["test"])
    """Values of that field that mean test."""
    lockbox: list[str] = dataclasses.field(default_factory=lambda: ["lockbox"])
    """Values of that field that mean lockbox, a second test split that `evaluate.py` opens only for
    `run.split: lockbox`, and counts. OpenI's lockbox studies are in it whatever this says."""
    val_fraction: float = 0.0
    """Fraction of the studies without a listed split that become val, in [0, 1)."""
    test_fraction: float = 0.0
    """Fraction of the studies without a listed split that become test, in [0, 1)."""
    folds: int | None = None
    """Cross-validation: studies without a listed split are hashed into this many folds. `fold` is
    val, and the others are train."""
    fold: int = 0
    """Index of the fold that is val, from 0."""
    seed: int = 0
    """Seed for the hash."""

    def __post_init__(self) -> None:
        fractions, total = ("val_fraction", "test_fraction"), self.val_fraction + self.test_fraction
        with Checks(self) as check:
            self._check_values(check)
            check.at_least(0, *fractions)
            message = f"leaves nothing to train on: with test_fraction the sum is {total}, not < 1"
            check.refuse(total >= 1, "val_fraction", message, "test_fraction")
            if self.folds is not None:
                check.at_least(2, "folds")
                message = f"must be at least 0 and below folds ({self.folds}), got {self.fold}"
                check.refuse(not 0 <= self.fold < self.folds, "fold", message, "folds")
                message = "cannot be combined with val_fraction and test_fraction"
                check.refuse(total > 0, "folds", message, *fractions)

    def _check_values(self, check: Checks) -> None:
        """Check that no value of `field` means two splits, such as both train and lockbox."""
        meanings: dict[str, str] = {}
        for split in _SPLITS[::-1]:
            for value in dict.fromkeys(getattr(self, split)):
                other = meanings.setdefault(value, split)
                message = f"{value!r} is also listed in {other}; a value can mean only one split"
                check.refuse(other != split, split, message, other)

    def assign(self, study_id: str, listed_split: str | None) -> str | None:
        """Return the split of a study.

        Args:
            study_id: Id of the study, or of the patient if patients are split.
            listed_split: Value of `field` in the corpus, if there is one.

        Returns:
            ``train``, ``val``, ``test`` or ``lockbox``; None if the listed split is none of them.
        """
        if reserved := reserved_split(study_id):
            return reserved
        if self.field is not None and listed_split:
            return self.listed(listed_split)
        return self.split_at(self.point(study_id))

    def listed(self, value: str) -> str | None:
        """Return the split that a value of `field` means; None if none."""
        values = ((name, getattr(self, name)) for name in _SPLITS)
        return next((split for split, v in values if value in v), None)

    def point(self, name: str) -> float:
        """Return the position of a study or patient in [0, 1), which the seed determines."""
        return keyed_int("split", self.seed, name) / 2**63

    def split_at(self, point: float) -> str:
        """Return the split of a position, see `point`."""
        if self.folds is not None:
            return "val" if int(point * self.folds) == self.fold else "train"
        if point < self.test_fraction:
            return "test"
        return "val" if point < self.test_fraction + self.val_fraction else "train"

    def assign_grouped(
        self, study_id: str, patient: object, listed_split: str | None
    ) -> str | None:
        """Return the split of a study whose patient, if known, must not be in two splits."""
        by_study = patient in (None, "") or reserved_split(study_id) is not None
        return self.assign(study_id if by_study else f"patient {patient}", listed_split)
