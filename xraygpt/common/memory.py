"""Memory management: keep freed memory, pause garbage collection, measure the peak."""

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
_MAX_INT = 2**31 - 1  # mallopt takes an int


def retain_freed_memory() -> bool:
    """Make glibc keep the memory of freed tensors instead of returning it to the system.

    By default, glibc maps each tensor of 32 MiB or more separately: every generation step maps,
    zeroes and unmaps the growing keys and values, and half of the time is spent in the kernel.
    With this setting, resident memory stays at its peak. Nothing changes if the user has set
    malloc's environment variables or uses another allocator or C library.

    Returns:
        Whether the setting was changed.
    """
    user_settings = [k for k in os.environ if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"]
    if not sys.platform.startswith("linux") or user_settings or os.environ.get("LD_PRELOAD"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP, _MAX_INT) and mallopt(_TRIM, _MAX_INT))


@contextlib.contextmanager
def pause_gc() -> Iterator[None]:
    """Context manager that pauses garbage collection while many long-lived objects are created."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def release_freed_memory() -> None:
    """Return freed memory to the system after large objects were deleted (glibc only)."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def reset_peak(device: Any) -> None:
    """Restart the measurement for `peak_bytes`; works on CUDA and on Linux."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def peak_bytes(device: Any) -> int:
    """Return the peak bytes since `reset_peak`: of tensors on a GPU, otherwise of this process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kib = int(next(s for s in status.splitlines() if s.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        import resource

        max_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(max_rss if sys.platform == "darwin" else max_rss * 1024)
    return kib * 1024
