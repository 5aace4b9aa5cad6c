"""Prediction for image files, which streams answers to disk and skips unreadable files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from xraygpt.answering import Answerer
from xraygpt.common import checkpoint, distributed
from xraygpt.common.errors import DataError, XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.datasets.base import Sample, StudyDataset
from xraygpt.datasets.input_check import study_warnings
from xraygpt.evaluation import prediction_file, result_page
from xraygpt.evaluation.case_selection import sample_indices
from xraygpt.evaluation.history import SYNTHETIC_ONLY_WARNING, History
from xraygpt.evaluation.input_report import summary
from xraygpt.models.base import BaseModel
from xraygpt.runners import logs
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.payload import save_mask

log = logging.getLogger(__name__)

PAGE_CASES = 200
OWN_FILES_NOTICE = "Contains the images you passed: treat this page as confidentially as them."


class SomeFailed(XrayGPTError):
    """Some inputs could not be read; all others were answered."""


class _ReadableOrError(Dataset[tuple[int, Sample | str]]):
    """Samples and their indices, read by loader workers; an unreadable sample is its error text.

    If `strict`, so is a sample with a warning.
    """

    def __init__(self, data: StudyDataset, indices: Sequence[int], strict: bool) -> None:
        self.data, self.indices, self.strict = data, indices, strict

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[int, Sample | str]:
        index = self.indices[position]
        try:
            sample = self.data[index]
        except DataError as error:
            message = str(error).removeprefix(f"sample {self.data.records[index].sample_id}: ")
            return index, message.split(" (on_error:")[0]
        assert sample is not None
        warnings = _warnings(sample)
        if self.strict and warnings:
            return index, f"refused by --strict: {' '.join(warnings)}"
        return index, sample


def _warnings(sample: Sample) -> list[str]:
    return study_warnings([media.warnings for media in sample["media"]])


class Predictor:
    """Answers a question about many images.

    Args:
        model: Model that answers.
        task: Task that decides how answers are decoded.
        data: Inputs to answer.
        output_dir: Parent of the result folder.
        identity: Everything that affects an answer. It is stored in `settings.json`, and six digits
            of its hash end the folder's name.
        name: Beginning of the folder's name, such as the name of the input.
        device: Device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Number of rows decoded at once.
        workers: Number of processes that read images; None means one per core, up to four.
        shard: Shard (k, n) with 1 ≤ k ≤ n, which answers every n-th image starting with the k-th,
            in a separate file and without a page. A run without a shard includes the answers of
            all shards.
        resolved: The full configuration, for the page.
        history: Training runs behind the model, for the page.
        strict: Whether images with a warning are refused and listed with the unreadable ones.
    """

    def __init__(
        self,
        model: BaseModel,
        task: BaseTask,
        data: StudyDataset,
        *,
        output_dir: Path,
        identity: dict[str, Any],
        name: str = "",
        device: str = "auto",
        batch_size: int = 16,
        workers: int | None = None,
        shard: tuple[int, int] | None = None,
        resolved: str = "",
        history: History | None = None,
        strict: bool = False,
    ) -> None:
        self.strict = strict
        model.check_generation(task.config.generate)
        self.accelerator = distributed.make_accelerator(device)
        self.model, self.task, self.data = model.to(self.accelerator.device).eval(), task, data
        model.renderer.prompts = model.renderer.prompts[:1]  # the prompt used in evaluation
        self.answerer = Answerer(self.model, task)
        self.collate = self.answerer.collate
        self.batch_size, self.identity = batch_size, identity
        self.resolved, self.history = resolved, history or History()
        self.shard = shard
        start, step = (0, 1) if shard is None else (shard[0] - 1, shard[1])
        self.indices = range(start, len(data), step)
        if workers is None:
            few = len(self.indices) < 2 * batch_size
            workers = 0 if few else min(os.cpu_count() or 1, 4)
        self.workers = workers
        self._records = {r.sample_id: r for r in data.records}
        self.signature = prediction_file.compute_signature(identity)
        self.folder = output_dir / "-".join(filter(None, (name, self.signature[:6])))

    def run(self) -> list[Prediction]:
        """Answer inputs that have no stored answer, then write the page unless this is a shard.

        Raises:
            SomeFailed: Some images could not be read or were refused; all others were answered.
            InputError: The folder contains predictions made with other settings.
        """
        if self.history.trained_on_synthetic_only:
            log.warning(SYNTHETIC_ONLY_WARNING)
        prediction_file.open_folder(self.folder, self.identity)
        self.model.keep_answers(self.folder)
        path = prediction_file.path_for(self.folder, "predictions", self.shard)
        done = self._load_done(path)
        names = {i: self.data.records[i].sample_id for i in self.indices}
        todo = [i for i, name in names.items() if name not in done]
        if len(todo) < len(names):
            log.info("%d of %d inputs already have an answer", len(names) - len(todo), len(names))
        errors = self._predict(path, todo, done)
        predictions = [done[name] for name in names.values() if name in done]
        # Write answers in the order of the inputs, without those for files that have changed since.
        prediction_file.write(path, predictions)
        self._write_errors(errors)
        if self.shard is None:
            images = {r.sample_id: [ref.file for ref in r.media] for r in self.data.records}
            prediction_file.write_table(self.folder / "predictions.csv", predictions, images)
            self._write_page(predictions)
        if warned := summary({p.sample_id: p.warnings for p in predictions}, len(predictions)):
            log.warning("%s", warned)
        if errors:
            lines = "\n".join(f"  {name}: {message}" for name, message in errors.items())
            failure = "could not be read or were refused" if self.strict else "could not be read"
            raise SomeFailed(
                f"{len(errors)} of {len(names)} inputs {failure}; "
                f"{len(predictions)} answers are in {self.folder}:\n{lines}"
            )
        return predictions

    def _load_done(self, path: Path) -> dict[str, Prediction]:
        """Load the answers of earlier commands and of shards."""
        predictions = prediction_file.resume(path)
        if self.shard is None:
            predictions = prediction_file.read_shards(path) | predictions
        current = {name: p for name, p in predictions.items() if self._is_current(p)}
        return {name: p for name, p in current.items() if not (self.strict and p.warnings)}

    def _predict(
        self, path: Path, todo: Sequence[int], done: dict[str, Prediction]
    ) -> dict[str, str]:
        """Append answers to the file and to `done`, and return error messages by sample id."""
        errors: dict[str, str] = {}
        with (
            path.open("a", encoding="utf-8") as file,
            progress(total=len(todo), desc="answers", unit="image") as bar,
        ):
            for batch in self._batches(todo):
                readable = []
                for index, sample in batch:
                    if isinstance(sample, str):
                        errors[self.data.records[index].sample_id] = sample
                    else:
                        readable.append(sample)
                for prediction in self._answer_or_report(readable, errors):
                    done[prediction.sample_id] = prediction
                    file.write(json.dumps(prediction.as_row()) + "\n")
                file.flush()
                bar.update(len(batch))
        return errors

    def _batches(self, todo: Sequence[int]) -> Iterator[list[tuple[int, Sample | str]]]:
        loader: DataLoader[Any] = DataLoader(
            _ReadableOrError(self.data, todo, self.strict),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=list,
        )
        return iter(loader)

    def _answer_or_report(
        self, samples: Sequence[Sample], errors: dict[str, str]
    ) -> Iterator[Prediction]:
        """Answer a batch; if that fails, answer each sample alone and report the failures."""
        try:
            predictions = list(self._answer(samples))
        except (DataError, ValueError) as error:
            if len(samples) == 1:
                name = samples[0]["sample_id"]
                errors[name] = str(error).removeprefix(f"sample {name}: ")
                return
            for sample in samples:
                yield from self._answer_or_report([sample], errors)
            return
        yield from predictions

    def _answer(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        if not samples:
            return
        answers = self.answerer.answer(samples)
        for sample, answer in zip(samples, answers, strict=True):
            yield Prediction(
                sample_id=sample["sample_id"],
                study_id=sample["study_id"],
                prompt="\n".join(t["text"] for t in self.collate.question(sample)),
                prediction=answer.text,
                payload=save_mask(answer, self.folder, sample["sample_id"]),
                folder=self.folder,
                reference="",
                seed=self.task.config.generate.seed,
                meta=sample["meta"] | ({"asked": answer.prompt} if answer.prompt else {}),
                warnings=_warnings(sample),
            )

    def _is_current(self, prediction: Prediction) -> bool:
        """Return whether a stored answer is for the same file and question as the current input."""
        record = self._records.get(prediction.sample_id)
        meta = {k: v for k, v in prediction.meta.items() if k != "asked"}
        if record is None or record.meta != meta:
            return False
        turns = [] if callable(record.turns) else list(record.turns)
        prompt = self.model.renderer.with_prompt(turns, "")
        return prediction.prompt == "\n".join(t["text"] for t in prompt)

    def _write_errors(self, errors: Mapping[str, str]) -> None:
        rows = ({"sample_id": name, "error": message} for name, message in errors.items())
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path = prediction_file.path_for(self.folder, "errors", self.shard)
        checkpoint.write_text_atomic(path, text)

    def _write_page(self, predictions: Sequence[Prediction]) -> None:
        images = {r.sample_id: r.media for r in self.data.records}
        selected = [predictions[i] for i in sample_indices(len(predictions), PAGE_CASES, 0)]
        cases = [
            result_page.Case(
                sample_id=p.sample_id,
                images=images[p.sample_id],
                prompt=p.meta.get("asked", p.prompt),
                warnings=p.warnings,
                **vars(self.task.display(p)),
            )
            for p in selected
        ]
        shown = ""
        if len(selected) < len(predictions):
            shown = f", a random sample of {len(selected)} shown"
        result_page.write_page(
            self.folder / "report.html",
            title=f"xraygpt: {self.task.page_title}",
            notice=OWN_FILES_NOTICE,
            subtitle=f"{len(predictions)} images{shown}, run {self.signature}.",
            cases=cases,
            history=self.history,
            facts=logs.facts(self.accelerator.device),
            configuration=self.resolved,
        )
