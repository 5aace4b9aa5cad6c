"""Several corpora as one infinite, resumable stream of batches.

An epoch is a keyed shuffle of all corpora, each repeated `weight` times. With a global batch of G
samples, step k consumes positions k·G to (k+1)·G, so that a single number determines the position
for any number of workers and ranks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Dataset, Sampler

from xraygpt.common.keyed_random import keyed_random
from xraygpt.datasets import balance
from xraygpt.datasets.base import Sample, StudyDataset


class Mixture(Dataset[Sample | None]):
    """A concatenation of corpora.

    Args:
        parts: The corpora; empty ones are never sampled.
        weights: Passes over each corpus in one epoch; None means 1.
        powers: Class balance of each corpus, see `balance.sampling_weights`; None means 0.
        shuffle: Whether the samples of an epoch are shuffled.
    """

    def __init__(
        self,
        parts: Sequence[StudyDataset],
        weights: Sequence[float] | None = None,
        powers: Sequence[float] | None = None,
        shuffle: bool = True,
    ) -> None:
        self.shuffle = shuffle
        self.parts = list(parts)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.parts)
        powers = powers or [0.0] * len(self.parts)
        self.sampling_weights = [
            balance.sampling_weights(balance.record_labels(part), power)
            if power and len(part)
            else None
            for part, power in zip(self.parts, powers, strict=True)
        ]
        self.starts = [0]
        for part in self.parts:
            self.starts.append(self.starts[-1] + len(part))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:
        index, epoch = (key, 0) if isinstance(key, int) else key
        part, part_index = self.locate(index)
        return part[part_index, epoch]

    def locate(self, index: int) -> tuple[StudyDataset, int]:
        """Return the corpus that contains an index, and the index within that corpus."""
        for part, start in zip(reversed(self.parts), reversed(self.starts[:-1]), strict=True):
            if index >= start:
                return part, index - start
        raise IndexError(index)

    def epoch(self, number: int, seed: int) -> list[int]:
        """Return the order of the samples in one epoch, which is the same on every rank."""
        order: list[int] = []
        for part, weight, start, sampling_weights in zip(
            self.parts, self.weights, self.starts[:-1], self.sampling_weights, strict=True
        ):
            count = round(weight * len(part))
            if sampling_weights is not None and count:
                sampled = balance.systematic_sample(sampling_weights, count, seed, number, start)
                order += [start + index for index in sampled]
                continue
            passes = 0
            while count > 0 and len(part):
                indices = list(range(start, start + len(part)))
                if self.shuffle:
                    keyed_random(seed, number, start, passes, "corpus").shuffle(indices)
                order += indices[:count]
                count -= len(part)
                passes += 1
        if self.shuffle:
            keyed_random(seed, number, "epoch").shuffle(order)
        return order

    def epoch_size(self) -> int:
        """Return the number of samples in one epoch."""
        parts = zip(self.parts, self.weights, strict=True)
        return sum(round(weight * len(part)) for part, weight in parts)

    def texts(self) -> Iterator[str]:
        """Yield the texts of all corpora; see `StudyDataset.texts`."""
        return (text for part in self.parts for text in part.texts())


def longest_rows(data: Mixture, count: int, max_scanned: int = 4096) -> list[int]:
    """Return the indices of the samples with the most text, longest first.

    Args:
        data: The corpora.
        count: Number of indices to return.
        max_scanned: Approximate number of evenly spread samples to consider.
    """
    indices = range(0, len(data), max(1, len(data) // max_scanned))

    def length(index: int) -> int:
        part, part_index = data.locate(index)
        return sum(len(turn["text"]) for turn in part.get_turns(part_index))

    return heapq.nlargest(count, indices, key=length)


class StreamSampler(Sampler[list[Any]]):
    """An infinite stream of batches of ``(index, epoch)`` for one rank.

    Args:
        data: The corpora.
        seed: Seed for the order of the samples.
        batch_size: Rows per micro-batch on one rank.
        micro_batches: Micro-batches per step on one rank.
        rank: Index of this process, below `world`.
        world: Number of processes.
        first_step: Step to start from; 0 for a new run.
    """

    def __init__(
        self,
        data: Mixture,
        *,
        seed: int,
        batch_size: int,
        micro_batches: int = 1,
        rank: int = 0,
        world: int = 1,
        first_step: int = 0,
    ) -> None:
        self.data, self.seed, self.batch_size = data, seed, batch_size
        self.micro_batches, self.rank, self.world = micro_batches, rank, world
        self.first_step = first_step

    def __iter__(self) -> Iterator[list[Any]]:
        per_step = self.batch_size * self.micro_batches * self.world
        items = self._items_from(self.first_step * per_step)
        while True:
            step = [next(items) for _ in range(per_step)]
            rank_items = step[self.rank :: self.world]
            for i in range(self.micro_batches):
                yield rank_items[i * self.batch_size : (i + 1) * self.batch_size]

    def _items_from(self, position: int) -> Iterator[tuple[int, int]]:
        epoch_size = self.data.epoch_size()
        number, skip = divmod(position, epoch_size)
        while True:
            for index in self.data.epoch(number, self.seed)[skip:]:
                yield index, number
            number, skip = number + 1, 0
