"""LAVIS's own registry, schedules and configuration loader beside ours, on the same input."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from tests.conftest import REPO
from tests.parity.reference import lavis_modules
from xraygpt.common.config import load, to_tree
from xraygpt.common.model_keys import read_key
from xraygpt.common.registry import registry
from xraygpt.experiment import Training
from xraygpt.runners.schedules import Schedule

EPOCHS, STEPS, WARMUP = 5, 40, 25
FACTS: dict[str, float] = {"init_lr": 1e-4, "min_lr": 1e-5}
KINDS = ("builder", "task", "model", "processor", "runner", "lr_scheduler")


def original_rates(name: str, **more: Any) -> list[float]:
    """What LAVIS's scheduler sets at every step of a run, warm-up counted in the first epoch."""
    optims, lavis = lavis_modules("lavis.common.optims", "lavis.common.registry")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.0)
    scheduler = lavis.registry.get_lr_scheduler_class(name)(
        optimizer=optimizer, max_epoch=EPOCHS, **FACTS, **more
    )
    assert type(scheduler).__module__ == optims.__name__
    rates = []
    for epoch in range(EPOCHS):
        for step in range(STEPS):
            scheduler.step(cur_epoch=epoch, cur_step=step)
            rates.append(optimizer.param_groups[0]["lr"])
    return rates


def our_rates(name: str, warmup: int, decay: float = 1.0) -> list[float]:
    schedule = Schedule(
        **FACTS, warmup_lr=1e-6, warmup_steps=warmup, total_steps=EPOCHS * STEPS,
        steps_per_epoch=STEPS, decay_rate=decay,
    )  # fmt: skip
    return [registry.get_lr_scheduler_class(name)(s, schedule) for s in range(EPOCHS * STEPS)]


def test_the_step_schedule_is_the_originals_at_every_step():
    more = {"warmup_start_lr": 1e-6, "warmup_steps": WARMUP, "decay_rate": 0.5}
    theirs = original_rates("linear_warmup_step_lr", **more)
    assert our_rates("linear_warmup_step_lr", WARMUP, 0.5) == pytest.approx(theirs, rel=1e-12)


def test_the_cosine_is_the_originals_where_both_have_a_point():
    """LAVIS moves once an epoch, ours at every step; warm-up is the same."""
    theirs = original_rates("linear_warmup_cosine_lr")
    ours = our_rates("linear_warmup_cosine_lr", 0)
    assert ours[::STEPS] == pytest.approx(theirs[::STEPS], rel=1e-12)
    more = {"warmup_start_lr": 1e-6, "warmup_steps": WARMUP}
    theirs = original_rates("linear_warmup_cosine_lr", **more)
    ours = our_rates("linear_warmup_cosine_lr", WARMUP)
    assert ours[:WARMUP] == pytest.approx(theirs[:WARMUP], rel=1e-12)


def test_the_registry_has_the_originals_verbs():
    (lavis,) = lavis_modules("lavis.common.registry")
    for kind in KINDS:
        for verb in (f"register_{kind}", f"get_{kind}_class"):
            assert callable(getattr(lavis.registry, verb))
            assert callable(getattr(registry, verb))
    for verb in (n for n in dir(lavis.registry) if n.startswith("list_")):
        assert isinstance(getattr(registry, verb)(), list)
    assert not hasattr(lavis.registry, "list_builders")
    mine = lavis.registry.register_lr_scheduler("ours")(
        registry.get_lr_scheduler_class("constant_lr")
    )
    assert lavis.registry.get_lr_scheduler_class("ours") is mine


class Preset:
    """Stands for a model or builder class in LAVIS's registry: it names its default YAML."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def default_config_path(self, **_: Any) -> str:
        return str(self.path)


OPTIONS = ["run.init_lr=0.002", "model.num_query_token=8", "model.qformer.layers=3"]


@pytest.mark.parametrize(
    "file", ["own_stage1.yaml", "iu_xray_stage1.yaml", "quickstart_stage2.yaml"]
)
def test_a_yaml_means_the_same_to_both_loaders(file: str, tmp_path: Path, monkeypatch):
    """Preset below the user's keys, options above them."""
    monkeypatch.setenv("XRAYGPT_DATA", str(tmp_path))
    lavis, config = lavis_modules("lavis.common.registry", "lavis.common.config")
    path = REPO / "train_configs" / file
    raw = OmegaConf.load(path)
    model_type = raw.model.model_type
    preset = REPO / "xraygpt" / "configs" / "models" / "xraygpt" / f"{model_type}.yaml"
    wrapped, empty = tmp_path / "preset.yaml", tmp_path / "empty.yaml"
    OmegaConf.save(
        OmegaConf.create({"model": OmegaConf.load(preset).get("model", OmegaConf.load(preset))}),
        wrapped,
    )
    OmegaConf.save(OmegaConf.create({"datasets": {}}), empty)
    lavis.registry.mapping["model_name_mapping"][raw.model.arch] = Preset(wrapped)
    for label in raw.datasets:
        lavis.registry.mapping["builder_name_mapping"][label] = Preset(empty)
    theirs = config.Config(Namespace(cfg_path=str(path), options=OPTIONS)).get_config()
    theirs = OmegaConf.to_container(theirs, resolve=True)
    ours = to_tree(load(Training, path, OPTIONS))
    compared = 0
    for root in ("model", "run"):
        for key, value in theirs[root].items():
            own = read_key(ours[root], key) if root == "model" else ours[root][key]
            if isinstance(value, (int, float, str, bool)) and not isinstance(own, dict):
                assert own == value, (root, key)
                compared += 1
    assert ours["model"]["qformer"]["layers"] == theirs["model"]["qformer"]["layers"] == 3
    assert ours["model"]["qformer"]["num_queries"] == 8
    assert ours["run"]["init_lr"] == 0.002
    assert compared > 12
