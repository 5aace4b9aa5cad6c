"""What is right and wrong with the folders of an instruction set, as a page and in the terminal."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection, Remark
from xraygpt.instructions.planning import Overlap
from xraygpt.instructions.published import PUBLISHED, TOTAL, TOTAL_IN_TEXT
from xraygpt.instructions.settings import Entry, InstructionSet
from xraygpt.instructions.tables import Tables

PAGE, JSON = "check.html", "check.json"


@dataclass
class CollectionCheck:
    """What is known about one collection.

    Attributes:
        name: Its name in the YAML file.
        kind: Its registered name.
        title: Its title.
        licence: Its licence.
        credentialed: Whether its reports must not be sent to other hosts.
        error: Why it cannot be read; "" if it can.
        files: The files that are read, with their sizes in bytes.
        tables: Rows and columns by table.
        splits: Number of images by split and view.
        patients: Number of patients.
        without_size: Images whose size is unknown.
        remarks: What `Collection.load` noted.
        missing: Image files that are missing, and how many were looked for.
        example: One of them.
    """

    name: str
    kind: str
    title: str
    licence: str
    credentialed: bool
    error: str = ""
    files: list[tuple[str, int]] = field(default_factory=list)
    tables: list[tuple[str, int, list[str]]] = field(default_factory=list)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    patients: int = 0
    without_size: int = 0
    remarks: list[Remark] = field(default_factory=list)
    missing: tuple[int, int] = (0, 0)
    example: str = ""


class EntryCheck(NamedTuple):
    """What an entry of the mixture yields.

    Attributes:
        entry: Its title.
        task: Its task.
        into: The file that the items go to.
        pairs: Items before repeats.
        items: Items with repeats.
        published: Pairs and repeats of RadVLM's table; None if it has no such row.
        left_out: Number of images by reason.
    """

    entry: str
    task: str
    into: str
    pairs: int
    items: int
    published: tuple[int, int] | None
    left_out: dict[str, int]


@dataclass
class Check:
    """The whole check.

    Attributes:
        collections: One for each collection.
        entries: One for each entry of the mixture that could be counted.
        overlaps: Patients in train and in a held-out file of this mixture.
        shared: Patients in the official train split of one collection and the val or test split of
            another: (train, held out, split, patients).
    """

    collections: list[CollectionCheck]
    entries: list[EntryCheck] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    shared: list[tuple[str, str, str, int]] = field(default_factory=list)

    @property
    def problems(self) -> int:
        """Number of collections that cannot be read, and of pairs with shared patients."""
        return sum(bool(each.error) for each in self.collections) + len(self.overlaps)


def check_collection(collection: Collection, folder: Path, looked_for: int) -> CollectionCheck:
    """Read a collection and describe it; an error becomes part of the result.

    Args:
        collection: The collection.
        folder: Folder for its database.
        looked_for: Number of image files to look for, spread over the collection.
    """
    kind = COLLECTIONS.name_of(type(collection))
    result = CollectionCheck(
        collection.name, kind, collection.title, collection.licence, collection.credentialed
    )
    try:
        result.files = [(str(path), path.stat().st_size) for path in collection.files()]
        database = collection.database(folder)
    except DataError as error:
        result.error = str(error)
        return result
    with Tables(database, read_only=True) as tables:
        _describe_tables(result, tables)
        result.remarks = collection.remarks(tables)
        _look_for_images(result, collection, tables, looked_for)
    return result


def _describe_tables(result: CollectionCheck, tables: Tables) -> None:
    own = ("images", "remarks")
    names = [
        name
        for (name,) in tables.rows(
            "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY rowid"
        )
        if name not in own and not name.startswith("sqlite_")
    ]
    for name in names:
        columns = [row[1] for row in tables.rows(f'PRAGMA table_info("{name}")')]
        result.tables.append((name, tables.value(f'SELECT count(*) FROM "{name}"'), columns))
    sql = "SELECT split, coalesce(nullif(view, ''), 'unknown'), count(*) FROM images GROUP BY 1, 2"
    for split, view, count in tables.rows(sql):
        result.splits.setdefault(split, {})[view] = count
    result.patients = tables.value("SELECT count(DISTINCT patient_id) FROM images")
    result.without_size = tables.value("SELECT count(*) FROM images WHERE width IS NULL")


def _look_for_images(
    result: CollectionCheck, collection: Collection, tables: Tables, looked_for: int
) -> None:
    count = collection.count(tables)
    step = max(1, count // looked_for)
    sql = "SELECT path FROM images WHERE number % ? = 0 OR number = 1 LIMIT ?"
    paths = [collection.image_folder() / p for (p,) in tables.rows(sql, step, looked_for)]
    missing = [path for path in paths if not path.is_file()]
    result.missing = (len(missing), len(paths))
    result.example = str(missing[0]) if missing else ""


def find_shared_patients(databases: Mapping[str, Path]) -> list[tuple[str, str, str, int]]:
    """Return patients in the official train split of one collection and held out in another."""
    found = []
    for first, second in itertools.permutations(databases, 2):
        db = sqlite3.connect(f"{databases[first].absolute().as_uri()}?mode=ro", uri=True)
        db.execute("ATTACH DATABASE ? AS other", (f"{databases[second].absolute()}",))
        sql = (
            "SELECT o.split, count(DISTINCT o.patient_id) FROM other.images o WHERE o.split != "
            "'train' AND EXISTS (SELECT 1 FROM main.images m WHERE m.patient_id = o.patient_id "
            "AND m.split = 'train') GROUP BY 1 ORDER BY 1"
        )
        found += [(first, second, split, count) for split, count in db.execute(sql)]
        db.close()
    return found


def check_entry(
    settings: InstructionSet, index: int, items: int, left_out: Mapping[str, int]
) -> EntryCheck:
    """Return what an entry yields beside the published numbers."""
    entry: Entry = settings.mixture[index]
    config: Any = settings.collections[entry.collection]
    kind = config.kind.name_of(config.owner)
    published = PUBLISHED.get((kind, entry.task)) if entry.target == "train" else None
    return EntryCheck(
        entry.title(), entry.task, entry.target, items // entry.repeats, items,
        (published.pairs, published.repeats) if published else None, dict(left_out),
    )  # fmt: skip


def write_check(check: Check, folder: Path) -> Path:
    """Write ``check.html`` and ``check.json``, and return the page."""
    from jinja2 import Environment

    source = resources.files("xraygpt").joinpath("data/instructions_page.html").read_text("utf-8")
    totals = Counter[str]()
    for each in check.entries:
        totals[each.into] += each.items
    page = Environment(autoescape=True).from_string(source)
    text = page.render(
        check=check, totals=totals, published=TOTAL, in_text=TOTAL_IN_TEXT,
        has_published=any(each.published for each in check.entries),
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    write_text_atomic(folder / PAGE, text)
    write_text_atomic(folder / JSON, json.dumps(_as_json(check), indent=2) + "\n")
    return folder / PAGE


def _as_json(check: Check) -> dict[str, Any]:
    tree = asdict(check)
    tree["entries"] = [each._asdict() for each in check.entries]
    tree["overlaps"] = [each._asdict() for each in check.overlaps]
    return {"use": "research use only", **tree}


def as_text(check: Check) -> str:
    """Return the check as lines for the terminal."""
    lines = []
    for each in check.collections:
        if each.error:
            lines.append(f"{each.name}: {each.error.removeprefix(f'{each.name}: ')}")
            continue
        splits = ", ".join(f"{sum(v.values()):,} {split}" for split, v in each.splits.items())
        lines.append(f"{each.name}: {splits} images of {_patients(each.patients)}")
        lines += [f"  {r.kind}: {r.rows:,} {r.text} ({r.example})" for r in each.remarks]
        if each.missing[0]:
            lines.append(
                f"  {each.missing[0]} of {each.missing[1]} image files looked for are missing: "
                f"{each.example}"
            )
    for entry in check.entries:
        beside = f", published {entry.published[0]:,}" if entry.published else ""
        lines.append(f"{entry.entry}: {entry.pairs:,} items{beside}")
    for overlap in check.overlaps:
        lines.append(
            f"overlap: {_patients(overlap.patients)} of {overlap.held_out} ({overlap.collection}) "
            f"also in train ({overlap.train}), such as {overlap.example}"
        )
    return "\n".join(lines)


def _patients(count: int) -> str:
    return f"{count:,} patient{'' if count == 1 else 's'}"
