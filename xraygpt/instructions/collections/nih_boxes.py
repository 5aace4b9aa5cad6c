"""NIH ChestX-ray14: labels mined from reports, and boxes of eight findings on 880 images.

X. Wang et al.: ChestX-ray8: Hospital-scale chest X-ray database and benchmarks. CVPR 2017.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xraygpt.boxes.units import from_extent
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import ImageRecord, ImageRow, Label, Located
from xraygpt.instructions.tables import Tables, open_text
from xraygpt.media.geometry import Box

NO_FINDING = "No Finding"
_SIDE = 1024  # pixels of the released PNG files, in which the boxes are given


@COLLECTIONS.register("nih_boxes")
class NihBoxes(Collection):
    """``BBox_List_2017.csv`` and ``Data_Entry_2017_v2020.csv``.

    Each box shows one finding of an image; other findings of the same image have none. So the
    absence of a box says nothing, and no image is called healthy.
    """

    title = "NIH ChestX-ray14"
    folders = ("NIH", "nih", "ChestX-ray14", "CXR8")
    licence = "free use with credit to the NIH Clinical Center"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            boxes: Table of boxes; None looks for the official name below the root.
            entries: Table of labels; None looks for the official name below the root.
            all_images: Whether images without boxes are read, too, for their labels.
        """

        boxes: Path | None = None
        entries: Path | None = None
        all_images: bool = False

    config: Config

    def _boxes(self) -> Path:
        name = "BBox_List_2017.csv"
        return self.config.boxes or self.require(name, f"{name}.gz")

    def _entries(self) -> Path | None:
        if self.config.entries is not None or self.config.boxes is not None:
            return self.config.entries
        names = [f"Data_Entry_2017{v}.csv{end}" for v in ("_v2020", "") for end in ("", ".gz")]
        return self.find(*names, optional=True)

    def _test_list(self) -> Path | None:
        if self.config.boxes is not None and self.config.root is None:
            return None
        return self.find("test_list.txt", optional=True)

    def files(self) -> list[Path]:
        """Return the table of boxes; labels and the list of test images are optional."""
        found = (self._boxes(), self._entries(), self._test_list())
        return [path for path in found if path is not None]

    def image_folder(self) -> Path:
        """Return the folder of the PNG files."""
        if self.config.images is not None:
            return self.config.images
        if self.config.boxes is not None and self.config.root is None:
            return self.config.boxes.parent
        return self.find("images", optional=True) or self.root()

    def load(self, tables: Tables) -> None:
        """Load boxes and labels; all boxes are in pixels of 1024 x 1024."""
        columns = ("image", "finding", "x", "y", "w", "h")
        tables.load_rows("boxes", columns, _read_boxes(self._boxes()), key="image")
        entries = self._entries()
        if entries is not None:
            tables.load_csv(
                "entries", entries, ("Image Index", "Finding Labels"),
                ("Patient ID", "Patient Gender", "View Position"),
            )  # fmt: skip
            tables.index("entries", '"Image Index"')
        else:
            patient = ("Patient ID", "Patient Gender", "View Position")
            tables.load_rows("entries", ("Image Index", "Finding Labels", *patient), ())
        test = self._test_list()
        names = test.read_text(encoding="utf-8").split() if test is not None else []
        tables.load_rows("test", ("image",), ((name,) for name in names), key="image")
        self._add_images(tables)
        if test is None:
            text = "images without an official split, for lack of test_list.txt: all are train"
            self.remark(tables, "note", text, self.count(tables))

    def _add_images(self, tables: Tables) -> None:
        boxes = "SELECT image, min(rowid) AS place, 0 AS part FROM boxes GROUP BY image"
        if self.config.all_images:
            boxes += (
                ' UNION ALL SELECT "Image Index", rowid, 1 FROM entries WHERE "Image Index" NOT IN '
                "(SELECT image FROM boxes)"
            )
        missing = (
            "SELECT count(DISTINCT image), min(image) FROM boxes WHERE image NOT IN "
            '(SELECT "Image Index" FROM entries)'
        )
        count, example = tables.row(missing) or (0, "")
        self.remark(tables, "missing", "images with boxes but without labels", count, example)
        study = "substr(b.image, 1, instr(b.image || '_', '_') - 1)"
        self.add_images(
            tables,
            f"""
            SELECT b.image, b.image, {study}, 'nih/' || CAST({study} AS INTEGER),
                CASE WHEN t.image IS NULL THEN 'train' ELSE 'test' END,
                coalesce(e."View Position", 'FRONTAL'), coalesce(e."Patient Gender", ''),
                {_SIDE}, {_SIDE}
            FROM ({boxes}) b
            LEFT JOIN entries e ON e."Image Index" = b.image
            LEFT JOIN test t ON t.image = b.image
            ORDER BY b.part, b.place
            """,
        )
        x, y, w, h = (f"CAST({name} AS REAL)" for name in "xywh")
        bad = (
            f"{w} <= 0 OR {h} <= 0 OR {x} < -1.024 OR {y} < -1.024 OR {x} + {w} > 1025.024 OR "
            f"{y} + {h} > 1025.024"
        )
        sql = f"SELECT count(*), min(image) FROM boxes WHERE {bad}"
        count, example = tables.row(sql) or (0, "")
        self.remark(tables, "lost", "boxes that are empty or leave their image", count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the boxes by finding, and the labels."""
        boxes: dict[str, list[Box]] = defaultdict(list)
        sql = "SELECT finding, x, y, w, h FROM boxes WHERE image = ? ORDER BY rowid"
        for finding, *extent in tables.rows(sql, image.image_id):
            try:
                box = from_extent([float(value) for value in extent], _SIDE, _SIDE)
            except DataError:  # counted by `load`
                continue
            boxes[finding].append(box)
        findings = tuple(Located(name, tuple(found)) for name, found in sorted(boxes.items()))
        sql = 'SELECT "Finding Labels" FROM entries WHERE "Image Index" = ?'
        names = (tables.value(sql, image.image_id) or "").split("|")
        labels: dict[str, Label] = {
            name.replace("_", " "): "positive" for name in names if name not in ("", NO_FINDING)
        }
        return ImageRecord(image, labels=labels, healthy=names == [NO_FINDING], findings=findings)


def _read_boxes(path: Path) -> Iterator[list[str]]:
    """Yield image, finding, x, y, w and h in pixels.

    The header of the official file names the four numbers in one cell, and has empty cells.

    Raises:
        DataError: A row is too short.
    """
    with open_text(path) as file:
        rows = csv.reader(file)
        next(rows, None)
        for number, row in enumerate(rows, 2):
            cells = [cell.strip() for cell in row if cell.strip()]
            if len(cells) < 6:
                raise DataError(f"{path}, row {number}: expected image, finding, x, y, w, h")
            yield cells[:6]
