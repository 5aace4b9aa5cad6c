"""Conditions of an evaluation: the true images, and the controls compared with them.

Some controls replace the image with one of another patient whose answer differs (several seeds),
with a black image or with its mirror image, or leave it out. Others take the answer from the
training split: the most common answer, that of the image with the most similar frozen features, or
the mean box of what is asked for. A model that scores no better with the true image than with these
controls ignores the image, however high its ROUGE.

In the condition ``own_history``, the image is the true one, but a dialogue continues with the
model's own earlier answers instead of the reference's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from xraygpt.common.errors import DataError, InputError
from xraygpt.datasets import controls
from xraygpt.datasets.base import Sample, StudyDataset, reference_text
from xraygpt.features.cache import CachedReader
from xraygpt.prompting.renderer import Turn
from xraygpt.tasks.base import BaseTask
from xraygpt.tasks.payload import Answer, LabelledBox, Payload

TRUE, SHUFFLED, BLANK, COMMON, NEAREST = "true", "shuffled", "blank", "most_common", "nearest"
MIRRORED, NO_IMAGE, MEAN_BOX = "mirrored", "no_image", "mean_box"
OWN_HISTORY = "own_history"
CONDITIONS = (
    TRUE, OWN_HISTORY, SHUFFLED, BLANK, MIRRORED, NO_IMAGE, COMMON, NEAREST, MEAN_BOX,
)  # in the order used in tables  # fmt: skip
FROM_TRAINING = (COMMON, NEAREST, MEAN_BOX)

CONDITION_NAMES = {
    "true": "true image",
    "shuffled": "another study's image",
    "blank": "black image",
    "mirrored": "mirrored image",
    "no_image": "question only",
    "own_history": "own earlier answers",
    "mean_box": "constant mean box",
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
    if OWN_HISTORY in selected:
        conditions[OWN_HISTORY] = OwnHistory(data)
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
    if NO_IMAGE in selected:
        conditions[NO_IMAGE] = controls.question_only(data)
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
) -> tuple[dict[str, dict[str, Answer]], dict[str, str]]:
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
    answers: dict[str, dict[str, Answer]] = {}
    left_out: dict[str, str] = {}
    if COMMON in selected:
        answer = _from_training(train, controls.most_common_row(train))
        answers[COMMON] = {record.sample_id: answer for record in data.records}
    if NEAREST in selected:
        try:
            rows = _nearest_rows(data, train, cache_features)
            answers[NEAREST] = {n: _from_training(train, row) for n, row in rows.items()}
        except InputError as error:
            left_out[f"control {NEAREST}"] = str(error)
    if MEAN_BOX in selected:
        try:
            answers[MEAN_BOX] = mean_box_answers(data, train)
        except InputError as error:
            left_out[f"control {MEAN_BOX}"] = str(error)
    return answers, left_out


def _from_training(train: StudyDataset, index: int | None) -> Answer:
    """Return the answer of a training sample, with its true boxes if it has any."""
    if index is None:
        return Answer()
    meta, payload = train.records[index].meta, Payload()
    if "boxes" in meta:
        payload["boxes"] = list(meta["boxes"])
        if "spelling" in meta:
            payload["spelling"] = meta["spelling"]
        if "image_size" in meta:
            payload["image_size"] = list(meta["image_size"])
    return Answer(reference_text(train.get_turns(index)), payload)


def mean_box_answers(data: StudyDataset, train: StudyDataset) -> dict[str, Answer]:
    """Answer every question with the mean of the training boxes of what it asks for.

    What the training split does not have gets the mean of all boxes. A question without a phrase,
    for all findings, gets the mean box of every finding, with the finding's frequency as its score.

    Raises:
        InputError: The training split has no boxes.
    """
    boxes: dict[str, list[list[float]]] = defaultdict(list)
    images: dict[str, set[str]] = defaultdict(set)
    for record in train.records:
        for each in record.meta.get("boxes", ()):
            boxes[each["label"]].append(each["box"])
            images[each["label"]].add(record.sample_id)
    if not boxes:
        raise InputError("there is no training split with boxes")
    means = {label: np.mean(found, axis=0).tolist() for label, found in boxes.items()}
    overall = np.mean([box for found in boxes.values() for box in found], axis=0).tolist()
    everything = [
        LabelledBox(label=label, box=means[label], score=len(images[label]) / len(train))
        for label in sorted(means)
    ]
    answers = {}
    for record in data.records:
        phrase = record.meta.get("phrase")
        found = everything
        if phrase is not None:
            found = [LabelledBox(label=phrase, box=means.get(phrase, overall))]
        answers[record.sample_id] = Answer(payload=Payload(boxes=found))
    return answers


class OwnHistory(StudyDataset):
    """Dialogues in which the model's own answers replace the reference's before each question.

    Samples of one dialogue have the same ``meta["dialogue"]`` and are answered in the order of
    ``meta["answer_number"]``; see `remember`.
    """

    def __init__(self, data: StudyDataset) -> None:
        super().__init__(
            data.records, data.read_media, on_error=data.on_error, seed=data.seed,
            cacheable=data.cacheable, signature=data.signature, vocabulary=data.vocabulary,
        )  # fmt: skip
        self._answers: dict[tuple[str, int], str] = {}

    def remember(self, index: int, answer: str) -> None:
        """Use an answer in the later questions of its dialogue."""
        meta = self.records[index].meta
        if "dialogue" in meta:
            self._answers[meta["dialogue"], meta["answer_number"]] = answer

    def rounds(self, indices: Sequence[int]) -> list[list[int]]:
        """Group samples by the number of their answer, the first answers first."""
        numbers = {i: self.records[i].meta.get("answer_number", 1) for i in indices}
        return [
            [i for i in indices if numbers[i] == number] for number in sorted(set(numbers.values()))
        ]

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:
        """Read one sample, with the model's answers; see `StudyDataset`."""
        sample = super().__getitem__(key)
        if sample is not None:
            sample["turns"] = self._replaced(sample["turns"], sample["meta"])
        return sample

    def get_turns(self, index: int, epoch: int = 0) -> list[Turn]:
        """Return the turns of a sample, with the model's answers."""
        return self._replaced(super().get_turns(index, epoch), self.records[index].meta)

    def _replaced(self, turns: Sequence[Turn], meta: Mapping[str, Any]) -> list[Turn]:
        answered = [i for i, turn in enumerate(turns) if turn["role"] == "assistant"]
        result = list(turns)
        for number, i in enumerate(answered[:-1], 1):
            own = self._answers.get((str(meta.get("dialogue")), number))
            if own is not None:
                result[i] = Turn(role="assistant", text=own)
        return result


def _nearest_rows(
    data: StudyDataset, train: StudyDataset, cache_features: CacheFeatures | None
) -> dict[str, int]:
    """Return for each sample the index of the training image with the most similar features.

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
    rows = controls.nearest_rows(data, train)
    if len(rows) < len(data):
        raise InputError(f"{len(data) - len(rows)} samples have no image")
    return rows


def _has_embeddings(data: StudyDataset) -> bool:
    """Return whether all media are embeddings, which need no encoder."""
    return all(ref.kind == "embedding" for record in data.records for ref in record.media)
