"""Counting of a million names in little memory, to find duplicates while a table is read."""

from __future__ import annotations

from array import array
from collections.abc import Hashable

_BUCKETS = 2**16


class SeenNames:
    """Counts how often each name was added; keeps eight bytes for each, not the names.

    Names are compared by Python's 64-bit hash. Among a million names, the probability that any two
    different ones are taken for the same is 3e-8.
    """

    def __init__(self) -> None:
        self._buckets: list[array[int] | None] = [None] * _BUCKETS
        self._repeats: dict[int, int] = {}

    def add(self, name: Hashable) -> int:
        """Add a name or number and return how often it has been added, at least 1."""
        key = hash(name)
        index = key % _BUCKETS
        bucket = self._buckets[index]
        if bucket is None:
            self._buckets[index] = array("q", (key,))
            return 1
        if key not in bucket:
            bucket.append(key)
            return 1
        self._repeats[key] = count = self._repeats.get(key, 1) + 1
        return count
