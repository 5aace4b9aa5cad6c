"""Which records are drawn more often than others, so that rare findings are seen often enough."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import accumulate

from xraygpt.common.keyed_random import keyed_random
from xraygpt.datasets.base import StudyDataset, reference_of
from xraygpt.vocabulary import vocabulary_of
from xraygpt.vocabulary.questions import headings


def shares(labels: Sequence[Collection[str]], power: float) -> list[float]:
    """How often each record is drawn in an epoch, 1 on average.

    A record counts by its rarest label, as one over the label's share to the `power`: 0 draws all
    alike, 1 makes every label's studies as likely as any other's (class-balanced sampling; between
    them, Mahajan et al. 2018).

    Args:
        labels: Of each record; one without any counts as the most common one does.
        power: In [0, 1].
    """
    counts = Counter(name for held in labels for name in held)
    if not counts:
        return [1.0] * len(labels)
    most = max(counts.values())
    raw = [max((most / counts[n] for n in held), default=1.0) ** power for held in labels]
    scale = len(raw) / sum(raw)
    return [value * scale for value in raw]


def labels_of(data: StudyDataset) -> list[set[str]]:
    """Coded headings of each record or, of a corpus without any, what the labeller reads in it."""
    coded = [headings(record.meta.get("codes") or ()) for record in data.records]
    if any(coded):
        return coded
    texts = [reference_of(data.turns_of(i)) for i in range(len(data))]
    return [vocabulary_of(data.vocabulary).positive(text) for text in texts]


def drawn(weights: Sequence[float], wanted: int, *key: object) -> list[int]:
    """Places of `wanted` records; each occurs its expected number of times, rounded up or down.

    Systematic sampling (Madow and Madow 1944) over the records in an order drawn with `key`.
    """
    order = list(range(len(weights)))
    rng = keyed_random(*key, "balance")
    rng.shuffle(order)
    ends = list(accumulate(weights[i] for i in order))
    step = ends[-1] / wanted
    begin = rng.random() * step
    places = (bisect_right(ends, begin + k * step) for k in range(wanted))
    return [order[min(place, len(order) - 1)] for place in places]
