"""Class-balanced sampling of records, so that rare findings are seen often enough."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate

from xraygpt.common.keyed_random import keyed_random
from xraygpt.datasets.base import StudyDataset, reference_text
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.questions import headings


def sampling_weights(labels: Sequence[Collection[str]], power: float) -> list[float]:
    """Return how often each record is expected to be sampled in an epoch, 1 on average.

    The weight of a record is (1 / frequency of its rarest label) ** `power`: 0 weights all records
    equally, 1 gives every label the same probability (class-balanced sampling), and other values
    interpolate (Mahajan et al. 2018).

    Args:
        labels: Labels of each record; one without labels is weighted like the most common label.
        power: Strength of the balancing, in [0, 1].
    """
    counts = Counter(name for record_labels in labels for name in record_labels)
    if not counts:
        return [1.0] * len(labels)
    max_count = max(counts.values())
    weights = [
        max((max_count / counts[n] for n in names), default=1.0) ** power for names in labels
    ]
    scale = len(weights) / sum(weights)
    return [weight * scale for weight in weights]


def record_labels(data: StudyDataset) -> list[set[str]]:
    """Return each record's coded headings or, in an uncoded corpus, its reference's findings."""
    coded = [headings(record.meta.get("codes") or ()) for record in data.records]
    if any(coded):
        return coded
    texts = [reference_text(data.get_turns(i)) for i in range(len(data))]
    return [get_vocabulary(data.vocabulary).positive(text) for text in texts]


def systematic_sample(weights: Sequence[float], count: int, *key: object) -> list[int]:
    """Sample `count` indices; each occurs its expected number of times, rounded up or down.

    This is systematic sampling (Madow and Madow 1944) from a random order determined by `key`.
    """
    order = list(range(len(weights)))
    rng = keyed_random(*key, "balance")
    rng.shuffle(order)
    ends = list(accumulate(weights[i] for i in order))
    step = ends[-1] / count
    start = rng.random() * step
    positions = (bisect_right(ends, start + k * step) for k in range(count))
    return [order[min(position, len(order) - 1)] for position in positions]
