"""Random numbers seeded by an RNG key, so that workers, ranks and resuming do not change them."""

from __future__ import annotations

import hashlib
import random


def keyed_int(*key: object) -> int:
    """Return a 63-bit integer hash of `key`, the same in every process and Python version."""
    text = "\x1f".join(str(k) for k in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_random(*key: object) -> random.Random:
    """Return a generator seeded by `key`, e.g. ``(seed, epoch, sample_id, "prompt")``."""
    return random.Random(keyed_int(*key))
