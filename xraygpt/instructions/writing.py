"""The writer: chunks of images become parts of files, in any number of processes.

Every choice is seeded by the image and the task, and every chunk is written to files of its own
before these are joined in order. The result therefore does not depend on the number of processes,
nor on how often the run was interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_bytes_atomic, write_text_atomic
from xraygpt.common.errors import DataError
from xraygpt.common.keyed_random import keyed_int
from xraygpt.common.logging import progress
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.formats import ROW_FORMATS, BoxWriter, RowFormat, encode
from xraygpt.instructions.items import Item
from xraygpt.instructions.planning import Chunk, Plan, smallest
from xraygpt.instructions.records import SPLITS, ImageRecord, ImageRow
from xraygpt.instructions.settings import Entry
from xraygpt.instructions.tables import Tables
from xraygpt.instructions.tasks import TASKS, Asked
from xraygpt.instructions.wording import load_wording

log = logging.getLogger(__name__)

ITEMS = RowFormat("items", ".jsonl", lambda item, texts: {})  # written by `Item.to_json`


class Worker:
    """Writes chunks; one in each process.

    Args:
        plan: What to write.
        parts: Folder for the parts.
    """

    def __init__(self, plan: Plan, parts: Path) -> None:
        self.plan, self.parts = plan, parts
        output = plan.settings.output
        self.collections = plan.settings.build()
        self._tables: dict[str, Tables] = {}
        self.excluded = Tables(plan.excluded, read_only=True) if plan.excluded else None
        self.wording = load_wording(output.wording)
        self.boxes = BoxWriter(output.boxes, output.min_pixels, output.max_pixels)
        names: list[str] = [name for name in output.formats if name in ROW_FORMATS]
        self.formats = {name: ROW_FORMATS[name] for name in names}

    def tables(self, name: str) -> Tables:
        """Return the tables of a collection, which are opened when they are first needed."""
        if name not in self._tables:
            self._tables[name] = Tables(self.plan.databases[name], read_only=True)
        return self._tables[name]

    def write(self, chunk: Chunk) -> dict[str, Any]:
        """Write the parts of a chunk and return its counts.

        Raises:
            DataError: A record is damaged, or an image file is missing.
        """
        rows: dict[tuple[str, str], list[bytes]] = {}
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        missing: list[str] = []
        for index, item in self.items(chunk, reasons, missing):
            rows.setdefault((item.split, "items"), []).append(item.to_json().encode())
            counts[f"{index}"] += 1
            if self.formats and self.boxes.needs_size(item):
                reasons[f"{index}/image size unknown: only in items"] += 1
                continue
            texts = self.boxes.texts(item) if self.formats else []
            for name, form in self.formats.items():
                row = encode(form.row(item, texts))
                rows.setdefault((item.split, name), []).append(row)
        for (split, name), lines in rows.items():
            form = self.formats.get(name, ITEMS)
            part = self.parts / f"{split}.{name}" / chunk.name
            write_bytes_atomic(part, form.separator.join(lines))
        facts = {"items": counts, "left_out": reasons, "missing": missing}
        write_text_atomic(self.parts / "done" / f"{chunk.name}.json", json.dumps(facts))
        return facts

    def items(
        self, chunk: Chunk, reasons: Counter[str], missing: list[str]
    ) -> Iterator[tuple[int, Item]]:
        """Yield the items of a chunk with their position in the mixture.

        Args:
            chunk: The chunk.
            reasons: Counts by "position/reason" why images yield no item; updated.
            missing: Image files that are missing; updated.
        """
        collection, tables = self.collections[chunk.collection], self.tables(chunk.collection)
        entries = [
            (i, entry)
            for i, entry in enumerate(self.plan.settings.mixture)
            if entry.collection == chunk.collection
        ]
        for image in collection.images(tables, chunk.start, chunk.stop):
            chosen = [(i, entry) for i, entry in entries if entry.accepts(image)]
            chosen = [pair for pair in chosen if not self._is_excluded(pair[1], image, reasons)]
            if not chosen:
                continue
            path = self._image_path(collection, image, missing)
            if path is None:
                reasons.update(f"{i}/image missing" for i, _ in chosen)
                continue
            record = collection.record(tables, image)
            for i, entry in chosen:
                empty = True
                for item in self._entry_items(i, entry, record, path):
                    empty = False
                    if item is not None:
                        yield i, item
                if empty:
                    reasons[f"{i}/nothing to ask"] += 1

    def _entry_items(
        self, index: int, entry: Entry, record: ImageRecord, path: str
    ) -> Iterator[Item | None]:
        """Yield the items of one mixture entry for one image; None for one above the cap."""
        if not _has_required(entry, record):
            return
        image, seed = record.image, self.plan.settings.output.seed
        key = f"{seed}/{entry.collection}/{image.image_id}"
        threshold = self.plan.thresholds.get(index)
        make, base = TASKS[entry.task], f"{entry.collection}_{entry.task}_{image.image_id}"
        for repeat in range(entry.repeats):
            asked = Asked(record, entry.options(), self.wording, key, repeat)
            for number, draft in enumerate(make(asked)):
                if threshold is not None and item_hash(key, entry.task, draft.part) > threshold:
                    yield None
                    continue
                suffix = (f"_{number}" if draft.part else "") + (f"_r{repeat}" if repeat else "")
                yield Item(
                    base + suffix, path, entry.collection, entry.task, entry.target,
                    image.study_id, image.patient_id, image.image_id, image.width, image.height,
                    draft.turns, draft.boxes, draft.labels, draft.pathologies, draft.facts,
                )  # fmt: skip

    def count(self, chunk: Chunk) -> dict[str, Any]:
        """Return the counts of a chunk without writing anything."""
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        for index, _ in self.items(chunk, reasons, []):
            counts[f"{index}"] += 1
        return {"items": counts, "left_out": reasons, "missing": []}

    def hashes(self, chunk: Chunk) -> dict[int, list[int]]:
        """Return the hashes of the items of capped entries, by position in the mixture."""
        found: dict[int, list[int]] = {}
        collection, tables = self.collections[chunk.collection], self.tables(chunk.collection)
        capped = [
            (i, entry)
            for i, entry in enumerate(self.plan.settings.mixture)
            if entry.cap is not None and entry.collection == chunk.collection
        ]
        if not capped:
            return found
        for image in collection.images(tables, chunk.start, chunk.stop):
            accepted = [
                (i, entry)
                for i, entry in capped
                if entry.accepts(image) and not self._is_excluded(entry, image, Counter())
            ]
            if not accepted or self._image_path(collection, image, []) is None:
                continue
            record = collection.record(tables, image)
            for i, entry in accepted:
                if not _has_required(entry, record):
                    continue
                key = f"{self.plan.settings.output.seed}/{entry.collection}/{image.image_id}"
                for draft in TASKS[entry.task](Asked(record, entry.options(), self.wording, key)):
                    found.setdefault(i, []).append(item_hash(key, entry.task, draft.part))
        return found

    def _is_excluded(self, entry: Entry, image: ImageRow, reasons: Counter[str]) -> bool:
        """Check whether a training image belongs to a patient who is held out elsewhere."""
        if self.excluded is None or entry.target != "train":
            return False
        sql = "SELECT 1 FROM excluded WHERE patient = ?"
        found = self.excluded.value(sql, image.patient_id) is not None
        if found:
            index = self.plan.settings.mixture.index(entry)
            reasons[f"{index}/patient held out elsewhere"] += 1
        return found

    def _image_path(
        self, collection: Collection, image: ImageRow, missing: list[str]
    ) -> str | None:
        """Return the absolute path of an image file, or None if it is missing and skipped."""
        path = os.path.join(self._folder(collection), image.path)  # noqa: PTH118  (a hot path)
        policy = self.plan.settings.output.images
        if policy == "unchecked" or os.path.exists(path):  # noqa: PTH110
            return path
        if policy == "require":
            raise DataError(
                f"{collection.name}: there is no image {path}; set output.images to skip to leave "
                "out the items of missing images, or to unchecked"
            )
        missing.append(path)
        return None

    def _folder(self, collection: Collection) -> str:
        return str(collection.image_folder().absolute())


def _has_required(entry: Entry, record: ImageRecord) -> bool:
    has = {
        "report": bool(record.report),
        "phrases": any(phrase.boxes for phrase in record.phrases),
        "conversation": bool(record.conversations),
    }
    return all(has[name] for name in entry.require)


def item_hash(key: str, task: str, part: str) -> int:
    """Return the hash by which capped entries choose items; repeats share it."""
    return keyed_int(key, task, part, "cap")


# ---- Processes -----------------------------------------------------------------------------------

_workers: list[Worker] = []  # the one of this process


def _start_worker(plan: Plan, parts: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process stops the others
    _workers.append(Worker(plan, parts))


def _write_chunk(chunk: Chunk) -> dict[str, Any]:
    return _workers[-1].write(chunk)


def _count_chunk(chunk: Chunk) -> dict[str, Any]:
    return _workers[-1].count(chunk)


def _hash_chunk(chunk: Chunk) -> dict[int, list[int]]:
    return _workers[-1].hashes(chunk)


@dataclass
class Result:
    """What a run wrote.

    Attributes:
        items: Number of items by position in the mixture.
        left_out: Counts by position in the mixture and reason.
        missing: Image files that are missing.
    """

    items: Counter[int] = field(default_factory=Counter)
    left_out: dict[int, Counter[str]] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def add(self, facts: dict[str, Any]) -> None:
        """Add the counts of a chunk."""
        for index, count in facts["items"].items():
            self.items[int(index)] += count
        for name, count in facts["left_out"].items():
            index, _, reason = name.partition("/")
            self.left_out.setdefault(int(index), Counter())[reason] += count
        self.missing += facts["missing"]


def find_thresholds(plan: Plan, chunks: Sequence[Chunk], workers: int) -> dict[int, int]:
    """Return the largest hash that each capped entry keeps; entries below their cap are missing."""
    caps = {i: e.cap for i, e in enumerate(plan.settings.mixture) if e.cap is not None}
    names = {plan.settings.mixture[i].collection for i in caps}
    relevant = [chunk for chunk in chunks if chunk.collection in names]
    found: dict[int, list[int]] = {i: [] for i in caps}
    for hashes in _map(_hash_chunk, plan, Path(), relevant, workers, "choosing"):
        for i, values in hashes.items():
            found[i] += values
    return {i: smallest(found[i], caps[i]) for i in caps if len(found[i]) > caps[i]}


def count_items(plan: Plan, chunks: Sequence[Chunk], workers: int) -> Result:
    """Return how many items a run would write."""
    result = Result()
    for facts in _map(_count_chunk, plan, Path(), chunks, workers, "counting"):
        result.add(facts)
    return result


def write_parts(
    plan: Plan, collections: Sequence[Collection], work: Path, workers: int
) -> tuple[Result, list[Chunk]]:
    """Write the parts of all chunks that an earlier run has not completed.

    The chunks of a collection are written as soon as its database is built, while others are still
    being built.

    Args:
        plan: What to write.
        collections: The collections, in the order of the output.
        work: Folder of the databases and of ``parts``.
        workers: Number of processes.

    Returns:
        The counts, and all chunks in the order of the output.

    Raises:
        DataError: See `Collection.database` and `Worker.write`.
    """
    parts = work / "parts"
    _prepare(parts, plan, collections)
    chunks: dict[str, list[Chunk]] = {}
    facts: dict[Chunk, dict[str, Any]] = {}
    bar = progress(desc="writing", total=0, unit="chunk")
    with bar, _executor(plan, parts, workers) as run:
        # The largest first, so that the others can be written meanwhile.
        building = {run(_build_database, work, c): c for c in sorted(collections, key=_size)}
        writing: dict[Future[Any], Chunk] = {}
        while building or writing:
            done, _ = wait([*building, *writing], return_when=FIRST_COMPLETED)
            for future in done:
                result = future.result()
                if future in writing:
                    facts[writing.pop(future)] = result
                    bar.update()
                    continue
                collection = building.pop(future)
                found = chunks[collection.name] = plan.chunks([collection])
                todo = [chunk for chunk in found if not _read_done(parts, chunk, facts)]
                bar.total += len(todo)
                for chunk in todo:
                    started = run(_write_chunk, chunk)
                    if started.done():
                        facts[chunk] = started.result()
                        bar.update()
                    else:
                        writing[started] = chunk
    ordered = [chunk for each in collections for chunk in chunks[each.name]]
    total = Result()
    for chunk in ordered:
        total.add(facts[chunk])
    return total, ordered


def _size(collection: Collection) -> int:
    """Return the negative size of a collection's files in bytes."""
    return -sum(path.stat().st_size for path in collection.files())


