"""CheXpert Plus: the reports of CheXpert's studies.

P. Chambon et al.: CheXpert Plus: Augmenting a large chest X-ray dataset with text radiology
reports, patient demographics and additional image formats. arXiv:2405.19538.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.collections.labels import COLUMNS, read_labels
from xraygpt.instructions.records import ImageRecord, ImageRow
from xraygpt.instructions.tables import Tables

_SECTIONS = ("section_findings", "section_impression", "section_end_of_impression")


@COLLECTIONS.register("chexpert_plus")
class CheXpertPlus(Collection):
    """``df_chexpert_plus_240401.csv``, and CheXbert's labels in ``chexbert_labels/``."""

    title = "CheXpert Plus"
    folders = ("CheXpert-Plus", "CheXpertPlus", "CheXpert", "chexpert_plus", "chexpert-plus")
    licence = "Stanford University Dataset Research Use Agreement"
    credentialed = True

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings; there are none of its own."""

    config: Config

    def _labels(self) -> Path | None:
        return self.find("chexbert_labels/report_fixed.json", optional=True)

    def files(self) -> list[Path]:
        """Return the table of reports, and the labels if they exist."""
        name = "df_chexpert_plus_240401.csv"
        labels = self._labels()
        return [self.require(name, f"{name}.gz"), *([labels] if labels else [])]

    def load(self, tables: Tables) -> None:
        """Load reports and labels. Its split "valid" is what RadVLM calls test."""
        tables.load_csv(
            "reports", self.files()[0], ("path_to_image", "split", "frontal_lateral"),
            ("sex", "ap_pa", "deid_patient_id", *_SECTIONS), key="path_to_image",
        )  # fmt: skip
        labels = self._labels()
        if labels is not None:
            tables.load_rows("labels", ("path", *COLUMNS), _read_labels(labels), key="path")
        bad = "split NOT IN ('train', 'valid', 'test')"
        count, example = tables.row(
            f"SELECT count(*), min(path_to_image) FROM reports WHERE {bad} OR split IS NULL"
        ) or (0, "")
        self.remark(tables, "lost", "rows with an unknown split", count, example)
        parts = "substr(path_to_image, instr(path_to_image, 'patient'))"
        self.add_images(
            tables,
            "SELECT path_to_image, path_to_image, rtrim(rtrim(path_to_image, replace("
            "path_to_image, '/', '')), '/'), 'chexpert/' || "
            f"substr({parts}, 1, instr({parts}, '/') - 1), CASE split WHEN 'valid' THEN 'val' "
            "ELSE split END, CASE WHEN frontal_lateral = 'Lateral' THEN 'LATERAL' WHEN ap_pa IN "
            "('AP', 'PA') THEN ap_pa ELSE 'FRONTAL' END, CASE sex WHEN 'Female' THEN 'F' WHEN "
            "'Male' THEN 'M' ELSE '' END, NULL, NULL FROM reports WHERE split IN ('train', "
            "'valid', 'test') ORDER BY rowid",
        )
        empty = " AND ".join(f"{section} IS NULL" for section in _SECTIONS)
        count, example = tables.row(
            f"SELECT count(*), min(path_to_image) FROM reports WHERE {empty}"
        ) or (0, "")
        self.remark(tables, "missing", "images without findings and impression", count, example)

    def report_name(self, image: ImageRow) -> str:
        """Return the name that RadVLM gives it, such as ``train_patient00001_study1``."""
        return "_".join(image.image_id.split("/")[:3])

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return findings and impression, joined by a space, and CheXbert's labels."""
        sections = tables.row(
            f"SELECT {', '.join(_SECTIONS)} FROM reports WHERE path_to_image = ?", image.image_id
        ) or ("",)
        report = " ".join(text.strip() for text in sections if text)
        if not tables.has("labels"):
            return ImageRecord(image, report=report)
        columns = ", ".join(f'"{name}"' for name in COLUMNS)
        cells = tables.row(f"SELECT {columns} FROM labels WHERE path = ?", image.image_id)
        labels, healthy = read_labels(cells or [None] * len(COLUMNS))
        return ImageRecord(image, report=report, labels=labels, healthy=healthy)


def _read_labels(path: Path) -> Iterator[list[object]]:
    """Yield the path and the labels of each line of CheXbert's output.

    Raises:
        DataError: A line is not JSON, or has no ``path_to_image``.
    """
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                yield [row["path_to_image"], *(row.get(name) for name in COLUMNS)]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}, line {number}: expected an object with path_to_image: {error}"
                ) from None
