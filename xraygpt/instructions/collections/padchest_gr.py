"""PadChest-GR: the sentences of chest X-ray reports with boxes, in English and Spanish.

D. C. Castro et al.: PadChest-GR: A bilingual chest X-ray dataset for grounded radiology report
generation. NEJM AI 2 (2025).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from xraygpt.boxes.units import check_box
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection, RemarkKind
from xraygpt.instructions.records import ImageRecord, ImageRow, Label, Located
from xraygpt.instructions.tables import Tables, read_json
from xraygpt.media.geometry import Box

_LEFT_OUT = frozenset({"exclude", "suboptimal study"})  # labels of images that cannot be judged
_UNKNOWN = frozenset({"unchanged"})  # says nothing about what is seen
_NORMAL = "normal"


@COLLECTIONS.register("padchest_gr")
class PadChestGR(Collection):
    """``master_table.csv``, ``grounded_reports_20240819.json`` and, if there, PadChest's labels."""

    title = "PadChest-GR"
    folders = ("PadChest-GR", "padchest-gr", "padchest_gr")
    licence = "BIMCV research use agreement"
    credentialed = True

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            views: Projections that are kept; RadVLM keeps AP and PA.
        """

        views: list[str] = field(default_factory=lambda: ["PA", "AP", "AP_horizontal"])

    config: Config

    def _labels(self) -> Path | None:
        name = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
        return self.find(name, f"{name}.gz", f"{name}.zip", optional=True)

    def files(self) -> list[Path]:
        """Return the tables; PadChest's own table of labels is optional."""
        labels = self._labels()
        return [
            self.require("master_table.csv", "master_table.csv.gz", "master_table.csv.zip"),
            self.require("grounded_reports_20240819.json"),
            *([labels] if labels else []),
        ]  # fmt: skip

    def image_folder(self) -> Path:
        """Return ``images_grounding`` or ``PadChest_GR``, if there is one."""
        if self.config.images:
            return self.config.images
        return self.find("images_grounding", "PadChest_GR", optional=True) or self.root()

    def load(self, tables: Tables) -> None:
        """Load the tables, and the sentences with their boxes."""
        master, reports, *labels = self.files()
        tables.load_csv(
            "master", master, ("ImageID", "split"),
            ("PatientID", "StudyID", "PatientSex_DICOM"), key="ImageID",
        )  # fmt: skip
        if labels:
            tables.load_csv(
                "labels", labels[0], ("ImageID", "Projection"),
                ("Labels", "PatientID", "StudyID", "Rows|Rows_DICOM", "Columns|Columns_DICOM"),
                key="ImageID",
            )  # fmt: skip
        else:
            columns = ("ImageID", "Projection", "Labels", "PatientID", "StudyID", "Rows", "Columns")
            tables.load_rows("labels", columns, (), key="ImageID")
        problems: list[str] = []
        tables.load_rows(
            "sentences", ("ImageID", "sentence", "boxes"), _read_reports(reports, problems),
            key="ImageID",
        )  # fmt: skip
        self.remark(
            tables, "lost", "boxes that are empty or leave their image", len(problems),
            problems[0] if problems else "",
        )  # fmt: skip
        self._add_images(tables)

    def _add_images(self, tables: Tables) -> None:
        tables.db.create_function("left_out", 1, _is_left_out, deterministic=True)
        views = ", ".join(f"'{view}'" for view in self.config.views)
        joined = "FROM master m LEFT JOIN labels l ON l.ImageID = m.ImageID"
        groups = """
            (SELECT ImageID, min(rowid) AS place FROM master GROUP BY ImageID
            HAVING count(DISTINCT split) = 1)"""
        two = f"m.ImageID NOT IN (SELECT ImageID FROM {groups})"
        silent = "m.ImageID NOT IN (SELECT ImageID FROM sentences)"
        remarks: tuple[tuple[RemarkKind, str, str], ...] = (
            ("lost", "images of another projection", f"l.Projection NOT IN ({views})"),
            ("lost", "images that PadChest excludes", "left_out(l.Labels)"),
            ("lost", "images that the table puts into two splits", two),
            ("missing", "images without a report", silent),
            ("missing", "images without a patient, so that overlaps cannot be seen",
             "coalesce(m.PatientID, l.PatientID) IS NULL"),
        )  # fmt: skip
        for kind, text, condition in remarks:
            sql = f"SELECT count(DISTINCT m.ImageID), min(m.ImageID) {joined} WHERE {condition}"
            count, example = tables.row(sql) or (0, "")
            self.remark(tables, kind, text, count, example)
        self.add_images(
            tables,
            f"""
            SELECT m.ImageID, m.ImageID, coalesce(m.StudyID, l.StudyID, m.ImageID),
                'padchest/' || coalesce(m.PatientID, l.PatientID, m.ImageID),
                CASE m.split WHEN 'validation' THEN 'val' ELSE m.split END,
                CASE WHEN l.Projection LIKE 'AP%' THEN 'AP'
                    ELSE coalesce(l.Projection, 'FRONTAL') END,
                CASE WHEN m.PatientSex_DICOM IN ('F', 'M') THEN m.PatientSex_DICOM ELSE '' END,
                l.Columns, l.Rows
            FROM {groups} g
            JOIN master m ON m.rowid = g.place
            LEFT JOIN labels l ON l.ImageID = m.ImageID
            WHERE coalesce(l.Projection, 'PA') IN ({views}) AND NOT left_out(l.Labels)
            ORDER BY g.place
            """,
        )

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the English sentences with their boxes, and PadChest's labels."""
        sql = "SELECT sentence, boxes FROM sentences WHERE ImageID = ? ORDER BY rowid"
        phrases = tuple(
            Located(sentence, tuple(cast(Box, tuple(b)) for b in json.loads(boxes)))
            for sentence, boxes in tables.rows(sql, image.image_id)
        )
        cell = tables.value("SELECT Labels FROM labels WHERE ImageID = ?", image.image_id)
        names = read_names(cell or "")
        labels: dict[str, Label] = {
            name: "positive" for name in names if name not in {*_UNKNOWN, _NORMAL}
        }
        return ImageRecord(
            image,
            report=" ".join(phrase.text for phrase in phrases),
            labels=labels,
            # A box marks something that the label "normal" denies.
            healthy=names == [_NORMAL] and not any(phrase.boxes for phrase in phrases),
            phrases=phrases,
        )


