"""Controls: the same corpus with the wrong image, or none. Doing as well is ignoring the image."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.draws import keyed_random
from xraygpt.datasets.base import ImageRef, ReadImage, Record, StudyDataset, reference_of


def shuffled(data: StudyDataset, seed: int) -> StudyDataset:
    """`data` with the images of other studies, whose answer is another one, too.

    A derangement by study and by answer text: no sample keeps its image, nor gets one that deserves
    the same answer. Samples trade only with those of as many images.
    """
    texts = [reference_of(data.turns_of(i)) for i in range(len(data))]
    order = derangement(data.records, texts, seed)
    records = [
        replace(r, images=data.records[j].images) for r, j in zip(data.records, order, strict=True)
    ]
    return _like(data, records, data.read_image)


def blanked(data: StudyDataset) -> StudyDataset:
    """`data` with every image black."""
    return _like(data, data.records, partial(black_image, read_image=data.read_image, known={}))


def without_images(data: StudyDataset) -> StudyDataset:
    """`data` as text alone; the collator takes the marks out of the text."""
    return _like(data, [replace(r, images=()) for r in data.records], data.read_image)


def most_common_answer(data: StudyDataset) -> str:
    """The answer most samples have; of equals, the first in the alphabet."""
    counts = Counter(reference_of(data.turns_of(i)) for i in range(len(data)))
    return min(counts, key=lambda text: (-counts[text], text)) if counts else ""


def derangement(records: Sequence[Record], texts: Sequence[str], seed: int) -> list[int]:
    """For each record the index of the one whose images it gets.

    Rejects partners of the same study or the same text; where none is left (a corpus of one answer)
    the text may repeat, and a study alone keeps its images.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[len(record.images)].append(i)
    order = list(range(len(records)))
    for count, members in groups.items():
        rng = keyed_random(seed, count, "derangement")
        targets = members[:]
        rng.shuffle(targets)

        def bad(i: int, j: int) -> bool:
            return records[i].study_id == records[j].study_id or texts[i] == texts[j]

        for _ in range(20):  # swap the bad ones away; a few rounds suffice unless it is impossible
            wrong = [k for k, i in enumerate(members) if bad(i, targets[k])]
            if not wrong:
                break
            for k in wrong:
                m = rng.randrange(len(members))
                if not bad(members[k], targets[m]) and not bad(members[m], targets[k]):
                    targets[k], targets[m] = targets[m], targets[k]
        for i, j in zip(members, targets, strict=True):
            order[i] = j
    return order


def _like(data: StudyDataset, records: Sequence[Record], read_image: ReadImage) -> StudyDataset:
    return StudyDataset(
        records,
        read_image,
        on_error=data.on_error,
        seed=data.seed,
        cacheable=data.cacheable,
        signature=data.signature,
    )


def is_blank(data: StudyDataset) -> bool:
    """Whether `blanked` made this dataset."""
    return getattr(data.read_image, "func", None) is black_image


def black_image(ref: ImageRef, draw: str, read_image: Any, known: dict[str, Tensor]) -> Tensor:
    """What `read_image` would make of a black picture; found once."""
    if "black" not in known:
        black = getattr(read_image, "black", None)
        known["black"] = black() if black else torch.full_like(read_image(ref, draw), 0)
    return known["black"]
