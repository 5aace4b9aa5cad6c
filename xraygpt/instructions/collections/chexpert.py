"""CheXpert: chest X-rays of Stanford with 14 labels found in their reports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.collections.labels import COLUMNS, count_contradictions, read_labels
from xraygpt.instructions.records import ImageRecord, ImageRow
from xraygpt.instructions.tables import Tables, read_csv

_TABLES = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}
_PREFIXES = ("CheXpert-v1.0-small/", "CheXpert-v1.0/")
_SEXES = {"Female": "F", "Male": "M"}


@COLLECTIONS.register("chexpert")
class CheXpert(Collection):
    """``train.csv``, ``valid.csv`` and ``test.csv``, whose column ``Path`` names the images."""

    title = "CheXpert"
    folders = ("CheXpert", "CheXpert-v1.0", "CheXpert-v1.0-small", "chexpert")
    licence = "Stanford University Dataset Research Use Agreement"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            table: File to read as the training table instead of ``train.csv``.
        """

        table: Path | None = None

    config: Config

    def _tables(self) -> dict[str, Path]:
        found = {} if self.config.table is None else {"train": self.config.table}
        for split, name in _TABLES.items():
            if split in found or (self.config.table and self.config.root is None):
                continue
            path = self.find(name, f"{name}.gz", optional=True)
            if path is not None:
                found[split] = path
        if not found:
            self.require(*_TABLES.values())
        return found

    def files(self) -> list[Path]:
        """Return the tables that exist."""
        return list(self._tables().values())

    def image_folder(self) -> Path:
        """Return the folder that contains ``train`` and ``valid``."""
        if self.config.images is None and self.config.root is None and self.config.table:
            return self.config.table.parent
        return super().image_folder()

    def load(self, tables: Tables) -> None:
        """Load the tables; an empty label stays empty, whatever other studies say."""
        for split, path in self._tables().items():
            columns = ("image", "study", "patient", "view", "sex", *COLUMNS)
            tables.load_rows(f"labels_{split}", columns, _read_rows(path), key="image")
            self.add_images(
                tables,
                f"SELECT image, image, study, patient, '{split}', view, sex, NULL, NULL "
                f"FROM labels_{split} ORDER BY rowid",
            )
            self._remark_contradictions(tables, split)

    def _remark_contradictions(self, tables: Tables, split: str) -> None:
        for text, count, example in count_contradictions(tables, f"labels_{split}", "image"):
            self.remark(tables, "repaired", f"{text} ({split})", count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the labels of the image's study."""
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        sql = f"SELECT {columns} FROM labels_{image.split} WHERE image = ?"
        labels, healthy = read_labels(tables.row(sql, image.image_id) or [None] * len(COLUMNS))
        return ImageRecord(image, labels=labels, healthy=healthy)


def _read_rows(path: Path) -> Iterator[list[str | None]]:
    """Yield image, study, patient, view, sex and labels of each row.

    Raises:
        DataError: A path has another form than ``train/patient00001/study1/view1_frontal.jpg``.
    """
    names = ("Sex", "AP/PA", *COLUMNS)
    for cells in read_csv(path, ("Path",), names):
        image = cells[0] or ""
        for prefix in _PREFIXES:
            image = image.removeprefix(prefix)
        parts = image.split("/")
        if len(parts) < 4:
            raise DataError(f"{path}: cannot read the path {cells[0]}")
        if "frontal" not in parts[-1]:
            view = "LATERAL"
        else:
            view = cells[2] if cells[2] in ("AP", "PA") else "FRONTAL"
        sex = _SEXES.get(cells[1] or "", "")
        yield [image, "/".join(parts[:-1]), f"chexpert/{parts[-3]}", view, sex, *cells[3:]]
