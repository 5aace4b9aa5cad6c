"""Controls: the same corpus with the wrong image, or none. Doing as well is ignoring the image."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch

from xraygpt.common.errors import DataError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.datasets.base import ReadMedia, Record, StudyDataset, reference_of
from xraygpt.media.base import Media, MediaRef, read
from xraygpt.media.geometry import Geometry
from xraygpt.prompting.content import plain_text

log = logging.getLogger(__name__)


def shuffled(data: StudyDataset, seed: int) -> StudyDataset:
    """`data` with the images of other studies, whose answer is another one, too.

    A derangement by study and by answer text: no sample keeps its image, nor gets one that deserves
    the same answer. Samples trade only with those of as many media of the same kinds.
    """
    texts = [reference_of(data.turns_of(i)) for i in range(len(data))]
    whole = list(data.records)  # each is looked at many times
    order = derangement(whole, texts, seed)
    left = leftovers(whole, texts, order)
    if left:
        log.warning(
            "shuffled images: %d of %d samples got no image of another study and answer",
            left,
            len(data),
        )
    records = [replace(r, media=whole[j].media) for r, j in zip(whole, order, strict=True)]
    return _like(data, records, data.read_media)


def shuffled_whole(data: StudyDataset, seed: int) -> StudyDataset:
    """`data` where all questions about an image go to the image of another study, any other.

    For questions that are answered yes or no: images chosen because they deserve another answer
    would rank studies worse than chance does.
    """
    first = {record.media: record for record in reversed(data.records)}
    apart = list(first.values())
    order = derangement(apart, [record.study_id for record in apart], seed)
    other = {record.media: apart[j].media for record, j in zip(apart, order, strict=True)}
    records = [replace(r, media=other[r.media]) for r in data.records]
    return _like(data, records, data.read_media)


def blanked(data: StudyDataset) -> StudyDataset:
    """`data` with every image black."""
    if is_blank(data):
        return data
    return _like(data, data.records, partial(black_image, read_media=data.read_media, known={}))


def without_images(data: StudyDataset) -> StudyDataset:
    """`data` as text alone; the collator takes the marks out of the text."""
    return _like(data, [replace(r, media=()) for r in data.records], data.read_media)


def most_common_answer(data: StudyDataset) -> str:
    """The answer most samples have; of equals, the first in the alphabet."""
    counts = Counter(reference_of(data.turns_of(i)) for i in range(len(data)))
    return min(counts, key=lambda text: (-counts[text], text)) if counts else ""


def nearest_answers(data: StudyDataset, train: StudyDataset) -> dict[str, str]:
    """By sample the answer of the training sample whose images are most alike.

    Features of a sample are averaged over patches and images, less their mean over training; alike
    is the greatest cosine. Samples with a question of their own take one that was asked the same,
    where there is one, and no sample takes its own study.

    Args:
        data: Reads features.
        train: Reads features of the same encoder.
    """
    own, rows = _pooled(data)
    known, places = _pooled(train)
    middle = known.mean(axis=0)
    own, known = (
        (x - middle) / np.linalg.norm(x - middle, axis=1, keepdims=True).clip(1e-12)
        for x in (own, known)
    )
    asked = np.array([_asked(train.turns_of(i)) for i in places])
    studies = np.array([train.records[i].study_id for i in places])
    found = {}
    for i, vector in zip(rows, own, strict=True):
        record, alike = data.records[i], known @ vector
        alike = np.where(studies == record.study_id, -np.inf, alike)
        same = asked == _asked(data.turns_of(i))
        best = int(np.where(same, alike, alike - 4).argmax())  # cosines differ by 2 at most
        found[record.sample_id] = reference_of(train.turns_of(places[best]))
    return found


def _asked(turns: Sequence[Any]) -> str:
    return " ".join(plain_text(t) for t in turns if t["role"] == "user")


def _pooled(data: StudyDataset) -> tuple[np.ndarray, list[int]]:
    """(n, D) mean features of the samples whose images can be read, and their places."""
    rows, places = [], []
    for i, record in enumerate(data.records):
        try:
            each = [data.read_media(ref, "") for ref in record.media]
        except ValueError:
            continue  # named when its sample was used
        if each:
            rows.append(torch.stack([m.data.flatten(0, -2).mean(dim=0) for m in each]).mean(dim=0))
            places.append(i)
    return torch.stack(rows).numpy() if rows else np.zeros((0, 1), np.float32), places


def derangement(records: Sequence[Record], texts: Sequence[str], seed: int) -> list[int]:
    """For each record the index of the one whose images it gets.

    Rejects partners of the same study or the same text; where none is left (a corpus of one answer)
    the text may repeat, and a study alone keeps its images.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[tuple(ref.kind for ref in record.media)].append(i)
    order = list(range(len(records)))
    for kinds, members in groups.items():
        key = (
            len(kinds) if set(kinds) <= {"image"} else kinds
        )  # a number: the seed of earlier results
        targets = _deranged(records, texts, members, keyed_random(seed, key, "derangement"))
        for i, j in zip(members, targets, strict=True):
            order[i] = j
    return order


