"""MinHash signatures of reports, from which the share of common word sequences is estimated.

The similarity of two reports is the Jaccard index of their sets of three-word sequences (Broder
1997). Signatures use one-permutation hashing (Li et al. 2012) with optimal densification
(Shrivastava 2017): each sequence is hashed once, into one of 128 bins. A bin keeps 16 bits of its
smallest hash, so a signature takes 256 bytes, and the standard error of an estimate of 0.9 is about
0.03.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

WORDS = 3  # in a sequence
BINS = 128
BATCH = 512  # reports hashed at once
MAX_VOCABULARY = 500_000  # words whose hashes are kept
_WORD = re.compile(r"\d+(?:[.,]\d+)?|[^\W\d_]+")
_PROBES = 64
_EMPTY = np.uint64(2**64 - 1)
_ANY_NUMBER = np.uint64(0x9E3779B97F4A7C15)
_ODD = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of SplitMix64
_SHIFT = np.uint64(31)
_BIN_SHIFT = np.uint64(64 - 7)  # the upper seven bits are the bin


def text_digest(text: str) -> int:
    """Return a 63-bit digest of a text, the same for other white space or capitals."""
    normalised = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.blake2b(normalised.encode(), digest_size=8).digest(), "big") >> 1


def has_words(text: str) -> bool:
    """Return whether a text has any letter or digit."""
    return any(map(str.isalnum, text))


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case, without punctuation."""
    return _WORD.findall(text.lower())


def jaccard(first: str, second: str, *, ignore_numbers: bool = False) -> float:
    """Return the exact Jaccard index of two texts' three-word sequences, in [0, 1].

    Texts without words have the index 0. A text of fewer than three words is one sequence.
    """
    sets = [_sequences(text, ignore_numbers) for text in (first, second)]
    union = len(sets[0] | sets[1])
    return len(sets[0] & sets[1]) / union if union else 0.0


def _sequences(text: str, ignore_numbers: bool) -> set[tuple[str, ...]]:
    words = [("0" if ignore_numbers and w[0].isdigit() else w) for w in words_of(text)]
    if len(words) < WORDS:
        return {tuple(words)} if words else set()
    return {tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)}


class SignatureMaker:
    """Computes signatures; the same for a text in every process and version."""

    def __init__(self) -> None:
        self._hashes: dict[str, int] = {}
        rng = np.random.default_rng(20170829)
        self._probes = rng.integers(0, BINS, (BINS, _PROBES))

    def batches(self, texts: Iterable[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the signatures of up to `BATCH` texts, and those of the texts without numbers.

        Yields:
            Two arrays of shape (n, 128), uint16. In the second, all numbers are the same. Texts
            without words all have one signature, so leave them out.
        """
        source = iter(texts)
        while batch := list(islice(source, BATCH)):
            yield self.signatures(batch)

    def signatures(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return the signatures of texts, see `batches`."""
        hashes = [self._word_hashes(text) for text in texts]
        lengths = np.array([len(h) for h in hashes], dtype=np.int64)
        words = np.fromiter((h for row in hashes for h in row), np.uint64, int(lengths.sum()))
        is_number = (words & np.uint64(1)).astype(bool)
        unnumbered = np.where(is_number, _ANY_NUMBER, words)
        return self._sign(words, lengths), self._sign(unnumbered, lengths)

    def _word_hashes(self, text: str) -> list[int]:
        """Return a hash of each word, which is odd for numbers and even for other words."""
        known = self._hashes
        words = words_of(text)
        try:
            return [known[w] for w in words]
        except KeyError:
            if len(known) > MAX_VOCABULARY:
                known.clear()
            for word in words:
                if word not in known:
                    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
                    known[word] = int.from_bytes(digest, "big") & ~1 | word[0].isdigit()
            return [known[w] for w in words]

    def _sign(self, words: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Compute signatures from the hashes of all words and the number of words of each text."""
        count = len(lengths)
        document = np.repeat(np.arange(count), lengths)
        hashes = words.copy()
        for step in range(1, WORDS):  # a shorter text is one sequence, padded with zeros
            following = np.zeros_like(words)
            same = document[step:] == document[:-step]
            following[:-step] = np.where(same, words[step:], np.uint64(0))
            hashes = _mix(hashes) + following
        position = np.arange(len(words)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        last = np.maximum(np.repeat(lengths, lengths) - WORDS, 0)
        keep = position <= last
        hashes, document = _mix(hashes[keep]), document[keep]
        smallest = np.full((count, BINS), _EMPTY)
        bins = (hashes >> _BIN_SHIFT).astype(np.int64)
        np.minimum.at(smallest.reshape(-1), document * BINS + bins, hashes)
        return self._densify(smallest)

    def _densify(self, smallest: np.ndarray) -> np.ndarray:
        """Fill empty bins from other bins of the same text, in an order that is the same for all.

        Args:
            smallest: Smallest hash of each bin, (n, 128) uint64; all bits set if there is none.
        """
        is_empty = smallest == _EMPTY
        rows, bins = np.nonzero(is_empty)
        filled = smallest.copy()
        for probe in range(_PROBES + BINS):
            if not len(rows):
                break
            source = self._probes[bins, probe] if probe < _PROBES else (bins + probe) % BINS
            found = ~is_empty[rows, source]
            filled[rows[found], bins[found]] = smallest[rows[found], source[found]]
            rows, bins = rows[~found], bins[~found]
        return (_mix(filled) & np.uint64(0xFFFF)).astype(np.uint16)


def _mix(values: np.ndarray) -> np.ndarray:
    """Mix the bits of 64-bit hashes (the finalizer of SplitMix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _ODD[0]
    values = (values ^ (values >> np.uint64(27))) * _ODD[1]
    mixed: np.ndarray = values ^ (values >> _SHIFT)
    return mixed
