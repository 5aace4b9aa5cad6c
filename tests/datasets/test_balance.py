"""Class-balanced sampling: rare findings are more frequent, and epochs keep their size."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.conftest import toy_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError
from xraygpt.datasets.balance import record_labels, sampling_weights, systematic_sample
from xraygpt.datasets.base import Record, StudyDataset
from xraygpt.datasets.mixture import Mixture
from xraygpt.experiment import Training, build_runner
from xraygpt.prompting.renderer import Turn


def corpus(codes: list[list[str]], text: str = "Clear lungs.") -> StudyDataset:
    turns = (Turn(role="user", text="?"), Turn(role="assistant", text=text))
    records = [Record(f"s{i}", f"s{i}", (), turns, {"codes": c}) for i, c in enumerate(codes)]
    return StudyDataset(records, read_media=lambda ref, rng_key: None)  # type: ignore[arg-type,return-value]


CODES = [["normal"]] * 80 + [["Opacity/lung", "normal"]] * 15 + [["Scoliosis/left"]] * 5


def test_full_balance_makes_all_findings_equally_frequent():
    mixture = Mixture([corpus(CODES)], [9.0], [1.0])
    counts = Counter(mixture.epoch(0, seed=1))
    assert sum(counts.values()) == 900
    groups = [sum(counts[i] for i in r) for r in (range(80), range(80, 95), range(95, 100))]
    # "normal" has 95 studies, 15 of which are weighted by the rarer opacity.
    weights = [80, 15 * 95 / 15, 5 * 95 / 5]
    assert groups == pytest.approx([900 * w / sum(weights) for w in weights], abs=3)
    scoliosis = [counts[i] for i in range(95, 100)]
    assert max(scoliosis) - min(scoliosis) <= 1


def test_power_interpolates_and_zero_is_the_unbalanced_order():
    unbalanced = Mixture([corpus(CODES)], [1.0], [0.0]).epoch(3, seed=1)
    assert unbalanced == Mixture([corpus(CODES)]).epoch(3, seed=1)
    rare = [
        sum(i >= 95 for i in Mixture([corpus(CODES)], [9.0], [p]).epoch(0, seed=1))
        for p in (0.0, 0.5, 1.0)
    ]
    assert rare[0] == 45 and rare[0] < rare[1] < rare[2]


def test_samples_are_keyed_and_differ_between_epochs():
    mixture = Mixture([corpus(CODES)], [1.0], [0.7])
    assert mixture.epoch(2, seed=1) == mixture.epoch(2, seed=1) != mixture.epoch(3, seed=1)
    equal_weights = systematic_sample([1.0] * 10, 10, "key")
    assert sorted(equal_weights) == list(range(10))


def test_labels_come_from_codes_or_else_from_the_labeller():
    assert record_labels(corpus([["Opacity/lung"], []])) == [{"opacity"}, set()]
    labels = record_labels(corpus([[], []], text="The heart is enlarged."))
    assert labels == [{"cardiomegaly"}] * 2
    assert sampling_weights([set(), set()], 1.0) == [1.0, 1.0]


def test_balance_is_a_setting_of_every_corpus(tmp_path, toy):
    run = f"  task: report_generation\n  output_dir: {tmp_path}\n  device: cpu\n  max_steps: 1"
    path = tmp_path / "t.yaml"
    path.write_text(toy_yaml(toy, run, data="    balance: 1.0"))
    splits = build_runner(load(Training, path)).splits
    assert splits["train"].sampling_weights[0] is not None
    assert splits["val"].sampling_weights == [None]
    with pytest.raises(ConfigError, match=r"balance: must be in"):
        load(Training, path, ["datasets.toy.balance=2.0"])
