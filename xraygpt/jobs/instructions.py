"""The work behind `python -m xraygpt.prepare_instructions`."""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.checking import (
    Check,
    check_collection,
    check_entry,
    find_shared_patients,
    write_check,
)
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.exports import EXPORTS
from xraygpt.instructions.formats import ROW_FORMATS, BoxWriter, dataset_info
from xraygpt.instructions.joining import join_parts
from xraygpt.instructions.planning import (
    Chunk,
    Plan,
    check_overlaps,
    collect_patients,
    find_overlaps,
)
from xraygpt.instructions.records import SPLITS
from xraygpt.instructions.settings import InstructionSet
from xraygpt.instructions.writing import (
    ITEMS,
    Result,
    count_items,
    find_thresholds,
    write_parts,
)

log = logging.getLogger(__name__)

MANIFEST, MISSING = "manifest.json", "missing_images.txt"
WORK = "work"  # databases, and parts of an unfinished run


class ImagesMissing(XrayGPTError):
    """The instruction set is written, but some image files are missing."""

    exit_code = 3


class CheckFailed(XrayGPTError):
    """The check found collections that cannot be read, or patients in two splits."""

    exit_code = 3


@dataclass
class Writer:
    """Writes or checks one instruction set.

    Attributes:
        settings: The YAML file.
        out: Folder for the files.
        workers: Number of processes.
    """

    settings: InstructionSet
    out: Path
    workers: int

    def __post_init__(self) -> None:
        self.collections = self.settings.build()
        self.work = self.out / WORK

    def write(self) -> Result:
        """Write the instruction set, or continue an interrupted run.

        Raises:
            InputError: Patients are in two splits, or another run writes to the folder.
            DataError: A file of a collection is missing or damaged.
        """
        with self._lock():
            collections = list(self.collections.values())
            paths = {each.name: each.database_path(self.work) for each in collections}
            plan = Plan(self.settings, paths, None, {})
            if self._needs_plan():
                plan, _ = self._plan(self._build_databases())
            result, chunks = write_parts(plan, collections, self.work, self.workers)
            parts = self.work / "parts"
            self._join(parts, chunks)
            self._export()
            text = json.dumps(self._manifest(result), indent=2, ensure_ascii=False)
            write_text_atomic(self.out / MANIFEST, text + "\n")
            _write_missing(self.out / MISSING, result.missing)
            shutil.rmtree(parts)
        return result

    def check(self, looked_for: int = 500) -> Check:
        """Read every collection, count what the mixture yields, and write the page.

        Args:
            looked_for: Number of image files to look for in each collection.
        """
        with self._lock():
            found = [
                check_collection(each, self.work, looked_for) for each in self.collections.values()
            ]
            check = Check(found)
            readable = {each.name for each in found if not each.error}
            entries = [
                (i, e) for i, e in enumerate(self.settings.mixture) if e.collection in readable
            ]
            if entries:
                self._count(check, readable)
            write_check(check, self.out)
        return check

    def _count(self, check: Check, readable: set[str]) -> None:
        """Add the overlaps and the numbers of items of the readable collections."""
        mixture = [e for e in self.settings.mixture if e.collection in readable]
        output = replace(self.settings.output, overlap="allow", images="unchecked")
        settings = replace(self.settings, mixture=mixture, output=output)
        part = Writer(settings, self.out, self.workers)
        databases = {name: c.database(self.work) for name, c in part.collections.items()}
        check.shared = find_shared_patients(databases)
        db = collect_patients(settings, databases, ":memory:")
        check.overlaps = find_overlaps(db)
        db.close()
        plan, chunks = part._plan(databases)
        counts = count_items(plan, chunks, self.workers)
        check.entries = [
            check_entry(settings, i, counts.items[i], counts.left_out.get(i, {}))
            for i in range(len(mixture))
        ]

    def _needs_plan(self) -> bool:
        """Check whether all images must be known before the first item is written."""
        mixture = self.settings.mixture
        held_out = any(entry.target != "train" for entry in mixture)
        return held_out or any(entry.cap is not None for entry in mixture)

    def _build_databases(self) -> dict[str, Path]:
        """Return the database of each collection, building several at once."""
        collections = list(self.collections.values())
        workers = min(self.workers, len(collections))
        build = partial(_build_database, self.work)
        if workers <= 1:
            return dict(map(build, collections))
        with ProcessPoolExecutor(workers) as pool:
            return dict(pool.map(build, collections))

    def _plan(self, databases: dict[str, Path]) -> tuple[Plan, list[Chunk]]:
        db = collect_patients(self.settings, databases, ":memory:")
        try:
            overlaps = find_overlaps(db)
            excluded = check_overlaps(self.settings, overlaps, db, self.work / "excluded.sqlite")
        finally:
            db.close()
        plan = Plan(self.settings, databases, excluded, {})
        chunks = plan.chunks(self.collections.values())
        return replace(plan, thresholds=find_thresholds(plan, chunks, self.workers)), chunks

    def _join(self, parts: Path, chunks: Sequence[Chunk]) -> None:
        shared = []
        for split in SPLITS:
            for name in ("items", *self.settings.output.formats):
                form = ITEMS if name == "items" else ROW_FORMATS.get(name)
                if form is None:
                    continue
                path = self.out / form.folder / f"{split}{form.suffix}"
                if join_parts(parts, f"{split}.{name}", chunks, path, form) and name == "sharegpt":
                    shared.append(path.name)
        if shared:
            write_text_atomic(self.out / "sharegpt" / "dataset_info.json", dataset_info(shared))

    def _export(self) -> None:
        """Write the formats that are made from the items."""
        output = self.settings.output
        boxes = BoxWriter(output.boxes, output.min_pixels, output.max_pixels)
        for split in SPLITS:
            items = self.out / ITEMS.folder / f"{split}{ITEMS.suffix}"
            for name in output.formats:
                if name in EXPORTS and items.is_file():
                    log.info("writing %s/%s", name, split)
                    EXPORTS[name](items, self.out / name, boxes)

    def _manifest(self, result: Result) -> dict[str, Any]:
        return {
            "use": "research use only",
            "items": sum(result.items.values()),
            "boxes": self.settings.output.boxes,
            "seed": self.settings.output.seed,
            "mixture": [
                {
                    "entry": entry.title(), "into": entry.target, "items": result.items[i],
                    "left_out": dict(result.left_out.get(i, {})),
                }
                for i, entry in enumerate(self.settings.mixture)
            ],
            "collections": {n: _facts(each) for n, each in self.collections.items()},
            "missing_images": len(result.missing),
        }  # fmt: skip

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"another run is writing to {self.out}") from None
            yield


def _build_database(folder: Path, collection: Collection) -> tuple[str, Path]:
    return collection.name, collection.database(folder)


def _facts(collection: Collection) -> dict[str, Any]:
    return {
        "collection": COLLECTIONS.name_of(type(collection)), "title": collection.title,
        "licence": collection.licence, "credentialed": collection.credentialed,
    }  # fmt: skip


def _write_missing(path: Path, missing: Sequence[str]) -> None:
    if missing:
        write_text_atomic(path, "".join(f"{each}\n" for each in missing))
    else:
        path.unlink(missing_ok=True)
