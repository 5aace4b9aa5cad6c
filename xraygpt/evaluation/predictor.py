"""Prediction: image files -> answers, streamed to disk, resumable; a bad file stops nothing."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from xraygpt.common import checkpoint, distributed
from xraygpt.common.errors import DataError, XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.datasets.base import Record, Sample, StudyDataset
from xraygpt.datasets.builder import RecordError, media_of
from xraygpt.datasets.collate import Collator
from xraygpt.datasets.records import read_table
from xraygpt.evaluation import prediction_file, result_page
from xraygpt.evaluation.history import DRAWINGS_ALONE, History
from xraygpt.media.base import MediaRef
from xraygpt.models.base import BaseModel
from xraygpt.prompting.content import IMAGE, Turn
from xraygpt.runners import logs
from xraygpt.tasks.base import BaseTask, Prediction
from xraygpt.tasks.payload import answers_of, keep_mask

log = logging.getLogger(__name__)

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
TABLES = frozenset({".csv", ".jsonl"})
PAGE_CASES = 200


class SomeFailed(XrayGPTError):
    """Some inputs gave no answer; the others have theirs."""


def find_inputs(path: Path, question: str = "") -> list[Record]:
    """What a command line names, as records without an answer.

    Args:
        path: An image; a folder, searched with all folders in it; or a table (CSV, JSONL) with a
            column `image`, or `images` of a study, as in training, and, if wanted, `id`, `study`,
            `view` and `question`. Paths in a table are relative to it.
        question: Asked of every image that has none of its own; empty takes the model's prompt.

    Raises:
        DataError: Nothing is there, or no image is.
    """
    if not path.exists():
        raise DataError(f"--input {path}: no such file or folder")
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.is_file() and not f.name.startswith("."))
        images = [f for f in files if _may_be_image(f)]
        if len(files) > len(images):
            log.info("%s: %d files are no images and left alone", path, len(files) - len(images))
        records = [
            _record(str(f.relative_to(path)), [MediaRef(f)], question=question) for f in images
        ]
    elif path.suffix.lower() in TABLES:
        records = [_row(path, number, row, question) for number, row in read_table(path)]
    else:
        records = [_record(path.name, [MediaRef(path)], question=question)]
    if not records:
        raise DataError(f"--input {path}: holds no PNG, JPEG or DICOM file")
    return _distinct(records)


def _may_be_image(file: Path) -> bool:
    """By its ending; a file without one is a DICOM if it says so."""
    if file.suffix.lower() in SUFFIXES:
        return True
    # Departments name DICOM files by UID, so the "ending" may be a number.
    if file.suffix and not file.suffix[1:].isdigit():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return True  # it will be named among those that could not be read


def _row(table: Path, number: int, row: dict[str, Any], question: str) -> Record:
    """A row: one image in `image`, or a study in `images`, as in training."""
    listed = row.get("images") or row.get("image") or row.get("path")
    if not {"image", "path", "images"} & set(row):
        have = ", ".join(map(str, row))
        raise DataError(f"{table}, record {number}: no column 'image' (there are: {have})")
    items = listed if isinstance(listed, list) else [listed]
    items = [{"path": item} if isinstance(item, str) else item for item in items if item]
    # A row without an image is reported with those that cannot be read.
    items = items or [{"path": f"record {number} (no image named)"}]
    try:
        media = [
            media_of(item, lambda path: table.parent / str(path), str(row.get("view") or ""))
            for item in items
        ]
    except RecordError as error:
        raise DataError(f"{table}, record {number}: {error}") from None
    first = items[0].get("path") if isinstance(items[0], dict) else ""
    return _record(
        str(row.get("id") or first),
        media,
        study=str(row.get("study") or ""),
        question=str(row.get("question") or question),
    )


def _record(name: str, media: Sequence[MediaRef], *, study: str = "", question: str = "") -> Record:
    marks = " ".join([IMAGE] * len(media))
    turn = Turn(role="user", text=f"{marks} {question}".strip())
    paths = [ref.file for ref in media]
    facts = [_facts(ref.path) for ref in media]
    one = len(media) == 1
    meta = {"path": paths[0] if one else paths, "file": facts[0] if one else facts}
    if any(parts := [ref.part for ref in media]):
        meta["part"] = parts[0] if one else parts
    return Record(name, study or name, tuple(media), (turn,), meta)


def _facts(path: Path) -> str:
    """Changes when the file does."""
    try:
        facts = path.stat()
    except OSError:
        return "absent"
    return f"{facts.st_size} bytes, {facts.st_mtime_ns} ns"


def _distinct(records: list[Record]) -> list[Record]:
    """Refuse two records of one name: their answers could not be told apart."""
    seen: set[str] = set()
    for record in records:
        if record.sample_id in seen:
            raise DataError(f"two inputs are called {record.sample_id}; give each its own `id`")
        seen.add(record.sample_id)
    return records


class _Tolerant(Dataset[tuple[int, Sample | str]]):
    """Reads in a loader's worker; what cannot be read becomes the reason why."""

    def __init__(self, data: StudyDataset, places: Sequence[int]) -> None:
        self.data, self.places = data, places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[int, Sample | str]:
        place = self.places[index]
        try:
            sample = self.data[place]
        except DataError as error:
            why = str(error).removeprefix(f"sample {self.data.records[place].sample_id}: ")
            return place, why.split(" (on_error:")[0]
        assert sample is not None
        return place, sample


