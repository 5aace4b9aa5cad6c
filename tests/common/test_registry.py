"""The registry, and its functions with LAVIS's names."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from xraygpt.common.registry import Plugin, Registry, registry
from xraygpt.models.qformer_llm.model import XrayGPT


def test_functions_with_the_names_of_lavis():
    assert registry.get_model_class("xraygpt") is registry.get_model_class("mini_gpt4") is XrayGPT
    assert {"openi", "mimic", "roco", "records"} <= set(registry.list_datasets())
    assert {"report_generation", "vqa", "language_modeling"} <= set(registry.list_tasks())
    assert "linear_warmup_step_lr" in registry.list_lr_schedulers()
    assert {"eva_clip_g", "timm/<name>", "precomputed"} <= set(registry.list_encoders())
    assert registry.get_encoder_class("timm/resnet18") is registry.get_encoder_class("timm/<name>")
    assert {"adamw", "muon"} <= set(registry.list_optimizers())
    assert {"xray_image", "report_text"} <= set(registry.list_processors())
    assert "train_loop" in registry.list_runners()
    assert "language_model" in registry.list_models()


def test_duplicate_names_and_missing_configs_are_refused():
    kind = Registry("thing", key="name", package="json")

    @kind.register("a", "b")
    class First(Plugin):
        @dataclass
        class Config(Plugin.Config):
            pass

    with pytest.raises(ValueError, match=r"thing 'b' is already .*First"):
        kind.register("b")(type("Second", (First,), {"Config": First.Config}))
    with pytest.raises(TypeError, match="needs its own @dataclass Config"):
        kind.register("c")(type("Third", (First,), {}))
    with pytest.raises(KeyError, match="unknown thing 'aa'; did you mean 'a'"):
        kind.get("aa")
    assert kind.name_of(First) == "a"


def test_a_placeholder_matches_names_with_its_prefix():
    kind = Registry("thing", key="name", package="json", settings=False)
    long, short, one = (type(n, (), {}) for n in ("Long", "Short", "One"))
    kind.register("lab/<name>", "lab/<name>@<day>")(short)
    kind.register("lab/big/<name>")(long)
    kind.register("lab/big/one")(one)
    assert kind.match("lab/x/y") == (short, "x/y") and kind.get("lab/<name>") is short
    assert kind.match("lab/big/x") == (long, "x") and kind.match("lab/big/one") == (one, "")
    assert "lab/x" in kind and "la" not in kind and None not in kind
    assert list(kind) == ["lab/<name>", "lab/<name>@<day>", "lab/big/<name>", "lab/big/one"]
    with pytest.raises(ValueError, match=r"thing 'lab/<other>' is already .*Short"):
        kind.register("lab/<other>")(one)
    with pytest.raises(KeyError, match="unknown thing 'lob/x'"):
        kind.get("lob/x")
