"""What a run will write: the databases, the chunks, the patients in two splits, and the caps."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from xraygpt.common.config import to_tree
from xraygpt.common.errors import InputError
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import VIEWS, Split
from xraygpt.instructions.settings import Entry, InstructionSet
from xraygpt.instructions.tables import Tables

VERSION = 2  # of the items; part of what decides whether an interrupted run is continued
CHUNK = 2000  # images that a worker writes at once
HELD_OUT: tuple[Split, ...] = ("val", "test")


class Chunk(NamedTuple):
    """Consecutive images of one collection.

    Attributes:
        collection: Name of the collection.
        number: Position among the chunks of the collection, from 0.
        start: Number of the first image.
        stop: Number after the last image.
    """

    collection: str
    number: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of its files."""
        return f"{self.collection}-{self.number:06d}"


@dataclass(frozen=True)
class Plan:
    """What a worker needs to know.

    Attributes:
        settings: The YAML file.
        databases: The database of each collection.
        excluded: Database with the patients who are left out of train; None: nobody.
        thresholds: Largest hash of the items that a capped entry keeps, by position in the mixture.
    """

    settings: InstructionSet
    databases: dict[str, Path]
    excluded: Path | None
    thresholds: dict[int, int]

    def chunks(self, collections: Iterable[Collection]) -> list[Chunk]:
        """Return the chunks of collections whose databases exist, in the order of the output."""
        chunks = []
        for collection in collections:
            with Tables(self.databases[collection.name], read_only=True) as tables:
                count = collection.count(tables)
            for i, start in enumerate(range(1, count + 1, CHUNK)):
                stop = min(start + CHUNK, count + 1)
                chunks.append(Chunk(collection.name, i, start, stop))
        return chunks

    def signature(self, collections: Iterable[Collection]) -> str:
        """Return a hash of all that determines the content of the parts."""
        stamps = [collection.stamp() for collection in collections]
        wording = self.settings.output.wording
        text = wording.read_text(encoding="utf-8") if wording else ""
        tree = to_tree(self.settings)
        content = json.dumps([VERSION, tree, stamps, text], default=str, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


class Overlap(NamedTuple):
    """Patients of one collection's held-out images who are also in train.

    Attributes:
        held_out: The split they are held out in.
        collection: The collection with the held-out images.
        train: The collection with the training images.
        patients: Their number.
        example: One of them.
    """

    held_out: Split
    collection: str
    train: str
    patients: int
    example: str


def collect_patients(
    settings: InstructionSet, databases: dict[str, Path], path: Path | str
) -> sqlite3.Connection:
    """Return a database with the table ``used``: patient, target and collection.

    Args:
        settings: The instruction set.
        databases: The database of each collection.
        path: The file to write; ":memory:" keeps it in memory.
    """
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = OFF")
    db.execute(
        "CREATE TABLE used (patient TEXT, target TEXT, collection TEXT, "
        "PRIMARY KEY (patient, target, collection)) WITHOUT ROWID"
    )
    if all(entry.target == "train" for entry in settings.mixture):
        return db  # nobody is held out
    for entry in settings.mixture:
        with Tables(databases[entry.collection], read_only=True) as tables:
            db.executemany(
                "INSERT OR IGNORE INTO used VALUES (?, ?, ?)", _patients_of(entry, tables)
            )
    db.commit()
    return db


def _patients_of(entry: Entry, tables: Tables) -> Iterator[tuple[str, str, str]]:
    marks = ", ".join("?" * len(entry.splits))
    views = ", ".join(f"'{view}'" for view in sorted(VIEWS.get(entry.views, ())))
    condition = f"AND view IN ({views})" if views else ""
    sql = f"SELECT DISTINCT patient_id FROM images WHERE split IN ({marks}) {condition}"
    for (patient,) in tables.rows(sql, *entry.splits):
        yield patient, entry.target, entry.collection


def find_overlaps(db: sqlite3.Connection) -> list[Overlap]:
    """Return who is held out and also trained on, by pairs of collections."""
    sql = (
        "SELECT h.target, h.collection, t.collection, count(*), min(h.patient) FROM used h "
        "JOIN used t USING (patient) WHERE h.target != 'train' AND t.target = 'train' "
        "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"
    )
    return [Overlap(*row) for row in db.execute(sql)]


def check_overlaps(
    settings: InstructionSet, overlaps: Sequence[Overlap], db: sqlite3.Connection, path: Path
) -> Path | None:
    """Refuse patients in two splits, or write the database of those to leave out of train.

    Args:
        settings: The instruction set.
        overlaps: Result of `find_overlaps`.
        db: Result of `collect_patients`.
        path: The database to write.

    Returns:
        The database, or None if nobody is left out.

    Raises:
        InputError: There are such patients, and ``output.overlap`` is ``refuse``.
    """
    path.unlink(missing_ok=True)
    if not overlaps or settings.output.overlap == "allow":
        return None
    if settings.output.overlap == "refuse":
        lines = [
            f"  {each.patients} of {each.held_out} ({each.collection}) also in train "
            f"({each.train}), such as {each.example}"
            for each in overlaps
        ]
        raise InputError(
            "patients in two splits:\n"
            + "\n".join(lines)
            + "\nSet output.overlap to exclude to leave them out of train, or to allow"
        )
    db.execute("ATTACH DATABASE ? AS result", (str(path),))
    db.execute("CREATE TABLE result.excluded (patient TEXT PRIMARY KEY) WITHOUT ROWID")
    db.execute(
        "INSERT INTO result.excluded SELECT DISTINCT patient FROM used WHERE target != 'train'"
    )
    db.commit()
    db.execute("DETACH DATABASE result")
    return path


def smallest(hashes: Sequence[int], count: int) -> int:
    """Return the largest of the `count` smallest hashes, which a capped entry keeps."""
    return sorted(hashes)[count - 1]
