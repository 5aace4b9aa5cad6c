"""What accelerate's configuration asks for and this loop does not do is said."""

from __future__ import annotations

import pytest

from xraygpt.common.distributed import make_accelerator
from xraygpt.common.errors import InputError


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "PARALLELISM_CONFIG"])
def test_engines_that_step_themselves_are_refused(monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "false")
    assert make_accelerator("cpu", amp=False).num_processes == 1
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=r"not wired in.*run\.shard_llm lays"):
        make_accelerator("cpu", amp=False)
