"""Unsupported accelerate configurations are refused with a message."""

from __future__ import annotations

import pytest
import torch

from xraygpt.common import distributed
from xraygpt.common.distributed import autocast, make_accelerator, uses_bfloat16
from xraygpt.common.errors import InputError


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "PARALLELISM_CONFIG"])
def test_unsupported_engines_are_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "false")
    assert make_accelerator("cpu").num_processes == 1
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=r"not supported.*run\.shard_llm shards"):
        make_accelerator("cpu")


def test_deepspeed_requires_training_and_its_dependencies(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match=r"not supported except in train\.py"):
        make_accelerator("cpu")
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="missing; run pip install deepspeed"):
        make_accelerator("cpu", training=True)
    monkeypatch.setattr(distributed, "find_spec", lambda name: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="must be started with accelerate launch or torchrun"):
        make_accelerator("cpu", training=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(distributed.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"with g\+\+, which is not installed"):
        make_accelerator("cpu", training=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"set run\.device: auto"):
        make_accelerator("cpu", training=True)


def test_amp_on_a_cpu_needs_an_explicit_bf16():
    ones = torch.ones(2, 2)
    for amp, dtype in ((False, torch.float32), (True, torch.float32), ("bf16", torch.bfloat16)):
        with autocast(torch.device("cpu"), amp):
            assert (ones @ ones).dtype == dtype
    assert uses_bfloat16(torch.device("cuda"), True) and not uses_bfloat16(
        torch.device("cuda"), False
    )
