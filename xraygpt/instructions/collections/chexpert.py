"""CheXpert: chest X-rays of Stanford with 14 labels found in their reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.collections.labels import COLUMNS, contradictions, read_labels
from xraygpt.instructions.records import ImageRecord, ImageRow
from xraygpt.instructions.tables import Tables

_TABLES = {"train": "train.csv", "val": "valid.csv", "test": "test.csv"}
# "patient00001" in "train/patient00001/study1/view1_frontal.jpg".
_TAIL = "substr(image, instr(image, 'patient'))"
_PATIENT = f"substr({_TAIL}, 1, instr({_TAIL}, '/') - 1)"


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
            tables.load_csv(
                f"labels_{split}", path, ("Path",), ("Sex", "Frontal/Lateral", "AP/PA", *COLUMNS)
            )
            tables.run(f"ALTER TABLE labels_{split} ADD COLUMN image TEXT")
            tables.run(
                f"UPDATE labels_{split} SET image = replace(replace(Path, 'CheXpert-v1.0-small/', "
                "''), 'CheXpert-v1.0/', '')"
            )
            tables.index(f"labels_{split}", "image")
            study = "rtrim(rtrim(image, replace(image, '/', '')), '/')"
            self.add_images(
                tables,
                f"""
                SELECT image, image, {study}, 'chexpert/' || {_PATIENT}, '{split}',
                    CASE WHEN image NOT LIKE '%frontal.%' THEN 'LATERAL'
                        WHEN "AP/PA" IN ('AP', 'PA') THEN "AP/PA" ELSE 'FRONTAL' END,
                    CASE Sex WHEN 'Female' THEN 'F' WHEN 'Male' THEN 'M' ELSE '' END, NULL, NULL
                FROM labels_{split} ORDER BY rowid
                """,
            )
            self._remark_contradictions(tables, split)

    def _remark_contradictions(self, tables: Tables, split: str) -> None:
        name = f"labels_{split}"
        for text, condition in contradictions(name):
            found = tables.row(f"SELECT count(*), min(image) FROM {name} WHERE {condition}")
            count, example = found or (0, "")
            self.remark(tables, "repaired", f"{text} ({split})", count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the labels of the image's study."""
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        sql = f"SELECT {columns} FROM labels_{image.split} WHERE image = ?"
        labels, healthy = read_labels(tables.row(sql, image.image_id) or [None] * len(COLUMNS))
        return ImageRecord(image, labels=labels, healthy=healthy)
