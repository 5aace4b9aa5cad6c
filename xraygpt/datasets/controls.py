"""Control datasets: the same corpus with wrong images or without images.

A model that scores as well on controls as on the true images ignores the image.
"""

from __future__ import annotations

import itertools
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
from xraygpt.datasets.base import ReadMedia, Record, StudyDataset, reference_text
from xraygpt.media.base import Media, MediaRef, read_media_file
from xraygpt.media.content import BLACK
from xraygpt.media.geometry import Geometry
from xraygpt.prompting.content import plain_text, without_media
from xraygpt.prompting.renderer import Turn

log = logging.getLogger(__name__)

MAX_SWAP_ROUNDS = 20


def shuffled(data: StudyDataset, seed: int) -> StudyDataset:
    """Return `data` with images of other patients that have another answer.

    This is a derangement by patient (by study, where patients are not known) and by answer text: no
    sample keeps its images or gets images for which all its answers would be correct. Samples
    exchange images only with samples that have the same number and kinds of media, if there are
    any; otherwise, media of each kind are taken from another study as often as needed.
    """
    texts = [_all_answers(data.get_turns(i)) for i in range(len(data))]
    originals = list(data.records)  # unpickled once
    order = derangement(originals, texts, seed)
    media = [originals[j].media for j in order]
    alone = [i for i, j in enumerate(order) if not _differs(originals, texts, i, j)]
    for i in alone:
        borrowed = _borrow(originals, texts, i, keyed_random(seed, i, "borrowed"))
        media[i] = borrowed or media[i]
    unchanged = sum(media[i] == originals[order[i]].media for i in alone)
    if unchanged:
        log.warning(
            "shuffled images: %d of %d samples got no image from a study with another answer",
            unchanged,
            len(data),
        )
    first: dict[str, int] = {}  # all questions of a dialogue are about the same image
    for i, record in enumerate(originals):
        if "dialogue" in record.meta:
            media[i] = media[first.setdefault(record.meta["dialogue"], i)]
    records = [replace(r, media=m) for r, m in zip(originals, media, strict=True)]
    return _with_records(data, records, data.read_media)


def _differs(records: Sequence[Record], texts: Sequence[str], i: int, j: int) -> bool:
    return _owner(records[i]) != _owner(records[j]) and texts[i] != texts[j]


def _owner(record: Record) -> str:
    """Return the patient of a record, or its study if the patient is not known."""
    return str(record.meta.get("patient") or record.study_id)


def _borrow(
    records: Sequence[Record], texts: Sequence[str], i: int, rng: random.Random
) -> tuple[MediaRef, ...]:
    """Return media for a record whose number and kinds of media no other study has.

    Returns:
        Media of one other study with another answer, repeated if it has fewer; empty if no other
        study has media of all kinds.
    """
    needed = [ref.kind for ref in records[i].media]
    for j in rng.sample(range(len(records)), len(records)):
        offered = {kind: [r for r in records[j].media if r.kind == kind] for kind in set(needed)}
        if needed and _differs(records, texts, i, j) and all(offered.values()):
            remaining = {kind: itertools.cycle(refs) for kind, refs in offered.items()}
            return tuple(next(remaining[kind]) for kind in needed)
    return ()


def shuffled_per_image(data: StudyDataset, seed: int) -> StudyDataset:
    """Return `data` with all questions about an image moved to the same image of another study.

    This control is for yes/no questions: if images were chosen because they require another answer,
    the way `shuffled` chooses them, the ranking of studies would be worse than chance.
    """
    first = {record.media: record for record in reversed(data.records)}
    distinct = list(first.values())
    order = derangement(distinct, [_owner(record) for record in distinct], seed)
    new_media = {r.media: distinct[j].media for r, j in zip(distinct, order, strict=True)}
    records = [replace(r, media=new_media[r.media]) for r in data.records]
    return _with_records(data, records, data.read_media)


def blanked(data: StudyDataset) -> StudyDataset:
    """Return `data` with all images black."""
    if is_blank(data):
        return data
    read_black = partial(read_black_image, read_media=data.read_media, cache={})
    return _with_records(data, data.records, read_black)


def _all_answers(turns: Sequence[Turn]) -> str:
    return "\n".join(turn["text"] for turn in turns if turn["role"] == "assistant")


def without_images(data: StudyDataset) -> StudyDataset:
    """Return `data` without media; the collator removes their marks from the text."""
    records = [replace(r, media=()) for r in data.records]
    return _with_records(data, records, data.read_media)


