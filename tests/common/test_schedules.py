"""Schedules against hand-computed values; warm-up is counted over the run."""

from __future__ import annotations

import pytest

from xraygpt.common.registry import registry
from xraygpt.common.schedules import Schedule

RUN = Schedule(
    init_lr=1.0,
    min_lr=0.1,
    warmup_lr=0.2,
    warmup_steps=4,
    total_steps=12,
    steps_per_epoch=3,
    decay_rate=0.5,
)


def rates(name: str) -> list[float]:
    schedule = registry.get_lr_scheduler_class(name)
    return [schedule(step, RUN) for step in range(13)]


def test_cosine():
    lr = rates("linear_warmup_cosine_lr")
    assert lr[:5] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0]
    )  # no restart at step 3, an epoch's end
    assert lr[8] == pytest.approx(0.1 + 0.9 * 0.5)  # half-way down
    assert lr[12] == pytest.approx(0.1)


def test_step():
    lr = rates("linear_warmup_step_lr")
    assert lr[3:10] == pytest.approx([0.8, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125])
    assert lr[12] == pytest.approx(0.1)  # never below min_lr


def test_constant():
    assert rates("constant_lr")[4:] == [1.0] * 9
