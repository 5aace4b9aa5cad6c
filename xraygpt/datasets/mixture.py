"""Several corpora as one endless, resumable stream of batches.

An epoch is a keyed shuffle of all corpora, each taken `weight` times. Step k takes items k·G …
(k+1)·G of the stream, G being the global batch, so a position is one number, whatever the workers
and ranks.
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
    """Corpora laid end to end.

    Args:
        parts: The corpora, none of them empty of meaning: an empty one is simply never drawn.
        weights: Passes over each in one epoch.
        powers: How far rare findings of each are drawn more often, see `balance.shares`.
    """

    def __init__(
        self,
        parts: Sequence[StudyDataset],
        weights: Sequence[float] | None = None,
        powers: Sequence[float] | None = None,
    ) -> None:
        self.parts = list(parts)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.parts)
        powers = powers or [0.0] * len(self.parts)
        self.shares = [
            balance.shares(balance.labels_of(part), power) if power and len(part) else None
            for part, power in zip(self.parts, powers, strict=True)
        ]
        self.starts = [0]
        for part in self.parts:
            self.starts.append(self.starts[-1] + len(part))

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:
        index, epoch = (key, 0) if isinstance(key, int) else key
        part, inner = self.locate(index)
        return part[inner, epoch]

    def locate(self, index: int) -> tuple[StudyDataset, int]:
        """The corpus an index falls into, and the place in it."""
        for part, start in zip(reversed(self.parts), reversed(self.starts[:-1]), strict=True):
            if index >= start:
                return part, index - start
        raise IndexError(index)

    def epoch(self, number: int, seed: int) -> list[int]:
        """The order of one epoch; the same on every rank."""
        order: list[int] = []
        for part, weight, start, shares in zip(
            self.parts, self.weights, self.starts[:-1], self.shares, strict=True
        ):
            wanted = round(weight * len(part))
            if shares is not None and wanted:
                places = balance.drawn(shares, wanted, seed, number, start)
                order += [start + place for place in places]
                continue
            passes = 0
            while wanted > 0 and len(part):
                one = list(range(start, start + len(part)))
                keyed_random(seed, number, start, passes, "corpus").shuffle(one)
                order += one[:wanted]
                wanted -= len(part)
                passes += 1
        keyed_random(seed, number, "epoch").shuffle(order)
        return order

    def epoch_size(self) -> int:
        """Samples of one epoch."""
        parts = zip(self.parts, self.weights, strict=True)
        return sum(round(weight * len(part)) for part, weight in parts)

    def texts(self) -> list[str]:
        """Every text of every corpus."""
        return [text for part in self.parts for text in part.texts()]


def longest_rows(data: Mixture, count: int, looked_at: int = 4096) -> list[int]:
    """Indices of the samples with the most text, longest first.

    Args:
        data: Corpora.
        count: How many.
        looked_at: Samples considered, evenly spread.
    """
    places = range(0, len(data), max(1, len(data) // looked_at))

    def length(index: int) -> int:
        part, inner = data.locate(index)
        return sum(len(turn["text"]) for turn in part.turns_of(inner))

    return heapq.nlargest(count, places, key=length)


class StreamSampler(Sampler[list[Any]]):
    """Batches of ``(index, epoch)``, from a step on, for one rank.

    Args:
        data: What to draw from.
        seed: Of the order.
        batch_size: Rows of one micro-batch on one rank.
        micro_batches: Micro-batches of one step on one rank.
        rank: This process, of `world`.
        first_step: Where to begin; 0 for a fresh run.
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
        items = self._from(self.first_step * per_step)
        while True:
            step = [next(items) for _ in range(per_step)]
            mine = step[self.rank :: self.world]
            for i in range(self.micro_batches):
                yield mine[i * self.batch_size : (i + 1) * self.batch_size]

    def _from(self, position: int) -> Iterator[tuple[int, int]]:
        epoch_size = self.data.epoch_size()
        number, skip = divmod(position, epoch_size)
        while True:
            for index in self.data.epoch(number, self.seed)[skip:]:
                yield index, number
            number, skip = number + 1, 0
