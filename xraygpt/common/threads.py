"""Threads of torch on a CPU: how long they wait, and work that each does by itself."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

SPINS = "10000"  # for GNU OpenMP: a few microseconds, the usual gap between parallel regions


def limit_openmp_spinning() -> bool:
    """Make waiting OpenMP threads sleep after a short spin.

    A small model on the CPU runs thousands of short parallel regions per second. If another program
    uses a core too, spinning threads take CPU time from the thread they wait for, and everything
    becomes ten times slower. This function must be called before torch loads OpenMP.

    Returns:
        Whether the limit was set. It is not if the user has set one or torch is already imported.
    """
    user_settings = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    # pandas imports pyarrow if it is installed, whose allocator starts a thread of its own. Loader
    # workers are forked, which threads do not survive.
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    if "torch" in sys.modules or any(name in os.environ for name in user_settings):
        return False
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return True


def in_threads(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run jobs side by side, each in a single thread, without gradients.

    With small tensors, torch's threads spend more time waiting for each other than computing, above
    all if another program uses a core too. Threads with a job each do not wait.

    Args:
        jobs: Functions that use torch; at most as many run at once as torch has threads.

    Returns:
        The results in the order of the jobs.
    """
    import torch

    count = torch.get_num_threads()

    def run(job: Callable[[], T]) -> T:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return job()

    try:
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(run, jobs))
    finally:
        torch.set_num_threads(count)
