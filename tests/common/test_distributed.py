"""What accelerate's configuration asks for and this loop does not do is said."""

from __future__ import annotations

import pytest
import torch

from xraygpt.common import distributed
from xraygpt.common.distributed import autocast, is_lower, make_accelerator
from xraygpt.common.errors import InputError


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "PARALLELISM_CONFIG"])
def test_engines_that_step_themselves_are_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "false")
    assert make_accelerator("cpu").num_processes == 1
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=r"not wired in.*run\.shard_llm lays"):
        make_accelerator("cpu")


def test_deepspeed_is_for_training_where_it_is_installed(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(InputError, match=r"not wired in but for train\.py"):
        make_accelerator("cpu")
    monkeypatch.setattr(distributed, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not here: pip install deepspeed"):
        make_accelerator("cpu", training=True)
    monkeypatch.setattr(distributed, "find_spec", lambda name: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(InputError, match="is started by accelerate launch, or by torchrun"):
        make_accelerator("cpu", training=True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(distributed.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match=r"there is no g\+\+ here"):
        make_accelerator("cpu", training=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=r"set run\.device: auto"):
        make_accelerator("cpu", training=True)


def test_amp_on_a_cpu_is_asked_for_by_name():
    one = torch.ones(2, 2)
    for amp, dtype in ((False, torch.float32), (True, torch.float32), ("bf16", torch.bfloat16)):
        with autocast(torch.device("cpu"), amp):
            assert (one @ one).dtype == dtype
    assert is_lower(torch.device("cuda"), True) and not is_lower(torch.device("cuda"), False)
