"""MIMIC-CXR-JPG: chest X-rays with reports and labels.

A. E. W. Johnson et al.: MIMIC-CXR, a de-identified publicly available database of chest radiographs
with free-text reports. Scientific Data 6, 317 (2019); MIMIC-CXR-JPG: arXiv:1901.07042.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from xraygpt.common.registry import COLLECTIONS
from xraygpt.curation.sources import Problem, read_mimic
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.collections.labels import COLUMNS, count_contradictions, read_labels
from xraygpt.instructions.records import ImageRecord, ImageRow
from xraygpt.instructions.tables import Tables, read_json

_SECTIONS = ("findings", "impression", "last_paragraph")
# The image file of a row of the metadata, relative to the folder of the collection.
IMAGE_PATH = (
    "'files/p' || substr(m.subject_id, 1, 2) || '/p' || m.subject_id || '/s' || m.study_id || '/' "
    "|| m.dicom_id || '.jpg'"
)
# Oblique, decubitus, axial and other rare views are neither frontal nor lateral.
VIEW = (
    "CASE WHEN m.ViewPosition IN ('LL', 'LATERAL') THEN 'LATERAL' "
    "WHEN m.ViewPosition IN ('AP', 'PA') THEN m.ViewPosition ELSE '' END"
)
SEX = "coalesce((SELECT x.sex FROM sexes x WHERE x.dicom_id = m.dicom_id), '')"


@COLLECTIONS.register("mimic_cxr")
class MimicCXR(Collection):
    """``mimic-cxr-2.0.0-{metadata,split,chexpert}.csv``, and reports as a table or as files."""

    title = "MIMIC-CXR-JPG"
    folders = ("MIMIC-CXR-JPG", "MIMIC-CXR", "mimic-cxr-jpg", "mimic_cxr")
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    credentialed = True

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            labeller: Which of the two tables of labels is read.
            reports: Folder of MIMIC-CXR's report files (``files/p10/…/s….txt``), or the table
                ``reports.csv`` of its section extractor; None looks for ``reports.csv`` and for
                reports beside the images.
        """

        labeller: Literal["chexpert", "negbio"] = "chexpert"
        reports: Path | None = None

    config: Config

    def table(self, name: str, optional: bool = False) -> Path | None:
        """Return a table of the release, compressed or not."""
        names = [
            f"mimic-cxr-{v}-{name}.csv{end}" for v in ("2.0.0", "2.1.0") for end in ("", ".gz")
        ]
        return self.find(*names, optional=optional)

    def _reports(self) -> Path | None:
        return self.config.reports or self.find("reports.csv", "mimic-cxr-reports", optional=True)

    def files(self) -> list[Path]:
        """Return the tables; labels, reports and sexes are optional."""
        needed = [self.table(name) for name in ("metadata", "split")]
        optional = [
            self.table(self.config.labeller, optional=True), self._reports(),
            self.find("genders.json", optional=True),
        ]  # fmt: skip
        return [path for path in (*needed, *optional) if path is not None]

    def load(self, tables: Tables) -> None:
        """Load the tables; an image without labels or a report is kept."""
        load_metadata(self, tables)
        self.add_images(
            tables,
            f"SELECT m.dicom_id, {IMAGE_PATH}, m.study_id, 'mimic/' || m.subject_id, m.split, "
            f"{VIEW}, {SEX}, m.Columns, m.Rows FROM metadata m WHERE m.split IS NOT NULL "
            "ORDER BY m.rowid",
        )
        self.load_texts(tables)

    def load_texts(self, tables: Tables) -> None:
        """Load labels and reports, once the table of images is filled."""
        self._load_labels(tables)
        self._load_reports(tables)

    def load_sexes(self, tables: Tables) -> None:
        """Load the table ``sexes`` from ``genders.json``, which is empty without that file."""
        path = self.find("genders.json", optional=True)
        sexes = read_json(path).items() if path is not None else ()
        tables.load_rows("sexes", ("dicom_id", "sex"), sexes, key="dicom_id")

    def _load_labels(self, tables: Tables) -> None:
        path = self.table(self.config.labeller, optional=True)
        if path is None:
            self.remark(tables, "missing", f"no table of {self.config.labeller} labels", 1)
            return
        tables.load_csv("labels", path, ("study_id",), COLUMNS, key="study_id")
        for text, count, example in count_contradictions(tables, "labels", "study_id"):
            self.remark(tables, "repaired", text, count, example)
        self._remark_without(tables, "labels", "images without labels")

    def _load_reports(self, tables: Tables) -> None:
        path = self._reports()
        if path is None:
            self.remark(tables, "missing", "no reports.csv and no report files", 1)
            return
        if path.is_dir():
            problems: list[str] = []
            tables.load_rows(
                "reports", ("study_id", *_SECTIONS), _read_files(path, problems), "study_id"
            )
            text = "report files without text, or unreadable"
            self.remark(tables, "lost", text, len(problems), problems[0] if problems else "")
        else:
            tables.load_csv("reports", path, ("study",), _SECTIONS)
            tables.run("ALTER TABLE reports ADD COLUMN study_id TEXT")
            tables.run("UPDATE reports SET study_id = ltrim(study, 's')")
            tables.index("reports", "study_id")
        self._remark_without(tables, "reports", "images without a report")

    def _remark_without(self, tables: Tables, table: str, text: str) -> None:
        found = tables.row(
            "SELECT count(*), min(image_id) FROM images i WHERE NOT EXISTS "
            f"(SELECT 1 FROM {table} t WHERE t.study_id = i.study_id)"
        )
        count, example = found or (0, "")
        self.remark(tables, "missing", text, count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the findings, else the impression, else the last paragraph; and the labels."""
        report = ""
        if tables.has("reports"):
            sql = f"SELECT {', '.join(_SECTIONS)} FROM reports WHERE study_id = ?"
            report = next((t for t in tables.row(sql, image.study_id) or () if t), "")
        cells = None
        if tables.has("labels"):
            columns = ", ".join(f'"{name}"' for name in COLUMNS)
            cells = tables.row(f"SELECT {columns} FROM labels WHERE study_id = ?", image.study_id)
        labels, healthy = read_labels(cells or [None] * len(COLUMNS))
        return ImageRecord(image, report=report, labels=labels, healthy=healthy)


def load_metadata(collection: Collection, tables: Tables, mimic: MimicCXR | None = None) -> None:
    """Load MIMIC-CXR's metadata with its split into ``metadata``, and ``sexes``.

    Args:
        collection: The collection that gets the remarks.
        tables: The database.
        mimic: MIMIC-CXR, if `collection` is another one.
    """
    source = mimic or collection
    assert isinstance(source, MimicCXR)
    paths = {name: source.table(name) for name in ("metadata", "split")}
    assert paths["metadata"] and paths["split"]
    tables.load_csv(
        "metadata", paths["metadata"], ("dicom_id", "subject_id", "study_id"),
        ("ViewPosition", "Rows", "Columns"), key="dicom_id",
    )  # fmt: skip
    tables.load_csv("splits", paths["split"], ("dicom_id", "split"), key="dicom_id")
    source.load_sexes(tables)
    tables.run("ALTER TABLE metadata ADD COLUMN split TEXT")
    tables.run(
        "UPDATE metadata SET split = (SELECT CASE s.split WHEN 'validate' THEN 'val' ELSE s.split "
        "END FROM splits s WHERE s.dicom_id = metadata.dicom_id)"
    )
    sql = "SELECT count(*), min(dicom_id) FROM metadata WHERE split IS NULL"
    count, example = tables.row(sql) or (0, "")
    collection.remark(tables, "lost", "images of the metadata without a split", count, example)
    if mimic is None:
        sql = (
            "SELECT count(*), min(dicom_id) FROM splits WHERE dicom_id NOT IN "
            "(SELECT dicom_id FROM metadata)"
        )
        count, example = tables.row(sql) or (0, "")
        text = "images of the split that the metadata do not have"
        collection.remark(tables, "lost", text, count, example)
        sql = f"SELECT count(*), min(dicom_id) FROM metadata m WHERE {VIEW} = ''"
        count, example = tables.row(sql) or (0, "")
        text = "images whose view is unknown or neither frontal nor lateral"
        collection.remark(tables, "note", text, count, example)


def _read_files(folder: Path, problems: list[str]) -> Iterator[tuple[str, ...]]:
    for report in read_mimic(folder):
        if isinstance(report, Problem):
            problems.append(f"{report.where}: {report.reason}")
            continue
        sections = report.sections
        yield report.source_id.removeprefix("s"), *(sections.get(name, "") for name in _SECTIONS)
