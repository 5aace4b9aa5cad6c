"""Freed memory is kept where glibc would return it, unless the user has set malloc's variables."""

from __future__ import annotations

import gc
import os
import platform
import sys

import pytest

from tests import processes
from xraygpt.common import memory

SCRIPT = """
import resource, torch
from xraygpt.common.memory import retain_freed_memory
changed = retain_freed_memory() if {keep} else None
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(12)  # warm up
print(changed, faults(10))
"""


def run(keep, **variables):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    script = [sys.executable, "-c", SCRIPT.format(keep=keep)]
    result = processes.run(
        script, env=clean | variables, capture_output=True, text=True, check=True
    )
    changed, faults = result.stdout.split()
    return changed, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_of_freed_tensors_is_reused():
    _, default_faults = run(False)
    changed, faults = run(True)
    assert changed == "True" and faults < default_faults / 10


@pytest.mark.slow
def test_the_users_settings_are_respected():
    assert run(True, MALLOC_ARENA_MAX="2")[0] == "False"


def test_collection_is_restored_even_after_an_error():
    assert gc.isenabled()
    with pytest.raises(KeyError), memory.pause_gc():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with memory.pause_gc():
            pass
        assert not gc.isenabled()  # it was off before
    finally:
        gc.enable()
