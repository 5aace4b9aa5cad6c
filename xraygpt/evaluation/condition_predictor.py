"""Predict one condition and stream answers to disk; equal images and questions share an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from xraygpt.common import distributed
from xraygpt.common.logging import progress
from xraygpt.datasets import controls
from xraygpt.datasets.base import Record, Sample, StudyDataset, reference_text
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.input_check import study_warnings
from xraygpt.evaluation import prediction_file
from xraygpt.evaluation.conditions import OwnHistory
from xraygpt.media.base import MediaRef
from xraygpt.models.base import BaseModel
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.payload import Payload, as_answers, save_mask

AnswerKey = tuple[Any, ...]  # the images and the question


@dataclass
class _StoredAnswer:
    text: str
    payload: Payload
    rewritten_prompt: str | None = None


class AnswerListener(Protocol):
    """Follows the answers of all conditions as they are made."""

    def begin(self, condition: str, data: StudyDataset, done: Mapping[str, Prediction]) -> None:
        """Called before a condition, with the answers of an earlier command."""

    def add(self, condition: str, prediction: Prediction) -> None:
        """Called for each new answer."""

    def end(self, condition: str, predictions: Sequence[Prediction]) -> None:
        """Called after a condition, with all answers in the order of the samples."""


class ConditionPredictor:
    """Answers the samples of evaluation conditions.

    Args:
        task: Task that decodes answers.
        model: Model to evaluate.
        collate: Function that builds batches of prompts.
        device: Device to which batches are moved.
        folder: Folder of the prediction files.
        batch_size: Number of rows decoded at once.
        seed: Seed stored with the predictions.
    """

    def __init__(
        self,
        task: BaseTask,
        model: BaseModel,
        collate: Collator,
        *,
        device: torch.device,
        folder: Path,
        batch_size: int,
        seed: int,
    ) -> None:
        self.task, self.model, self.collate, self.device = task, model, collate, device
        self.folder = folder
        self.batch_size, self.seed = batch_size, seed
        self.image_warnings: dict[MediaRef, tuple[str, ...]] = {}
        """Warnings about the images, which are stored with the predictions."""
        self.listener: AnswerListener | None = None
        self._answers: dict[AnswerKey, _StoredAnswer] = {}

    def predict(
        self,
        condition: str,
        data: StudyDataset,
        indices: Sequence[int] | None = None,
        shard: tuple[int, int] | None = None,
    ) -> list[Prediction]:
        """Answer the samples of a condition that have no stored answer, and return all answers.

        Args:
            condition: Name of the condition.
            data: Samples of the condition.
            indices: Indices of the samples to answer; None means all.
            shard: Shard (k, n) whose file is written. None writes the file with all answers,
                including those of finished shards.
        """
        path = prediction_file.path_for(self.folder, f"predictions_{condition}", shard)
        done = prediction_file.resume(path)
        if shard is None:
            done = prediction_file.read_shards(path) | done
        todo = [
            i
            for i in (range(len(data)) if indices is None else indices)
            if data.records[i].sample_id not in done
        ]
        self._reuse(data, done)
        if self.listener is not None:
            self.listener.begin(condition, data, done)
        with path.open("a", encoding="utf-8") as file:
            batches = self._batches(data, todo, done)
            for indices in progress(batches, f"answers, {condition}", unit="batch"):
                for prediction in self._answer(data, indices):
                    done[prediction.sample_id] = prediction
                    file.write(json.dumps(prediction.as_row()) + "\n")
                    if self.listener is not None:
                        self.listener.add(condition, prediction)
                self._remember(data, indices, done)
                file.flush()
        predictions = [
            replace(done[r.sample_id], warnings=self._warnings(data, r))
            for r in data.records
            if r.sample_id in done
        ]
        prediction_file.write(path, predictions)  # in the order of the samples
        if self.listener is not None:
            self.listener.end(condition, predictions)
        return predictions

    def _batches(
        self, data: StudyDataset, todo: Sequence[int], done: Mapping[str, Prediction]
    ) -> list[Sequence[int]]:
        """Return the samples to answer in batches; in dialogues, earlier answers come first."""
        rounds: list[Sequence[int]] = [todo]
        if isinstance(data, OwnHistory):
            rounds = list(data.rounds(todo))
            self._remember(data, range(len(data)), done)
        size = self.batch_size
        return [part[i : i + size] for part in rounds for i in range(0, len(part), size)]

    def _remember(
        self, data: StudyDataset, indices: Sequence[int], done: Mapping[str, Prediction]
    ) -> None:
        if isinstance(data, OwnHistory):
            for i in indices:
                found = done.get(data.records[i].sample_id)
                if found is not None:
                    data.remember(i, found.prediction)

    def _warnings(self, data: StudyDataset, record: Record) -> list[str]:
        if controls.is_blank(data):
            return []
        refs = [ref._replace(mirrored=False) for ref in record.media]
        return study_warnings([self.image_warnings.get(ref, ()) for ref in refs])

    def unique_samples(self, conditions: dict[str, StudyDataset]) -> list[tuple[str, int]]:
        """Return the condition and index of the first sample with each image and question."""
        first: dict[AnswerKey, tuple[str, int]] = {}
        for name, data in conditions.items():
            for i, record in enumerate(data.records):
                sample = {"turns": data.get_turns(i), "rng_key": data.get_rng_key(record)}
                first.setdefault(_key(data, i, self._question(sample)), (name, i))
        return list(first.values())

    def _reuse(self, data: StudyDataset, done: dict[str, Prediction]) -> None:
        """Reuse stored answers for other samples with the same image and question."""
        for i, record in enumerate(data.records):
            if record.sample_id in done:
                prediction = done[record.sample_id]
                answer = _StoredAnswer(
                    prediction.prediction, prediction.payload, prediction.meta.get("asked")
                )
                self._answers.setdefault(_key(data, i, prediction.prompt), answer)

    def _answer(self, data: StudyDataset, indices: Sequence[int]) -> Iterator[Prediction]:
        samples = [(i, s) for i, s in ((i, data[i]) for i in indices) if s is not None]
        keys = {i: _key(data, i, self._question(s)) for i, s in samples}
        new: dict[AnswerKey, Sample] = {}
        for i, sample in samples:
            if keys[i] not in self._answers:
                new.setdefault(keys[i], sample)
        if new:
            self._decode(new)
        for i, sample in samples:
            answer = self._answers[keys[i]]
            meta = {k: v for k, v in sample["meta"].items() if k != "sections"}
            if answer.rewritten_prompt is not None:
                meta["asked"] = answer.rewritten_prompt
            yield Prediction(
                sample_id=sample["sample_id"],
                study_id=sample["study_id"],
                prompt=self._question(sample),
                prediction=answer.text,
                payload=answer.payload,
                folder=self.folder,
                reference=reference_text(sample["turns"]),
                seed=self.seed,
                meta=meta,
            )

    def _decode(self, samples: dict[AnswerKey, Sample]) -> None:
        prompts = self.collate.prompts(list(samples.values()))
        prompts["task"] = self.task.name
        batch = distributed.to_device(prompts, self.device)
        answers = as_answers(self.task.predict(self.model, batch))
        for (key, sample), answer in zip(samples.items(), answers, strict=True):
            payload = save_mask(answer, self.folder, sample["sample_id"], repr(key))
            self._answers[key] = _StoredAnswer(answer.text, payload, answer.prompt or None)

    def _question(self, sample: Any) -> str:
        return "\n".join(t["text"] for t in self.collate.question(sample))


def _key(data: StudyDataset, index: int, question: str) -> AnswerKey:
    images: tuple[Any, ...] = data.records[index].media
    if controls.is_blank(data):
        images = controls.black_key(data, images)
    return (*images, question)