def read_names(cell: str) -> list[str]:
    """Return the labels of a cell such as ``['pleural effusion', ' nodule', '']``.

    Names are stripped; empty and repeated ones are left out.
    """
    try:
        found = ast.literal_eval(cell.strip())
        names = [str(name) for name in found]
    except (ValueError, SyntaxError, TypeError):
        names = [name.strip().strip("'\"") for name in cell.strip("[] ").split(",")]
    names = [" ".join(name.split()) for name in names]
    return list(dict.fromkeys(name for name in names if name and name != "nan"))


def _is_left_out(cell: str | None) -> bool:
    return not _LEFT_OUT.isdisjoint(read_names(cell or ""))


def _read_reports(path: Path, problems: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield image, English sentence and boxes as JSON.

    Raises:
        DataError: The file has another form.
    """
    rows = read_json(path)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of reports")
    for number, row in enumerate(rows):
        try:
            image, findings = row["ImageID"], row["findings"]
            sentences = [(f["sentence_en"], f.get("boxes") or []) for f in findings]
        except (KeyError, TypeError) as error:
            raise DataError(f"{path}, report {number}: no {error}") from None
        for sentence, boxes in sentences:
            kept = list(_valid(boxes, image, problems))
            # A sentence that lost a box would be true of fewer places than it says.
            if len(kept) == len(boxes) and str(sentence).strip():
                yield image, str(sentence).strip(), json.dumps(kept)


def _valid(boxes: Sequence[Any], image: str, problems: list[str]) -> Iterator[Box]:
    for box in boxes:
        try:
            yield check_box([float(value) for value in box])
        except (DataError, TypeError, ValueError) as error:
            problems.append(f"{image}: {error}")
