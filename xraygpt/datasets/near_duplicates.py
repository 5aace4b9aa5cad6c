"""Near copies among many reports: locality-sensitive hashing of their MinHash signatures.

Signatures are cut into bands. Only reports that agree in all values of some band are compared
(Indyk and Motwani 1998), so that a million reports do not need a trillion comparisons.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from xraygpt.datasets.report_signatures import BINS

RECALL = 0.99  # probability that a pair at the threshold is compared
WINDOW = 64  # neighbours in a sorted band that a report is compared with
_PAIRS = 50_000  # compared at once
_UPDATES = {1, 2, 4, 8, 16, 32, WINDOW}  # shifts after which the groups are updated


def band_size(threshold: float) -> int:
    """Return the largest number of values in a band with which pairs are found with `RECALL`."""
    for size in range(BINS, 1, -1):
        if 1 - (1 - threshold**size) ** (BINS // size) >= RECALL:
            return size
    return 1


def band_keys(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Return a 64-bit key for each band, (bands, n) uint64, from signatures (n, 128)."""
    size = band_size(threshold)
    keys = np.zeros((BINS // size, len(signatures)), np.uint64)
    for band, key in enumerate(keys):
        for column in range(band * size, (band + 1) * size):
            key *= np.uint64(0x100000001B3)  # FNV-1a
            key ^= signatures[:, column].astype(np.uint64)
            key ^= key >> np.uint64(29)
    return keys


def similarities(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Estimate the Jaccard index of pairs of signatures, (n, 128) each, in [0, 1]."""
    shares: np.ndarray = (first == second).mean(axis=1)
    return shares


def near_duplicate_groups(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """Group reports that are near copies, directly or through further reports.

    In a band where more than `WINDOW` reports agree, each is compared with its next neighbours in
    the order of another band. Groups of thousands of copies are found through these chains.

    Args:
        signatures: (n, 128) uint16.
        threshold: Smallest Jaccard index of near copies, in (0, 1].

    Returns:
        The group of each report, (n,) integers from 0.
    """
    count = len(signatures)
    groups = np.arange(count)
    if count < 2:
        return groups
    keys = band_keys(signatures, threshold)
    for band, key in enumerate(keys):
        order = np.lexsort((keys[(band + 1) % len(keys)], key))
        groups = _merge_band(signatures, threshold, key[order], order, groups)
    return groups


def _merge_band(
    signatures: np.ndarray,
    threshold: float,
    sorted_keys: np.ndarray,
    order: np.ndarray,
    groups: np.ndarray,
) -> np.ndarray:
    """Return the groups after merging the near copies that agree in one band."""
    count = len(order)
    positions = np.nonzero(sorted_keys[1:] == sorted_keys[:-1])[0]
    links: list[np.ndarray] = []
    for shift in range(1, WINDOW + 1):
        first, second = order[positions], order[positions + shift]
        is_new = groups[first] != groups[second]
        links += _linked(signatures, threshold, first[is_new], second[is_new])
        if links and shift in _UPDATES:
            groups, links = _connect(groups, links), []
        positions = positions[positions + shift + 1 < count]
        positions = positions[sorted_keys[positions] == sorted_keys[positions + shift + 1]]
        if not len(positions):
            break
    return _connect(groups, links) if links else groups


def _linked(
    signatures: np.ndarray, threshold: float, first: np.ndarray, second: np.ndarray
) -> list[np.ndarray]:
    """Return the pairs that are near copies, as arrays of shape (2, n)."""
    links = []
    for start in range(0, len(first), _PAIRS):
        a, b = first[start : start + _PAIRS], second[start : start + _PAIRS]
        near = similarities(signatures[a], signatures[b]) >= threshold
        if near.any():
            links.append(np.stack([a[near], b[near]]))
    return links


def connect_equal(groups: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Merge the groups of items with the same label; a negative label is no label.

    Args:
        groups: Group of each item, (n,) integers in [0, n).
        labels: Label of each item, (n,) integers.
    """
    items = np.nonzero(labels >= 0)[0]
    _, first, inverse = np.unique(labels[items], return_index=True, return_inverse=True)
    return _connect(groups, [np.stack([items, items[first][inverse]])])


def _connect(groups: np.ndarray, links: list[np.ndarray]) -> np.ndarray:
    """Merge the groups of linked items."""
    a, b = groups[np.concatenate(links, axis=1)]
    count = len(groups)
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(count, count))
    _, component = connected_components(graph, directed=False)
    merged: np.ndarray = component[groups]
    return merged


class NearDuplicateIndex:
    """Finds which of some reports have a near copy among many others, which are only streamed.

    Args:
        signatures: Signatures of the reports, (n, 128) uint16.
        threshold: Smallest Jaccard index of near copies.
    """

    def __init__(self, signatures: np.ndarray, threshold: float) -> None:
        self._signatures, self._threshold = signatures, threshold
        keys = band_keys(signatures, threshold)
        self._orders = np.argsort(keys, axis=1)
        self._sorted = np.take_along_axis(keys, self._orders, axis=1)
        self.found = np.zeros(len(signatures), bool)
        """Whether a near copy of each report has been seen, (n,)."""

    def compare(self, others: np.ndarray) -> None:
        """Compare the reports with further signatures, (m, 128) uint16."""
        for band, keys in enumerate(band_keys(others, self._threshold)):
            start = np.searchsorted(self._sorted[band], keys, "left")
            counts = np.searchsorted(self._sorted[band], keys, "right") - start
            rows = np.repeat(np.arange(len(others)), counts)
            within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
            own = self._orders[band][np.repeat(start, counts) + within]
            is_open = ~self.found[own]
            own, rows = own[is_open], rows[is_open]
            for i in range(0, len(own), _PAIRS):
                a, b = own[i : i + _PAIRS], rows[i : i + _PAIRS]
                near = similarities(self._signatures[a], others[b]) >= self._threshold
                self.found[a[near]] = True
