"""Conditions of an evaluation: the true images, and the controls compared with them.

Some controls replace the image with one from another study whose answer differs (several seeds),
with a black image or with its mirror image. Others take the answer from the training split: the
most common answer, or that of the image with the most similar frozen features. A model that scores
no better with the true image than with these controls ignores the image, however high its ROUGE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xraygpt.common.errors import DataError, InputError
from xraygpt.datasets import controls
from xraygpt.datasets.base import StudyDataset
from xraygpt.features.cache import CachedReader
from xraygpt.tasks.base import BaseTask

TRUE, SHUFFLED, BLANK, COMMON, NEAREST = "true", "shuffled", "blank", "most_common", "nearest"
MIRRORED = "mirrored"
CONDITIONS = (TRUE, SHUFFLED, BLANK, MIRRORED, COMMON, NEAREST)  # in the order used in tables

CONDITION_NAMES = {
    "true": "true image",
    "shuffled": "another study's image",
    "blank": "black image",
    "mirrored": "mirrored image",
    "most_common": "most common answer",
    "nearest": "answer of the most similar training image",
}
"""Names of the conditions in words."""

CacheFeatures = Callable[[StudyDataset], object]
"""Function that makes a dataset read stored features."""


def condition_of(name: str) -> str:
    """Return the condition of a prediction file from its name, such as ``shuffled-0``."""
    return name.split("-")[0]


def select_controls(requested: Sequence[str] | None, task: BaseTask) -> list[str]:
    """Return the requested controls, or the task's default controls.

    Raises:
        InputError: A requested control does not suit the task.
    """
    if requested is None:
        return list(task.default_controls)
    unsuitable = [name for name in requested if name not in task.controls]
    if unsuitable:
        raise InputError(
            f"run.controls: {unsuitable[0]} is not available for this task; choose from "
            f"{', '.join(task.controls)}"
        )
    return list(requested)


def build_conditions(
    data: StudyDataset,
    selected: Sequence[str],
    task: BaseTask,
    *,
    shuffles: int,
    seed: int,
    cache_features: CacheFeatures | None,
) -> tuple[dict[str, StudyDataset], dict[str, str]]:
    """Build the true dataset, and copies of it with other images.

    Args:
        data: Dataset with the true images.
        selected: Controls to build.
        task: Task that decides how images are shuffled.
        shuffles: Number of shuffled copies.
        seed: Seed of the first shuffled copy.
        cache_features: Function that caches features of mirrored images; None if features are not
            cached.

    Returns:
        Datasets by condition, and reasons for skipped controls.
    """
    conditions, left_out = {TRUE: data}, {}
    if SHUFFLED in selected:
        shuffle = controls.shuffled_per_image if task.shuffle_per_image else controls.shuffled
        for k in range(shuffles):
            conditions[f"{SHUFFLED}-{k}"] = shuffle(data, seed + k)
    if BLANK in selected:
        conditions[BLANK] = controls.blanked(data)
    if MIRRORED in selected:
        try:
            conditions[MIRRORED] = _mirror(data, cache_features)
        except DataError as error:
            left_out[f"control {MIRRORED}"] = str(error)
    return conditions, left_out


def _mirror(data: StudyDataset, cache_features: CacheFeatures | None) -> StudyDataset:
    mirrored = controls.mirrored(data)
    if cache_features is not None and isinstance(mirrored.read_media, CachedReader):
        mirrored.read_media = mirrored.read_media.read_media
        cache_features(mirrored)
    return mirrored


def answers_from_training(
    data: StudyDataset,
    train: StudyDataset,
    selected: Sequence[str],
    cache_features: CacheFeatures | None,
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the answers of the controls that use the training split.

    Args:
        data: Samples to answer.
        train: The training split.
        selected: Controls to compute.
        cache_features: Function that caches features of training images; None if features are not
            cached.

    Returns:
        Answers by control and sample id, and reasons for skipped controls.
    """
    answers: dict[str, dict[str, str]] = {}
    left_out: dict[str, str] = {}
    if COMMON in selected:
        text = controls.most_common_answer(train)
        answers[COMMON] = {record.sample_id: text for record in data.records}
    if NEAREST in selected:
        try:
            answers[NEAREST] = _nearest_answers(data, train, cache_features)
        except InputError as error:
            left_out[f"control {NEAREST}"] = str(error)
    return answers, left_out


def _nearest_answers(
    data: StudyDataset, train: StudyDataset, cache_features: CacheFeatures | None
) -> dict[str, str]:
    """Return for each sample the answer of the training image with the most similar features.

    Raises:
        InputError: There are no frozen features and the media are no embeddings.
    """
    if not _has_embeddings(data):
        if cache_features is None:
            raise InputError("the model has no frozen encoder, or its features are not cached")
        if len(train):
            cache_features(train)
        if not all(isinstance(d.read_media, CachedReader) for d in (data, train)):
            raise InputError("there is no training split, or its media (clips) cannot be cached")
    elif not len(train):
        raise InputError("there is no training split")
    answers = controls.nearest_answers(data, train)
    if len(answers) < len(data):
        raise InputError(f"{len(data) - len(answers)} samples have no image")
    return answers


def _has_embeddings(data: StudyDataset) -> bool:
    """Return whether all media are embeddings, which need no encoder."""
    return all(ref.kind == "embedding" for record in data.records for ref in record.media)
