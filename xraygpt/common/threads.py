"""OpenMP settings that determine how long waiting threads spin."""

from __future__ import annotations

import os
import sys

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
    if "torch" in sys.modules or any(name in os.environ for name in user_settings):
        return False
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return True
