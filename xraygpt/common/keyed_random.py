"""Random draws keyed by what they are for: workers, ranks and resumption cannot change them."""

from __future__ import annotations

import hashlib
import random


def keyed_int(*key: object) -> int:
    """A 63-bit integer of `key` alone, the same in every process and Python version."""
    text = "\x1f".join(str(k) for k in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def keyed_random(*key: object) -> random.Random:
    """A generator of its own for `key`, e.g. ``(seed, epoch, sample_id, "prompt")``."""
    return random.Random(keyed_int(*key))