def question_only(data: StudyDataset) -> StudyDataset:
    """Return `data` without media and without the marks of their places in the questions."""
    records = [
        replace(record, media=(), turns=tuple(map(without_media, data.get_turns(i))))
        for i, record in enumerate(data.records)
    ]
    return _with_records(data, records, data.read_media)


def mirrored(data: StudyDataset) -> StudyDataset:
    """Return `data` with left and right swapped in every image, clip and volume.

    Raises:
        DataError: `data` contains embeddings, which cannot be mirrored.
    """
    stored = next((ref for ref in data.media_refs() if ref.kind == "embedding"), None)
    if stored is not None:
        raise DataError(f"embeddings cannot be mirrored ({stored.file})")
    records = [
        replace(r, media=tuple(ref._replace(mirrored=True) for ref in r.media))
        for r in data.records
    ]
    return _with_records(data, records, data.read_media)


def _with_records(
    data: StudyDataset, records: Sequence[Record], read_media: ReadMedia
) -> StudyDataset:
    return StudyDataset(
        records,
        read_media,
        on_error=data.on_error,
        seed=data.seed,
        cacheable=data.cacheable,
        signature=data.signature,
        vocabulary=data.vocabulary,
    )


# ---- Answers without a model ---------------------------------------------------------------------


def most_common_row(data: StudyDataset) -> int | None:
    """Return the index of a sample with the most frequent answer; None without samples.

    Ties are resolved alphabetically, and the first sample with the answer counts.
    """
    texts = [reference_text(data.get_turns(i)) for i in range(len(data))]
    counts = Counter(texts)
    return min(range(len(texts)), key=lambda i: (-counts[texts[i]], texts[i]), default=None)


def nearest_rows(data: StudyDataset, train: StudyDataset) -> dict[str, int]:
    """Return, for each sample, the index of the training sample with the most similar images.

    Features are averaged over the patches and images of a sample, centred on their mean over the
    training set, and compared by their cosine. Training samples with the same question are
    preferred, and those from the same study are excluded.

    Args:
        data: The samples to answer; its `read_media` returns features.
        train: The training samples; its `read_media` returns features from the same encoder.
    """
    features, indices = _pooled_features(data)
    train_features, train_indices = _pooled_features(train)
    mean = train_features.mean(axis=0)
    features, train_features = (_normalise(x - mean) for x in (features, train_features))
    train_questions = np.array([_question(train.get_turns(i)) for i in train_indices])
    train_studies = np.array([train.records[i].study_id for i in train_indices])
    rows = {}
    for i, vector in zip(indices, features, strict=True):
        record, cosines = data.records[i], train_features @ vector
        cosines = np.where(train_studies == record.study_id, -np.inf, cosines)
        same_question = train_questions == _question(data.get_turns(i))
        # Cosines differ by 2 at most, so that a penalty of 4 is decisive.
        best = int(np.where(same_question, cosines, cosines - 4).argmax())
        rows[record.sample_id] = int(train_indices[best])
    return rows


def _normalise(x: np.ndarray) -> np.ndarray:
    normalised: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12)
    return normalised


def _question(turns: Sequence[Any]) -> str:
    return " ".join(plain_text(t) for t in turns if t["role"] == "user")


def _pooled_features(data: StudyDataset) -> tuple[np.ndarray, list[int]]:
    """Return (n, D) mean features of the samples with readable images, and their indices."""
    rows, indices = [], []
    for i, record in enumerate(data.records):
        try:
            media = [data.read_media(ref, "") for ref in record.media]
        except ValueError:
            continue  # reported when the sample is used
        if media:
            rows.append(torch.stack([m.data.flatten(0, -2).mean(dim=0) for m in media]).mean(dim=0))
            indices.append(i)
    return torch.stack(rows).numpy() if rows else np.zeros((0, 1), np.float32), indices


# ---- Derangement ---------------------------------------------------------------------------------


def derangement(records: Sequence[Record], texts: Sequence[str], seed: int) -> list[int]:
    """Return, for each record, the index of the record from which it gets its images.

    A partner belongs to another patient (where `meta` has the key ``patient``; otherwise to another
    study) and has another text. If no such partner is left, as in a
    corpus with one answer, the text may be the same; a corpus of one study keeps its images.
    """
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, record in enumerate(records):
        groups[tuple(ref.kind for ref in record.media)].append(i)
    order = list(range(len(records)))
    for kinds, members in groups.items():
        # Records with images only are seeded by their number of images, so that published results
        # are reproducible.
        key = len(kinds) if set(kinds) <= {"image"} else kinds
        targets = _derange_group(records, texts, members, keyed_random(seed, key, "derangement"))
        for i, j in zip(members, targets, strict=True):
            order[i] = j
    return order


