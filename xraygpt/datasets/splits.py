"""Which split a study belongs to: said by the corpus, hashed, or published.

The 590 studies of IU X-ray's published test split are `test` wherever they appear, so that neither
training, nor a tokenizer, nor a phantom ever sees their text.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from xraygpt.common.draws import keyed_int

# OpenI names its images CXR1004_IM-0005-1001.png; the Kaggle copy writes 1004_IM-0005-1001.dcm.png.
_OPENI_IMAGE = re.compile(r"^(?:CXR)?(\d+)_(?:\d+_)?IM-")
_OPENI_STUDY = re.compile(r"^CXR(\d+)$")


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
    seed: int = 0
    """Another seed, another hashed split."""

    def __post_init__(self) -> None:
        if min(self.val_fraction, self.test_fraction) < 0:
            raise ValueError("val_fraction and test_fraction must not be negative")
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction + test_fraction must leave something to train on (< 1)")

    def of(self, study_id: str, said: str | None) -> str | None:
        """``train``, ``val`` or ``test``; None if the field says what this rule does not use."""
        if is_published_test(study_id):
            return "test"
        if self.field is not None and said:
            named = {"train": self.train, "val": self.val, "test": self.test}
            return next((split for split, values in named.items() if said in values), None)
        point = keyed_int("split", self.seed, study_id) / 2**63
        if point < self.test_fraction:
            return "test"
        return "val" if point < self.test_fraction + self.val_fraction else "train"


def openi_study(name: str) -> str | None:
    """``CXR1004`` from an OpenI study id or image file name; None if it is neither."""
    found = _OPENI_STUDY.match(name) or _OPENI_IMAGE.match(name)
    return f"CXR{int(found[1])}" if found else None


def is_published_test(study_id: str) -> bool:
    """Whether `study_id` (or an OpenI image name) is of IU X-ray's published test split."""
    return (openi_study(study_id) or "") in published_test_studies()


@cache
def published_test_studies() -> frozenset[str]:
    """The 590 study ids of the split published with R2Gen, as ``CXR<number>``."""
    text = resources.files("xraygpt").joinpath("data/iu_xray_test_studies.txt").read_text()
    return frozenset(text.split())
