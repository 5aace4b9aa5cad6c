"""RSNA pneumonia detection challenge: lung opacities with boxes on NIH images.

G. Shih et al.: Augmenting the National Institutes of Health chest radiograph dataset with expert
annotations of possible pneumonia. Radiology: Artificial Intelligence 1 (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xraygpt.boxes.units import from_extent
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection, first_suffix
from xraygpt.instructions.records import ImageRecord, ImageRow, Label, Located
from xraygpt.instructions.tables import Tables, read_json

OPACITY = "Lung Opacity"
_SIDE = 1024  # pixels of the DICOM files
_NORMAL = "Normal"


@COLLECTIONS.register("rsna")
class Rsna(Collection):
    """``stage_2_train_labels.csv``, and ``stage_2_detailed_class_info.csv`` if it is there.

    Without the detailed classes, an image without a box may be abnormal in another way, so it is
    not called healthy. The images are NIH's under other names: with the published `mapping`, their
    patients are those of ``nih_boxes``, so that nobody is trained and measured on.
    """

    title = "RSNA pneumonia detection challenge"
    folders = ("RSNA", "rsna", "rsna-pneumonia-detection-challenge")
    licence = "RSNA challenge terms: research and education"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            labels: Table of boxes; None looks for the official name below the root.
            headers: Table with the views and sexes of the DICOM headers.
            mapping: RSNA's JSON file of the NIH image of each of its images (``subset_img_id``,
                ``img_id``).
        """

        labels: Path | None = None
        headers: Path | None = None
        mapping: Path | None = None

    config: Config

    def _labels(self) -> Path:
        names = ("stage_2_train_labels.csv", "kaggle_stage_2_train_labels.csv")
        return self.config.labels or self.require(
            *(f"{n}{end}" for n in names for end in ("", ".zip"))
        )

    def _classes(self) -> Path | None:
        if self.config.labels is not None and self.config.root is None:
            return None
        name = "stage_2_detailed_class_info.csv"
        return self.find(name, f"{name}.zip", optional=True)

    def files(self) -> list[Path]:
        """Return the table of boxes; the others are optional."""
        found = (self._labels(), self._classes(), self.config.headers, self.config.mapping)
        return [path for path in found if path is not None]

    def image_folder(self) -> Path:
        """Return the folder of the DICOM or converted files."""
        if self.config.images is not None:
            return self.config.images
        if self.config.labels is not None and self.config.root is None:
            return self.config.labels.parent
        names = ("stage_2_train_images_jpg", "stage_2_train_images")
        return self.find(*names, optional=True) or self.root()

    def load(self, tables: Tables) -> None:
        """Load the tables; all images are 1024 x 1024."""
        needed = ("patientId", "x", "y", "width", "height", "Target")
        tables.load_csv("boxes", self._labels(), needed, key="patientId")
        classes = self._classes()
        if classes is not None:
            tables.load_csv("classes", classes, ("patientId", "class"), key="patientId")
        else:
            tables.load_rows("classes", ("patientId", "class"), (), key="patientId")
        columns = ("PatientID", "PatientSex", "ViewPosition")
        if self.config.headers is not None:
            tables.load_csv("headers", self.config.headers, columns, key="PatientID")
        else:
            tables.load_rows("headers", columns, (), key="PatientID")
        patients = _read_mapping(self.config.mapping) if self.config.mapping else ()
        tables.load_rows("mapping", ("image", "patient"), patients, key="image")
        suffix = first_suffix(self.image_folder()) or ".dcm"
        self.add_images(
            tables,
            f"""
            SELECT b.patientId, b.patientId || '{suffix}', b.patientId,
                coalesce(m.patient, 'rsna/' || b.patientId), 'train',
                coalesce(h.ViewPosition, 'FRONTAL'), coalesce(h.PatientSex, ''), {_SIDE}, {_SIDE}
            FROM (SELECT patientId, min(rowid) AS place FROM boxes GROUP BY patientId) b
            LEFT JOIN headers h ON h.PatientID = b.patientId
            LEFT JOIN mapping m ON m.image = b.patientId
            ORDER BY b.place
            """,
        )
        if self.config.mapping is None:
            text = "images of NIH patients under other names; set mapping to recognise them"
            self.remark(tables, "note", text, self.count(tables))
        found = tables.row(
            "SELECT count(*), min(patientId) FROM boxes WHERE (x IS NOT NULL) != (Target = '1')"
        )
        count, example = found or (0, "")
        self.remark(tables, "note", "rows whose target contradicts their box", count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the opacities; absent is what no reader marked."""
        sql = (
            "SELECT x, y, width, height FROM boxes WHERE patientId = ? AND x IS NOT NULL "
            "ORDER BY rowid"
        )
        boxes, damaged = [], False
        for extent in tables.rows(sql, image.image_id):
            try:
                boxes.append(from_extent([float(value) for value in extent], _SIDE, _SIDE))
            except DataError:
                damaged = True
        sql = "SELECT class FROM classes WHERE patientId = ?"
        healthy = tables.value(sql, image.image_id) == _NORMAL
        findings = (Located(OPACITY, tuple(boxes)),) if boxes else ()
        searched = () if damaged else (OPACITY,)
        labels: dict[str, Label] = {OPACITY: "positive" if boxes else "negative"}
        return ImageRecord(
            image, labels=labels, healthy=healthy, findings=findings, searched=searched
        )


def _read_mapping(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the image and the NIH patient of each row.

    Raises:
        DataError: The file has another form.
    """
    rows = read_json(path)
    try:
        for row in rows:
            number = int(str(row["img_id"]).partition("_")[0])
            yield str(row["subset_img_id"]), f"nih/{number}"
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: expected a list of subset_img_id and img_id ({type(error).__name__})"
        ) from None
