"""Hashed splits and folds."""

from __future__ import annotations

import pytest

from xraygpt.datasets.splits import SplitRule


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
