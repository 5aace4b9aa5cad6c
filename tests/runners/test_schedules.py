"""Schedules against hand-computed values; warm-up is counted over the run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.conftest import REPO
from xraygpt.common.config import load
from xraygpt.common.registry import registry
from xraygpt.experiment import Training
from xraygpt.runners.schedules import Schedule, capped_warmup

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


LOSSES = [3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.2, 1.1, 1.05, 0.5, 0.6, 0.6, 0.6, 0.7, 0.8]


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_plateau_is_torchs(patience: int):
    """An evaluation after every third step, beside torch's ReduceLROnPlateau."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience - 1, threshold=0.0, min_lr=0.1, eps=0.0
    )
    ours = registry.get_lr_scheduler_class("reduce_on_plateau_lr")
    run = replace(RUN, warmup_steps=0, plateau_patience=patience)
    history: list[tuple[int, float]] = []
    seen = set()
    for step in range(3 * len(LOSSES)):
        if step and step % 3 == 0:
            history.append((step, LOSSES[step // 3 - 1]))
            theirs.step(history[-1][1])
        lr = ours(step, replace(run, val_losses=tuple(history)))
        assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), step
        seen.add(lr)
    assert len(seen) >= 3  # it was lowered, and more than once
    whole = replace(run, val_losses=tuple((3 * (i + 1), x) for i, x in enumerate(LOSSES)))
    assert ours(8, whole) == ours(8, replace(run, val_losses=whole.val_losses[:2]))  # no future


def test_plateau_warms_up_and_counts_from_there():
    ours = registry.get_lr_scheduler_class("reduce_on_plateau_lr")
    early = ((1, 1.0), (2, 2.0), (3, 2.0))
    run = replace(RUN, plateau_patience=2, val_losses=early)
    assert [ours(step, run) for step in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    later = replace(run, val_losses=(*early, (5, 1.5), (6, float("nan"))))
    assert [ours(step, later) for step in (5, 6)] == [1.0, 0.5]
    best = replace(run, val_losses=(*early, (5, 1.5), (6, 0.9), (7, 1.0)))
    assert ours(7, best) == 1.0


def test_a_long_warmup_is_shortened_and_others_are_unchanged():
    assert capped_warmup(100, 500) == 100  # a fifth
    assert capped_warmup(101, 500) == 50
    assert capped_warmup(100, 20) == 2
    assert capped_warmup(100, 5) == 0  # the schedule starts at init_lr
    assert capped_warmup(0, 1) == 0


# Images in train (and extra) of the corpora that recipes without a fixed length read.
SIZES = {"iu_xray": 2882, "vqa_rad": 1434, "mimic": 1, "openi": 1}


@pytest.mark.parametrize("path", sorted(REPO.glob("train_configs/*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_keep_their_warmup(path):
    config = load(Training, path)
    run = config.run
    sizes = [SIZES.get(c.storage.name, 2882) * c.weight for c in config.datasets.values()]
    batch = run.batch_size_train * run.accum_grad_iters
    steps = run.max_steps or run.max_epoch * (run.iters_per_epoch or int(sum(sizes) / batch))
    assert capped_warmup(run.warmup_steps, steps) == run.warmup_steps