def _derange_group(
    records: Sequence[Record], texts: Sequence[str], members: list[int], rng: random.Random
) -> list[int]:
    """Choose a partner for each of `members` from among them, improved by random swaps."""
    targets = members[:]
    rng.shuffle(targets)

    def is_invalid(i: int, j: int) -> bool:
        return _owner(records[i]) == _owner(records[j]) or texts[i] == texts[j]

    for _ in range(MAX_SWAP_ROUNDS):  # a few rounds are enough unless no solution exists
        invalid = [k for k, i in enumerate(members) if is_invalid(i, targets[k])]
        for k in invalid:
            m = rng.randrange(len(members))
            if not is_invalid(members[k], targets[m]) and not is_invalid(members[m], targets[k]):
                targets[k], targets[m] = targets[m], targets[k]
        if not invalid:
            break
    for k, i in enumerate(members):  # require at least another study
        if _owner(records[i]) == _owner(records[targets[k]]):
            _swap_for_other_owner(records, members, targets, k)
    return targets


def _swap_for_other_owner(
    records: Sequence[Record], members: list[int], targets: list[int], k: int
) -> None:
    owner = _owner(records[members[k]])
    for m, member in enumerate(members):
        target_k, target_m = _owner(records[targets[k]]), _owner(records[targets[m]])
        if target_m != owner and target_k != _owner(records[member]):
            targets[k], targets[m] = targets[m], targets[k]
            return


# ---- Black images --------------------------------------------------------------------------------


def is_blank(data: StudyDataset) -> bool:
    """Return whether `data` was made by `blanked`."""
    return getattr(data.read_media, "func", None) is read_black_image


def black_key(data: StudyDataset, media: tuple[MediaRef, ...]) -> tuple[Any, ...]:
    """Return a hashable key of a sample's images in a blanked dataset; equal for equal images."""
    inner = getattr(data.read_media, "keywords", {}).get("read_media")
    processor = getattr(inner, "keywords", {}).get("processor")
    return tuple("black" if _is_shared(ref, processor) else ("black", ref) for ref in media)


def read_black_image(ref: MediaRef, rng_key: str, read_media: Any, cache: dict[str, Any]) -> Media:
    """Return what `read_media` would return for a black image as large as the true one.

    Args:
        ref: The true medium; its size is kept, so that masks and boxes can be mapped back.
        rng_key: Seeds the processor.
        read_media: Reads and processes the true medium.
        cache: Stores the shared black image under "black", and the size of each file.
    """
    processor = getattr(read_media, "keywords", {}).get("processor")
    if not _is_shared(ref, processor):
        return _black_of_same_size(ref, rng_key, read_media, processor)
    if "black" not in cache:
        cache["black"] = _shared_black_image(ref, rng_key, read_media, processor)
    shared: Media = cache["black"]
    if processor is None:
        return shared
    if ref.file not in cache:
        cache[ref.file] = read_media_file(ref).size
    size: tuple[int, int] = cache[ref.file]
    return replace(shared, size=size, geometry=processor.geometry(*size, rng_key))


def _is_shared(ref: MediaRef, processor: Any) -> bool:
    """Return whether `ref` can use the shared black image; other kinds of media differ in size."""
    return ref.kind == "image" and getattr(processor, "fixed_size", True)


def _shared_black_image(ref: MediaRef, rng_key: str, read_media: Any, processor: Any) -> Any:
    encode_black = getattr(read_media, "black", None)
    if encode_black is not None:
        return encode_black()
    if processor is not None:
        return processor.process(Media(torch.zeros(64, 64), content=BLACK), rng_key)
    media = read_media(ref, rng_key)
    return replace(media.with_data(torch.zeros_like(media.data)), content=BLACK)


def _black_of_same_size(ref: MediaRef, rng_key: str, read_media: Any, processor: Any) -> Any:
    media = read_media(ref, rng_key)
    if processor is None or ref.kind == "embedding" or media.size is None:
        zeros = media.with_data(torch.zeros_like(media.data), media.geometry)
        return replace(zeros, content=BLACK)
    frames = () if ref.kind == "image" else (len(read_media_file(ref).data),)
    pixels = torch.zeros(*frames, *media.size)
    black = Media(pixels, ref.kind, ref.view, geometry=Geometry(), content=BLACK)
    return processor.process(black, rng_key)
