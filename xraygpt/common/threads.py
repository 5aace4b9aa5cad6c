"""How long OpenMP's threads wait for each other awake."""

from __future__ import annotations

import os
import sys

SPINS = "10000"  # of GNU OpenMP: some microseconds, as long as most pieces are apart


def wait_asleep() -> bool:
    """Let threads that wait for others sleep soon instead of spinning on.

    A small model on the CPU has thousands of short parallel pieces a second. Where another program
    wants a core too, a spinning thread keeps it from the very thread it waits for, and everything
    takes ten times as long. Acts on an OpenMP that is loaded later, so before torch is imported.

    Returns:
        Whether it was done: not where the user decided, nor where torch is loaded already.
    """
    theirs = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
    if "torch" in sys.modules or any(name in os.environ for name in theirs):
        return False
    os.environ["GOMP_SPINCOUNT"] = SPINS
    return True