def _deranged(
    records: Sequence[Record], texts: Sequence[str], members: list[int], rng: random.Random
) -> list[int]:
    """Partners of `members` among themselves, found by random swaps."""
    targets = members[:]
    rng.shuffle(targets)

    def bad(i: int, j: int) -> bool:
        return records[i].study_id == records[j].study_id or texts[i] == texts[j]

    for _ in range(20):  # swap the bad ones away; a few rounds suffice unless it is impossible
        wrong = [k for k, i in enumerate(members) if bad(i, targets[k])]
        for k in wrong:
            m = rng.randrange(len(members))
            if not bad(members[k], targets[m]) and not bad(members[m], targets[k]):
                targets[k], targets[m] = targets[m], targets[k]
        if not wrong:
            break
    for k, i in enumerate(members):  # no other answer is left: at least another study
        if records[i].study_id == records[targets[k]].study_id:
            _swap_study_away(records, members, targets, k)
    return targets


def leftovers(records: Sequence[Record], texts: Sequence[str], order: Sequence[int]) -> int:
    """Samples that kept their study, or got an image that deserves the same answer."""
    return sum(
        records[i].study_id == records[j].study_id or texts[i] == texts[j]
        for i, j in enumerate(order)
    )


def _swap_study_away(
    records: Sequence[Record], members: list[int], targets: list[int], k: int
) -> None:
    for m, other in enumerate(members):
        mine, theirs = records[targets[k]].study_id, records[targets[m]].study_id
        if theirs != records[members[k]].study_id and mine != records[other].study_id:
            targets[k], targets[m] = targets[m], targets[k]
            return


def _like(data: StudyDataset, records: Sequence[Record], read_media: ReadMedia) -> StudyDataset:
    return StudyDataset(
        records,
        read_media,
        on_error=data.on_error,
        seed=data.seed,
        cacheable=data.cacheable,
        signature=data.signature,
        vocabulary=data.vocabulary,
    )


def is_blank(data: StudyDataset) -> bool:
    """Whether `blanked` made this dataset."""
    return getattr(data.read_media, "func", None) is black_image


def black_image(ref: MediaRef, rng_key: str, read_media: Any, known: dict[str, Any]) -> Media:
    """What `read_media` would make of a black picture; found once where all have one size.

    It is said to be of the true picture's size, to which masks and boxes are brought back.
    """
    processor = getattr(read_media, "keywords", {}).get("processor")
    if not _alike(ref, processor):
        own = read_media(ref, rng_key)
        if processor is None or ref.kind == "embedding" or own.size is None:
            return own.with_data(torch.zeros_like(own.data), own.geometry)
        frames = () if ref.kind == "image" else (len(read(ref).data),)
        black = Media(torch.zeros(*frames, *own.size), ref.kind, ref.view, geometry=Geometry())
        return processor.process(black, rng_key)
    if "black" not in known:
        own = getattr(read_media, "black", None)
        if own is not None:
            known["black"] = own()
        elif processor is not None:
            known["black"] = processor.process(Media(torch.zeros(64, 64)), rng_key)
        else:
            made = read_media(ref, rng_key)
            known["black"] = made.with_data(torch.zeros_like(made.data))
    shared: Media = known["black"]
    if processor is None:
        return shared
    if ref.file not in known:
        known[ref.file] = read(ref).size
    size: tuple[int, int] = known[ref.file]
    return replace(shared, size=size, geometry=processor.geometry(*size, rng_key))


def _alike(ref: MediaRef, processor: Any) -> bool:
    """Whether all black pictures are one: clips, volumes and embeddings differ in size."""
    return ref.kind == "image" and getattr(processor, "fixed_size", True)


def black_key(data: StudyDataset, media: tuple[MediaRef, ...]) -> tuple[Any, ...]:
    """What tells the black pictures of a sample from those of others."""
    inner = getattr(data.read_media, "keywords", {}).get("read_media")
    processor = getattr(inner, "keywords", {}).get("processor")
    return tuple("black" if _alike(ref, processor) else ("black", ref) for ref in media)


def mirrored(data: StudyDataset) -> StudyDataset:
    """`data` with left and right exchanged in every image, clip and volume.

    Raises:
        DataError: It holds embeddings, which cannot be mirrored.
    """
    stored = next((ref for ref in data.media_refs() if ref.kind == "embedding"), None)
    if stored is not None:
        raise DataError(f"embeddings cannot be mirrored ({stored.file})")
    records = [
        replace(r, media=tuple(ref._replace(mirrored=True) for ref in r.media))
        for r in data.records
    ]
    return _like(data, records, data.read_media)
