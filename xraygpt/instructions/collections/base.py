"""The contract of a collection: its files become a database, and its images become records."""

from __future__ import annotations

import json
import os
import sqlite3
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

from xraygpt.common.errors import DataError, XrayGPTError
from xraygpt.common.registry import COLLECTIONS, Plugin
from xraygpt.common.requirements import Missing
from xraygpt.instructions.records import ImageRecord, ImageRow
from xraygpt.instructions.stored_texts import read_conversations, read_filtered_reports
from xraygpt.instructions.tables import Tables, read_json, signature

VERSION = 2  # of the databases; increase it if `load` of any collection changes

_IMAGE_COLUMNS = (
    "image_id", "path", "study_id", "patient_id", "split", "view", "sex", "width", "height"
)  # fmt: skip
_SCHEMA = """
CREATE TABLE images (
    number INTEGER PRIMARY KEY, image_id TEXT NOT NULL, path TEXT NOT NULL,
    study_id TEXT NOT NULL, patient_id TEXT NOT NULL,
    split TEXT NOT NULL CHECK (split IN ('train', 'val', 'test')),
    view TEXT NOT NULL, sex TEXT NOT NULL, width INTEGER, height INTEGER);
CREATE TABLE remarks (kind TEXT, text TEXT, rows INTEGER, example TEXT);
"""
RemarkKind = Literal["lost", "repaired", "missing", "note"]


@dataclass(frozen=True, slots=True)
class Remark:
    """Something about a collection that its user should know.

    Attributes:
        kind: ``lost``: rows or images that are left out; ``repaired``: values that were changed;
            ``missing``: values that are absent; ``note``: anything else.
        text: What happened, such as "images without a report".
        rows: How often.
        example: An id or a file.
    """

    kind: RemarkKind
    text: str
    rows: int
    example: str = ""


