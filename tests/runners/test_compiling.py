"""Compiled layers: the same training, and a clear word where nothing can be compiled."""

from __future__ import annotations

import importlib.util
import shutil
import sysconfig

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from tests.killing import same, weights
from tests.runners.test_train_loop import SHARDED, Crash, crash_at, logged, ranks, runner_of
from xraygpt.common.errors import InputError
from xraygpt.runners.compiling import compile_layers
from xraygpt.runners.logs import read_rows

COMPILED = ("run.compile=true", "run.save_every=1")


def losses(runner) -> list[tuple[float, float]]:
    rows = read_rows(runner.run_folder / "metrics.jsonl")
    return [(r["train/loss"], r["train/grad_norm"]) for r in rows if "train/loss" in r]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_a_compiled_run_is_the_plain_one_and_resumes_in_one_process(tmp_path, toy, monkeypatch):
    plain = runner_of(tmp_path, toy, name="plain")
    plain.train()
    counters.clear()
    compiled = runner_of(tmp_path, toy, *COMPILED, name="compiled")
    compiled.train()
    graphs = counters["stats"]["unique_graphs"]
    layers = len(compiled.model.llm.get_decoder().layers)
    assert 1 <= graphs <= 2 < 3 * layers  # one serves all layers; one row is a size of its own
    assert not counters["graph_break"]
    for (loss, norm), (its, its_norm) in zip(losses(plain), losses(compiled), strict=True):
        assert loss == pytest.approx(its, rel=1e-4) and norm == pytest.approx(its_norm, rel=1e-3)
    val = [
        [r["val/loss"] for r in read_rows(run.run_folder / "metrics.jsonl") if "val/loss" in r]
        for run in (plain, compiled)
    ]
    assert val[0] == pytest.approx(val[1], rel=1e-3)
    compiled._validate()
    assert counters["stats"]["unique_graphs"] == graphs  # validation compiles nothing

    broken = runner_of(tmp_path, toy, *COMPILED, name="broken")
    crash_at(broken, 3, monkeypatch)
    with pytest.raises(Crash):
        broken.train()
    where = f"run.resume_ckpt_path={tmp_path / 'broken'}"
    again = runner_of(tmp_path, toy, *COMPILED, where, name="broken")
    again.train()
    assert same(weights(tmp_path / "compiled"), weights(tmp_path / "broken"))
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
def test_two_processes_compile_a_sharded_llm(tmp_path):
    for name, world, more in (("one", 1, ()), ("two", 2, ("run.compile=true",))):
        where = f"run.output_dir={tmp_path / name}"
        rows = f"run.batch_size_train={4 // world}"
        ranks(tmp_path, world, *SHARDED, "run.max_steps=6", rows, where, *more)
    assert np.allclose(logged(tmp_path / "one"), logged(tmp_path / "two"), rtol=1e-4, atol=0)


def test_what_cannot_be_compiled_is_said(tmp_path, monkeypatch):
    from torch._inductor import cpp_builder

    model, cpu = nn.ModuleList(), torch.device("cpu")
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(InputError, match="Python's headers"):
        compile_layers(model, cpu)
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", no_compiler)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler.* turn run.compile off"):
        compile_layers(model, cpu)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="needs a C compiler"):
        compile_layers(model, torch.device("cuda"))


def no_compiler():
    from torch._inductor.exc import InvalidCxxCompiler

    raise InvalidCxxCompiler
