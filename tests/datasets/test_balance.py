"""Balanced draws: rare findings come more often, every epoch is whole, and nothing else changes."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conftest import toy_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError
from xraygpt.datasets.balance import drawn, labels_of, shares
from xraygpt.datasets.base import Record, StudyDataset
from xraygpt.datasets.mixture import Mixture
from xraygpt.experiment import Training, build_runner
from xraygpt.prompting.renderer import Turn


def corpus(codes: list[list[str]], text: str = "Clear lungs.") -> StudyDataset:
    turns = (Turn(role="user", text="?"), Turn(role="assistant", text=text))
    records = [Record(f"s{i}", f"s{i}", (), turns, {"codes": c}) for i, c in enumerate(codes)]
    return StudyDataset(records, read_media=lambda ref, draw: None)  # type: ignore[arg-type,return-value]


CODES = [["normal"]] * 80 + [["Opacity/lung", "normal"]] * 15 + [["Scoliosis/left"]] * 5


def test_full_balance_draws_every_finding_as_often():
    mixture = Mixture([corpus(CODES)], [9.0], [1.0])
    counts = Counter(mixture.epoch(0, seed=1))
    assert sum(counts.values()) == 900
    groups = [sum(counts[i] for i in r) for r in (range(80), range(80, 95), range(95, 100))]
    # "normal" has 95 studies, 15 of which count by their rarer opacity.
    raw = [80, 15 * 95 / 15, 5 * 95 / 5]
    wanted = [900 * r / sum(raw) for r in raw]
    assert groups == pytest.approx(wanted, abs=3)
    every = [counts[i] for i in range(95, 100)]
    assert max(every) - min(every) <= 1


def test_half_the_power_lies_between_and_none_is_the_old_order():
    even = Mixture([corpus(CODES)], [1.0], [0.0]).epoch(3, seed=1)
    assert even == Mixture([corpus(CODES)]).epoch(3, seed=1)
    rare = [
        sum(i >= 95 for i in Mixture([corpus(CODES)], [9.0], [p]).epoch(0, seed=1))
        for p in (0.0, 0.5, 1.0)
    ]
    assert rare[0] == 45 and rare[0] < rare[1] < rare[2]


def test_draws_are_keyed_and_differ_between_epochs():
    mixture = Mixture([corpus(CODES)], [1.0], [0.7])
    assert mixture.epoch(2, seed=1) == mixture.epoch(2, seed=1) != mixture.epoch(3, seed=1)
    assert sorted(drawn([1.0] * 10, 10, "key")) == list(range(10))  # even weights: all, once


def test_labels_are_the_coding_or_else_the_labellers():
    assert labels_of(corpus([["Opacity/lung"], []])) == [{"opacity"}, set()]
    read = labels_of(corpus([[], []], text="The heart is enlarged."))
    assert read == [{"cardiomegaly"}] * 2
    assert shares([set(), set()], 1.0) == [1.0, 1.0]


def test_it_is_a_setting_of_every_corpus(tmp_path, toy):
    run = f"  task: report_generation\n  output_dir: {tmp_path}\n  device: cpu\n  max_steps: 1"
    path = tmp_path / "t.yaml"
    path.write_text(toy_yaml(toy, run, data="    balance: 1.0"))
    runner = build_runner(load(Training, path))
    assert runner.splits["train"].shares[0] is not None and runner.splits["val"].shares == [None]
    with pytest.raises(ConfigError, match=r"balance: must lie in"):
        load(Training, path, ["datasets.toy.balance=2.0"])