class Collection(Plugin):
    """A collection of images.

    A collection is read in two steps. `load` copies its tables into a database, joins them and
    fills the table ``images``. `describe` then returns what is known about one image. Any process
    may describe any image, in any order, so `describe` only reads.

    Attributes:
        name: Its name in the YAML file.
    """

    title: ClassVar[str]
    folders: ClassVar[tuple[str, ...]] = ()  # names of its folder in DATA_DIR
    licence: ClassVar[str] = ""
    credentialed: ClassVar[bool] = False  # reports must not be sent to other hosts

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings.

        Attributes:
            root: Folder of the collection; None looks for its usual names in the folder that the
                environment variable DATA_DIR names.
            images: Folder that image paths are relative to; None: as published.
            filtered_reports: Reports without priors, which replace those of the collection: a
                folder with ``<study>.txt``, as RadVLM's, or our ``filtered_reports.jsonl``. A study
                without one has no report.
            conversations: Conversations by kind (``standard``, ``grounding``): a folder with
                ``<image>.json``, as RadVLM's, or our ``conversations.jsonl``.
        """

        kind = COLLECTIONS
        root: Path | None = None
        images: Path | None = None
        filtered_reports: Path | None = None
        conversations: dict[Literal["standard", "grounding"], Path] = field(default_factory=dict)

        def missing(self, where: str) -> list[Missing]:
            """List nothing: `Collection.files` names each missing file with its alternatives."""
            return []

    config: Config

    def __init__(self, config: Config, name: str = "") -> None:
        self.config = config
        self.name = name or COLLECTIONS.name_of(type(self))

    # ---- For each collection ---------------------------------------------------------------------

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files and folders that `load` reads.

        Raises:
            DataError: One is missing; the message says which names were looked for.
        """

    @abstractmethod
    def load(self, tables: Tables) -> None:
        """Copy the files into `tables` and fill ``images`` with `add_images`.

        Raises:
            DataError: A file is damaged or lacks a column.
        """

    @abstractmethod
    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return what is known about one image."""

    def report_name(self, image: ImageRow) -> str:
        """Return the name of an image's filtered report, without its suffix."""
        return image.study_id

    def conversation_name(self, image: ImageRow) -> str:
        """Return the name of an image's conversation, without its suffix."""
        return Path(image.image_id).stem

    def record(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return `describe` with the stored report and conversations.

        Raises:
            DataError: A value of the image is damaged.
        """
        with self._damaged(f"image {image.image_id}"):
            record = self.describe(tables, image)
        if self.config.filtered_reports is not None:
            text = tables.value(
                "SELECT text FROM filtered_reports WHERE name = ?", self.report_name(image)
            )
            record = replace(record, report=text or "")
        if self.config.conversations:
            sql = "SELECT kind, turns FROM conversations WHERE name = ?"
            rows = tables.rows(sql, self.conversation_name(image))
            stored = {k: tuple((q, a) for q, a in json.loads(turns)) for k, turns in rows}
            record = replace(record, conversations={**record.conversations, **stored})
        return record

    # ---- Files -----------------------------------------------------------------------------------

    def root(self) -> Path:
        """Return the folder of the collection.

        Raises:
            DataError: There is none.
        """
        if self.config.root is not None:
            if self.config.root.is_dir():
                return self.config.root
            raise DataError(f"{self.name}: there is no folder {self.config.root}")
        data = os.environ.get("DATA_DIR")
        if not data:
            raise DataError(
                f"{self.name}: set its root, or the environment variable DATA_DIR to the folder "
                f"that contains {' or '.join(self.folders)}"
            )
        for folder in self.folders:
            if (Path(data) / folder).is_dir():
                return Path(data) / folder
        raise DataError(
            f"{self.name}: DATA_DIR={data} contains no folder {' or '.join(self.folders)}"
        )

    def find(self, *names: str, optional: bool = False) -> Path | None:
        """Return the first of several files or folders that exists below `root`.

        Args:
            names: Paths relative to `root`.
            optional: Whether to return None if there is none.

        Raises:
            DataError: There is none.
        """
        root = self.root()
        for name in names:
            if (root / name).exists():
                return root / name
        if optional:
            return None
        raise DataError(f"{self.name}: there is no {' or '.join(names)} in {root}")

    def require(self, *names: str) -> Path:
        """Return the first of several files or folders; see `find`."""
        return cast(Path, self.find(*names))

    def image_folder(self) -> Path:
        """Return the folder that the paths of images are relative to."""
        return self.config.images or self.root()

    # ---- Images ----------------------------------------------------------------------------------

    def add_images(self, tables: Tables, select: str, *values: Any) -> int:
        """Fill the table of images from a query.

        Args:
            tables: The database.
            select: A query that returns image_id, path, study_id, patient_id, split, view, sex,
                width and height, in the order in which images are written.
            values: Values of the query's parameters.

        Raises:
            DataError: A row lacks a value or has an unknown split.
        """
        columns = ", ".join(_IMAGE_COLUMNS)
        try:
            return tables.run(f"INSERT INTO images ({columns}) {select}", *values)
        except sqlite3.IntegrityError as error:
            raise DataError(f"{self.name}: an image has no valid value: {error}") from None

    def remark(
        self, tables: Tables, kind: RemarkKind, text: str, rows: int, example: object = ""
    ) -> None:
        """Store a remark for the check page, unless `rows` is 0."""
        if rows:
            tables.run(
                "INSERT INTO remarks VALUES (?, ?, ?, ?)", kind, text, rows, str(example or "")
            )

    def remarks(self, tables: Tables) -> list[Remark]:
        """Return the remarks that `load` stored."""
        return [Remark(*row) for row in tables.rows("SELECT * FROM remarks ORDER BY rowid")]

    def count(self, tables: Tables) -> int:
        """Return the number of images."""
        return int(tables.value("SELECT count(*) FROM images"))

    def images(self, tables: Tables, start: int = 1, stop: int | None = None) -> Iterator[ImageRow]:
        """Yield the images numbered from `start` to before `stop`."""
        sql = "SELECT * FROM images WHERE number >= ? AND number < ? ORDER BY number"
        for row in tables.rows(sql, start, stop if stop is not None else 1 << 62):
            yield ImageRow(*row)

    def records(
        self, tables: Tables, start: int = 1, stop: int | None = None
    ) -> Iterator[ImageRecord]:
        """Yield the records of the images numbered from `start` to before `stop`."""
        for image in self.images(tables, start, stop):
            yield self.record(tables, image)

    # ---- The database ----------------------------------------------------------------------------

    def database(self, folder: Path) -> Path:
        """Return the database in a folder, building it if the files or settings have changed.

        Raises:
            DataError: See `files` and `load`.
        """
        path, stamp = self.database_path(folder), folder / f"{self.name}.json"
        current = self.stamp()
        if path.is_file() and stamp.is_file() and stamp.read_text(encoding="utf-8") == current:
            return path
        folder.mkdir(parents=True, exist_ok=True)
        stamp.unlink(missing_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        partial.unlink(missing_ok=True)
        try:
            with Tables(partial) as tables, self._damaged("a file"):
                self.build(tables)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        stamp.write_text(current, encoding="utf-8")
        return path

    @contextmanager
    def _damaged(self, what: str) -> Iterator[None]:
        """Turn an error about a value of the files into one that names the collection.

        Raises:
            DataError: A value has another form than expected, or the disk is full.
        """
        try:
            yield
        except XrayGPTError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DataError(f"{self.name}: {what} has an unexpected value ({reason})") from None
        except sqlite3.OperationalError as error:
            raise DataError(f"{self.name}: cannot build the database: {error}") from None

    def database_path(self, folder: Path) -> Path:
        """Return where `database` puts the database."""
        return folder / f"{self.name}.sqlite"

    def stamp(self) -> str:
        """Return what the database depends on: settings, files, sizes and times of change.

        Raises:
            DataError: See `files`.
        """
        from xraygpt.common.config import to_tree

        files = signature([*self.files(), *self._stored()])
        return json.dumps([VERSION, to_tree(self.config), files], default=str, indent=1)

    def build(self, tables: Tables) -> None:
        """Create the tables of every collection, and `load`.

        Raises:
            DataError: See `load`; or an image is listed twice.
        """
        tables.db.executescript(_SCHEMA)
        self.load(tables)
        self._load_stored(tables)
        double = tables.value("SELECT image_id FROM images GROUP BY image_id HAVING count(*) > 1")
        if double:
            raise DataError(f"{self.name}: image {double} is listed twice")
        tables.index("images", "image_id")
        tables.index("images", "patient_id")

    def _stored(self) -> list[Path]:
        """Return the files and folders of filtered reports and conversations.

        Raises:
            DataError: One does not exist.
        """
        own = [self.config.filtered_reports] if self.config.filtered_reports else []
        found = [*own, *self.config.conversations.values()]
        for path in found:
            if not path.exists():
                raise DataError(
                    f"{self.name}: there is no {path}; python -m xraygpt.prepare_conversations "
                    "writes filtered reports and conversations, or leave the key out"
                )
        return found

    def _load_stored(self, tables: Tables) -> None:
        """Load filtered reports and conversations."""
        if self.config.filtered_reports is not None:
            rows = read_filtered_reports(self.config.filtered_reports)
            tables.load_rows("filtered_reports", ("name", "text"), rows, key="name")
            self._match_stored(tables, "filtered_reports", self.report_name)
        problems: list[str] = []
        turns = (
            row
            for kind, path in self.config.conversations.items()
            for row in read_conversations(path, kind, problems)
        )
        if self.config.conversations:
            tables.load_rows("conversations", ("name", "kind", "turns"), turns, key="name")
            self._match_stored(tables, "conversations", self.conversation_name)
        text = "conversations that do not alternate between human and gpt"
        self.remark(tables, "lost", text, len(problems), problems[0] if problems else "")

    def _match_stored(self, tables: Tables, table: str, name_of: Callable[[ImageRow], str]) -> None:
        """Compare the names of stored texts with those of the images.

        Raises:
            DataError: No stored text belongs to an image.
        """
        what = table.replace("_", " ")
        stored = {name for (name,) in tables.rows(f"SELECT name FROM {table}")}
        expected = {name_of(image): image.image_id for image in self.images(tables)}
        if expected and not stored & expected.keys():
            example = f"'{min(stored)}'" if stored else "nothing"
            raise DataError(
                f"{self.name}: none of the {what} belongs to an image: names such as "
                f"'{min(expected)}' were expected, found {example}"
            )
        lost = stored - expected.keys()
        self.remark(
            tables, "lost", f"{what} that belong to no image", len(lost), min(lost, default="")
        )


def read_sizes(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield image, width and height from ``image_resolutions_*.json``: {image: [rows, columns]}.

    Raises:
        DataError: The file has another form.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object with [rows, columns] by image")
    for image, size in content.items():
        if not (isinstance(size, Sequence) and len(size) == 2):
            raise DataError(f"{path}: expected [rows, columns] for {image}, got {size!r}")
        yield image, int(size[1]), int(size[0])


def first_suffix(folder: Path) -> str:
    """Return the suffix of the first image in a folder, or "" if there is none."""
    if not folder.is_dir():
        return ""
    suffixes = (".jpg", ".jpeg", ".png", ".dicom", ".dcm")
    with os.scandir(folder) as files:
        names = (Path(file.name).suffix for file in files)
        return next((suffix for suffix in names if suffix.lower() in suffixes), "")
