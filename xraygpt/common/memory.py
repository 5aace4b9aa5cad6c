"""How freed memory is kept on the CPU, and how much was held at most."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TRIM, _MMAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MOST = 2**31 - 1  # bytes; mallopt takes an int


def keep_freed_memory() -> bool:
    """Let glibc keep what freed tensors held instead of giving it back to the system.

    By default a tensor of 32 MiB or more is a mapping of its own: every step of a generation maps,
    zeroes and unmaps the keys and values it has just grown, and half of the time is the kernel's.
    Resident memory then stays at its peak. Where the user has set malloc's variables, another
    allocator, or another C library, nothing is changed.

    Returns:
        Whether it was done.
    """
    theirs = [k for k in os.environ if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"]
    if not sys.platform.startswith("linux") or theirs or os.environ.get("LD_PRELOAD"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP, _MOST) and mallopt(_TRIM, _MOST))


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Look for no cycles of dead objects while many live ones are made."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def give_back() -> None:
    """Let glibc return what is free now, after something large was taken apart."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def forget_peak(device: Any) -> None:
    """Let `peak` count from here, where that can be told: on CUDA, and on Linux."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak(device: Any) -> int:
    """Bytes held at most since `forget_peak`: tensors on a GPU, else all of this process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kib = int(next(x for x in status.splitlines() if x.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(most if sys.platform == "darwin" else most * 1024)
    return kib * 1024
