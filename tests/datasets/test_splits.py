"""Hashed splits and folds, and studies that no corpus can put into training."""

from __future__ import annotations

from pathlib import Path

import pytest

from xraygpt.datasets.records import RecordsBuilder
from xraygpt.datasets.row_reader import RowReader
from xraygpt.datasets.splits import SplitRule
from xraygpt.vocabulary.openi import (
    lockbox_studies,
    published_test_studies,
    published_val_studies,
    reserved_split,
)


def test_hashed_split_is_by_study_and_stable():
    rule = SplitRule(val_fraction=0.2, test_fraction=0.1)
    splits = [rule.assign(f"study{i}", None) for i in range(3000)]
    assert splits == [rule.assign(f"study{i}", None) for i in range(3000)]
    assert 0.17 < splits.count("val") / 3000 < 0.23
    assert 0.08 < splits.count("test") / 3000 < 0.12
    other = SplitRule(val_fraction=0.2, test_fraction=0.1, seed=1)
    assert [other.assign(f"study{i}", None) for i in range(3000)] != splits


def test_each_study_is_val_in_one_fold():
    studies = [f"s{i}" for i in range(500)]
    rules = [SplitRule(folds=5, fold=k) for k in range(5)]
    splits = [[rule.assign(s, None) for s in studies] for rule in rules]
    by_study = list(zip(*splits, strict=True))
    assert all(s.count("val") == 1 and s.count("train") == 4 for s in by_study)
    sizes = [fold.count("val") for fold in splits]
    assert min(sizes) > 70 and sum(sizes) == 500
    assert rules[0].assign("s1", "test") == "test"  # the listed split has priority
    with pytest.raises(ValueError, match=r"fold: must be at least 0 and below folds \(5\), got 5"):
        SplitRule(folds=5, fold=5)
    with pytest.raises(ValueError, match="cannot be combined with val_fraction"):
        SplitRule(folds=5, val_fraction=0.1)


LOCKED, TESTED = min(lockbox_studies()), min(published_test_studies())


def spellings(study: str) -> tuple[str, ...]:
    number = study[3:]
    kaggle = f"{number}_IM-0005-1001.dcm.png"
    return study, f"CXR{number}_IM-0005-1001.png", f"CXR{number}_1_IM-0005-1001.png", kaggle


def test_the_lockbox_is_two_hundred_studies_outside_the_published_protocol():
    assert len(lockbox_studies()) == 200
    assert not lockbox_studies() & (published_test_studies() | published_val_studies())
    assert all(study.startswith("CXR") and study[3:].isdigit() for study in lockbox_studies())


@pytest.mark.parametrize(("study", "split"), [(LOCKED, "lockbox"), (TESTED, "test")])
def test_reserved_studies_are_found_under_every_name_and_whatever_the_corpus_lists(study, split):
    assert {reserved_split(name) for name in spellings(study)} == {split}
    rules = [SplitRule(train=["train", "extra"]), SplitRule(field=None), SplitRule(folds=2)]
    for rule in rules:
        for listed in ("train", "extra", "val", None):
            assert rule.assign(study, listed) == split
            assert rule.assign_grouped(study, "p1", listed) == split
    assert reserved_split(study[3:]) is None
    assert SplitRule(train=["train", "extra"]).assign("CXR99999", "extra") == "train"


def test_a_listed_lockbox_is_no_training_data():
    assert SplitRule().assign("mine", "lockbox") == "lockbox"
    for reserved in ("test", "lockbox"):
        with pytest.raises(ValueError, match=f"train: '{reserved}' is also listed in {reserved}"):
            SplitRule(train=["train", reserved])
    assert SplitRule(train=["train", "lockbox"], lockbox=[]).assign("mine", "lockbox") == "train"
    assert SplitRule(train=["train", "lockbox"], lockbox=[]).assign(LOCKED, "train") == "lockbox"


@pytest.mark.parametrize(("study", "split"), [(LOCKED, "lockbox"), (TESTED, "test")])
@pytest.mark.parametrize("field", ["study", "image", "images", "id"])
def test_one_openi_name_in_a_row_reserves_it(study, split, field):
    name = spellings(study)[3]
    value = [{"path": f"images/{name}"}] if field == "images" else name
    row = {"study": "s1", "split": "train", field: value}
    reader = RowReader(RecordsBuilder.Config(), Path())
    assert reader.split_of_study(reader.study_id(row), row) == split
    assert reader.split_of_study("s1", {"study": "s1", "split": "train", "id": study}) == "train"