class Predictor:
    """Answers for many images.

    Args:
        model: What answers.
        task: How answers are decoded.
        data: What to answer about.
        output_dir: Results go to a folder in it named after model, question and settings.
        identity: All that decides an answer; goes into the folder's name and the first line.
        device: ``auto``, ``cpu`` or ``cuda``.
        batch_size: Rows decoded at once.
        workers: Processes that read images; None takes one per core, at most four.
        shard: (k, n), 1 ≤ k ≤ n: answer every n-th image alone, from the k-th on, into a file of
            its own and without a page. A run without it takes up what shards have answered.
        resolved: The whole configuration, for the page.
        history: The training runs behind the model, for the page.
    """

    def __init__(
        self,
        model: BaseModel,
        task: BaseTask,
        data: StudyDataset,
        *,
        output_dir: Path,
        identity: dict[str, Any],
        device: str = "auto",
        batch_size: int = 8,
        workers: int | None = None,
        shard: tuple[int, int] | None = None,
        resolved: str = "",
        history: History | None = None,
    ) -> None:
        self.accelerator = distributed.make_accelerator(device)
        self.model, self.task, self.data = model.to(self.accelerator.device).eval(), task, data
        model.renderer.prompts = model.renderer.prompts[:1]  # one question for all, as measured
        self.collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
        self.batch_size, self.identity = batch_size, identity
        self.resolved, self.history = resolved, history or History()
        self.shard = shard
        self.mine = range(len(data)) if shard is None else range(shard[0] - 1, len(data), shard[1])
        few = len(self.mine) < 2 * batch_size
        cores = min(os.cpu_count() or 1, 4)
        self.workers = workers if workers is not None else (0 if few else cores)
        self.asked = {r.sample_id: r for r in data.records}
        self.signature = prediction_file.signature_of(identity)
        self.folder = output_dir / self.signature

    def run(self) -> list[Prediction]:
        """Answer what is not answered yet, then write the page, but for a shard.

        Raises:
            SomeFailed: Some images could not be read; all others have their answer.
        """
        if self.history.drawings_alone:
            log.warning(DRAWINGS_ALONE)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = prediction_file.path_of(self.folder, "predictions", self.shard)
        done = self._done(path)
        names = {i: self.data.records[i].sample_id for i in self.mine}
        todo = [i for i, name in names.items() if name not in done]
        if len(todo) < len(names):
            log.info("%d of %d are answered already", len(names) - len(todo), len(names))
        failed: dict[str, str] = {}
        with (
            path.open("a", encoding="utf-8") as file,
            progress(total=len(todo), desc="answers", unit="image") as bar,
        ):
            for batch in self._batches(todo):
                good = [(i, s) for i, s in batch if not isinstance(s, str)]
                failed |= {names[i]: s for i, s in batch if isinstance(s, str)}
                for prediction in self._answered([s for _, s in good], failed):
                    done[prediction.sample_id] = prediction
                    file.write(json.dumps(prediction.as_row()) + "\n")
                file.flush()
                bar.update(len(batch))
        result = [done[name] for name in names.values() if name in done]
        prediction_file.write(path, self.identity, result)  # in order; those to changed files go
        errors = "".join(json.dumps({"sample_id": k, "error": v}) + "\n" for k, v in failed.items())
        checkpoint.write_file(prediction_file.path_of(self.folder, "errors", self.shard), errors)
        if self.shard is None:
            self._write_page(result)
        if failed:
            named = "\n".join(f"  {name}: {why}" for name, why in failed.items())
            raise SomeFailed(
                f"{len(failed)} of {len(names)} could not be read, {len(result)} are answered "
                f"in {self.folder}:\n{named}"
            )
        return result

    def _done(self, path: Path) -> dict[str, Prediction]:
        """Answers of earlier commands, and of shards."""
        found = prediction_file.stored(path, self.identity)
        if self.shard is None:
            found = prediction_file.of_shares(path) | found
        return {name: p for name, p in found.items() if self._is_of(p)}

    def _batches(self, todo: Sequence[int]) -> Iterator[list[tuple[int, Sample | str]]]:
        loader: DataLoader[Any] = DataLoader(
            _Tolerant(self.data, todo),
            batch_size=self.batch_size,
            num_workers=self.workers,
            collate_fn=list,
        )
        return iter(loader)

    def _answered(self, samples: Sequence[Sample], failed: dict[str, str]) -> Iterator[Prediction]:
        """Answers of a batch; one that cannot be asked is named, and the others are answered."""
        try:
            found = list(self._answer(samples))
        except (DataError, ValueError) as error:
            if len(samples) == 1:
                name = samples[0]["sample_id"]
                failed[name] = str(error).removeprefix(f"sample {name}: ")
                return
            for sample in samples:
                yield from self._answered([sample], failed)
            return
        yield from found

    def _answer(self, samples: Sequence[Sample]) -> Iterator[Prediction]:
        if not samples:
            return
        batch = distributed.to_device(self.collate.prompts(samples), self.accelerator.device)
        said = answers_of(self.task.predict(self.model, batch))
        asked = self.task.asked or [""] * len(said)
        for sample, one, instead in zip(samples, said, asked, strict=True):
            yield Prediction(
                sample_id=sample["sample_id"],
                study_id=sample["study_id"],
                prompt="\n".join(t["text"] for t in self.collate.question(sample)),
                prediction=one.text,
                payload=keep_mask(one, self.folder, sample["sample_id"]),
                folder=self.folder,
                reference="",
                seed=self.task.config.generate.seed,
                meta=sample["meta"] | ({"asked": instead} if instead else {}),
            )

    def _is_of(self, prediction: Prediction) -> bool:
        """Whether an answer is to this command's file and question of that name."""
        record = self.asked.get(prediction.sample_id)
        meta = {k: v for k, v in prediction.meta.items() if k != "asked"}
        if record is None or record.meta != meta:
            return False
        turns = [] if callable(record.turns) else list(record.turns)
        said = self.model.renderer.with_prompt(turns, "")
        return prediction.prompt == "\n".join(t["text"] for t in said)

    def _write_page(self, predictions: Sequence[Prediction]) -> None:
        images = {r.sample_id: r.media for r in self.data.records}
        places = result_page.chosen(len(predictions), PAGE_CASES, 0)
        said = [predictions[i] for i in places]
        cases = [
            result_page.Case(
                sample_id=p.sample_id,
                images=images[p.sample_id],
                prompt=p.meta.get("asked", p.prompt),
                **vars(self.task.cell(p)),
            )
            for p in said
        ]
        drawn = (
            f", {len(said)} of them shown, drawn at random" if len(said) < len(predictions) else ""
        )
        result_page.write_page(
            self.folder / "report.html",
            title="xraygpt: AI drafts",
            subtitle=f"{len(predictions)} images{drawn}, run {self.signature}.",
            cases=cases,
            history=self.history,
            facts=logs.facts(self.accelerator.device),
            configuration=self.resolved,
        )
