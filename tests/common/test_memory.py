"""Freed memory is kept where glibc would give it back, and left alone where the user decided."""

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
from xraygpt.common.memory import keep_freed_memory
done = keep_freed_memory() if {keep} else None
def faults(n):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(10_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(12)  # it settles first
print(done, faults(10))
"""


def run(keep, **variables):
    free = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_", "LD_"))}
    script = [sys.executable, "-c", SCRIPT.format(keep=keep)]
    done = processes.run(script, env=free | variables, capture_output=True, text=True, check=True)
    said, faults = done.stdout.split()
    return said, int(faults)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_tensor_freed_is_not_mapped_anew():
    _, often = run(False)
    said, seldom = run(True)
    assert said == "True" and seldom < often / 10


@pytest.mark.slow
def test_what_the_user_set_stays():
    assert run(True, MALLOC_ARENA_MAX="2")[0] == "False"


def test_collection_comes_back_even_after_an_error():
    assert gc.isenabled()
    with pytest.raises(KeyError), memory.no_collection():
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with memory.no_collection():
            pass
        assert not gc.isenabled()  # it was off before
    finally:
        gc.enable()