def _read_done(parts: Path, chunk: Chunk, facts: dict[Chunk, dict[str, Any]]) -> bool:
    """Add the counts of a chunk, if an earlier run has written it."""
    done = parts / "done" / f"{chunk.name}.json"
    if not done.is_file():
        return False
    facts[chunk] = json.loads(done.read_text(encoding="utf-8"))
    return True


def _prepare(parts: Path, plan: Plan, collections: Sequence[Collection]) -> None:
    """Create the folders of the parts; parts of other settings are deleted."""
    stamp, signature = parts / "plan.txt", plan.signature(collections)
    if parts.is_dir() and not (stamp.is_file() and stamp.read_text(encoding="utf-8") == signature):
        shutil.rmtree(parts)
    names = ["items", *(name for name in plan.settings.output.formats if name in ROW_FORMATS)]
    for folder in ["done", *(f"{split}.{name}" for split in SPLITS for name in names)]:
        (parts / folder).mkdir(parents=True, exist_ok=True)
    write_text_atomic(stamp, signature)


@contextmanager
def _executor(plan: Plan, parts: Path, workers: int) -> Iterator[Callable[..., Future[Any]]]:
    """Yield a function that runs another one in a process, or at once if there is one only."""
    if workers == 1:
        _workers[:] = [Worker(plan, parts)]
        yield _run_here
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(plan, parts))
    try:
        yield pool.submit
    finally:
        pool.shutdown(cancel_futures=True)


def _run_here(function: Callable[..., Any], *args: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(function(*args))
    return future


def _build_database(folder: Path, collection: Collection) -> Path:
    return collection.database(folder)


def _map(
    function: Any, plan: Plan, parts: Path, chunks: Sequence[Chunk], workers: int, title: str
) -> Iterator[Any]:
    """Yield the results of chunks, in order, with progress and the time that remains."""
    if not chunks:
        return
    workers = min(workers, len(chunks))
    if workers == 1:
        _workers[:] = [Worker(plan, parts)]
        yield from progress(map(function, chunks), title, len(chunks), unit="chunk")
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(plan, parts))
    try:
        yield from progress(pool.map(function, chunks), title, len(chunks), unit="chunk")
    finally:
        pool.shutdown(cancel_futures=True)
