"""VinDr-CXR: chest X-rays with 22 findings whose boxes were drawn by several radiologists.

H. Q. Nguyen et al.: VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations.
Scientific Data 9, 429 (2022).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from xraygpt.boxes.fusion import fuse_boxes
from xraygpt.boxes.units import TOLERANCE, from_corners
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection, first_suffix, read_sizes
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.tables import Tables
from xraygpt.media.geometry import Box

NO_FINDING = "No finding"
_COORDINATES = ("x_min", "y_min", "x_max", "y_max")


@COLLECTIONS.register("vindr_cxr")
class VindrCXR(Collection):
    """``annotations_{train,test}.csv``, images in ``{train,test}_jpg/`` or as DICOM."""

    title = "VinDr-CXR"
    folders = ("VinDr-CXR", "vindr-cxr", "vindr_cxr")
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            min_readers: Number of readers who must have drawn a finding on an image. Each image of
                the training split has three readers, of the test split a consensus.
            threshold: Intersection over union above which boxes of one finding are fused.
            sizes: Table image_id, width, height (pixels) for files without sizes of their own.
        """

        min_readers: int = 1
        threshold: float = 0.1
        sizes: Path | None = None

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(1, "min_readers")
                check.refuse(not 0 <= self.threshold < 1, "threshold", "must be in [0, 1)")

    config: Config

    def _annotations(self) -> dict[str, Path]:
        """Return the annotation file of each split that exists."""
        found = {}
        for split in self.splits:
            name = f"annotations_{split}.csv"
            names = (name, f"annotations/{name}", f"{name}.gz", f"annotations/{name}.gz")
            path = self.find(*names, optional=True)
            if path is not None:
                found[split] = path
        if not found:
            self.require("annotations_train.csv", "annotations/annotations_train.csv")
        return found

    def _sizes(self) -> dict[str, Path]:
        found = {}
        for split in self.splits:
            path = self.find(f"image_resolutions_{split}.json", optional=True)
            if path is not None:
                found[split] = path
        return found

    def files(self) -> list[Path]:
        """Return the tables of annotations and sizes."""
        own = [self.config.sizes] if self.config.sizes else []
        return [*self._annotations().values(), *self._sizes().values(), *own]

    def load(self, tables: Tables) -> None:
        """Load annotations and sizes; an image without a size is kept without boxes."""
        tables.run("CREATE TABLE sizes (image_id TEXT PRIMARY KEY, width INTEGER, height INTEGER)")
        for path in self._sizes().values():
            rows = read_sizes(path)
            tables.db.executemany("INSERT OR REPLACE INTO sizes VALUES (?, ?, ?)", rows)
        if self.config.sizes:
            tables.load_csv("own_sizes", self.config.sizes, ("image_id", "width", "height"))
            tables.run("INSERT OR REPLACE INTO sizes SELECT * FROM own_sizes")
        for split, path in self._annotations().items():
            self._load_split(tables, split, path)
        names = " UNION ".join(f"SELECT class_name FROM boxes_{s}" for s in self._annotations())
        tables.run(f"CREATE TABLE classes AS SELECT DISTINCT class_name FROM ({names}) ORDER BY 1")
        self.remark(
            tables, "missing", "images without a size in pixels, which are used without boxes",
            *self._first(tables, "width IS NULL"),
        )  # fmt: skip
        for split in self._annotations():
            self._remark_bad_boxes(tables, split)

    def _remark_bad_boxes(self, tables: Tables, split: str) -> None:
        """Note the boxes that `describe` drops."""
        x0, y0, x1, y1 = (f"CAST({name} AS REAL)" for name in _COORDINATES)
        empty = f"x_min IS NOT NULL AND ({x0} >= {x1} OR {y0} >= {y1})"
        room = f"{TOLERANCE} * "
        outside = (
            f"NOT ({empty}) AND ({x0} < -{room}width OR {y0} < -{room}height OR "
            f"{x1} > width + {room}width OR {y1} > height + {room}height)"
        )
        for text, condition in (("empty boxes", empty), ("boxes outside their image", outside)):
            found = tables.row(
                f"SELECT count(*), min(image_id) FROM boxes_{split} JOIN images USING (image_id) "
                f"WHERE {condition}"
            )
            count, example = found or (0, "")
            self.remark(tables, "lost", f"{text} ({split})", count, example)

    def _load_split(self, tables: Tables, split: str, path: Path) -> None:
        columns = ("image_id", "class_name", *_COORDINATES)
        tables.load_csv(f"boxes_{split}", path, columns, ("rad_id",), key="image_id")
        folder = f"{split}_jpg" if (self.image_folder() / f"{split}_jpg").is_dir() else split
        suffix = first_suffix(self.image_folder() / folder) or ".jpg"
        self.add_images(
            tables,
            f"SELECT b.image_id, '{folder}/' || b.image_id || '{suffix}', b.image_id, 'vindr/' || "
            f"b.image_id, '{split}', 'FRONTAL', '', s.width, s.height FROM boxes_{split} b "
            "LEFT JOIN sizes s USING (image_id) GROUP BY b.image_id ORDER BY min(b.rowid)",
        )

    def _first(self, tables: Tables, condition: str) -> tuple[int, str]:
        """Return the number of images that fulfil a condition, and the first of them."""
        sql = f"SELECT count(*), min(image_id) FROM images WHERE {condition}"
        count, example = tables.row(sql) or (0, "")
        return count, example or ""

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Fuse the boxes of each finding that at least `min_readers` radiologists drew."""
        sql = (
            "SELECT class_name, coalesce(rad_id, ''), x_min, y_min, x_max, y_max "
            f"FROM boxes_{image.split} WHERE image_id = ? ORDER BY rowid"
        )
        boxes: dict[str, list[Box]] = defaultdict(list)
        drawn_by: dict[str, set[str]] = defaultdict(set)
        readers: set[str] = set()
        damaged: set[str] = set()
        if image.width is None or image.height is None:
            return ImageRecord(image)
        for name, reader, *corners in tables.rows(sql, image.image_id):
            readers.add(reader)
            if name == NO_FINDING or None in corners:
                continue
            drawn_by[name].add(reader)
            corners = [float(value) for value in corners]
            try:
                box = from_corners(corners, image.width, image.height)
            except DataError:  # counted by `load`
                damaged.add(name)
                continue
            boxes[name].append(box)
        required = min(self.config.min_readers, len(readers))
        agreed = {name: b for name, b in boxes.items() if len(drawn_by[name]) >= required}
        findings = tuple(
            Located(name, self._fuse(agreed[name], len(readers))) for name in sorted(agreed)
        )
        # A finding that fewer readers drew is neither present nor absent.
        doubtful = (drawn_by.keys() | damaged) - agreed.keys()
        names = [name for (name,) in tables.rows("SELECT class_name FROM classes")]
        searched = tuple(n for n in names if n != NO_FINDING and n not in doubtful)
        return ImageRecord(
            image, healthy=not drawn_by, findings=findings, searched=searched,
            complete=not doubtful,
        )  # fmt: skip

    def _fuse(self, boxes: list[Box], readers: int) -> tuple[Box, ...]:
        fused = fuse_boxes(boxes, readers=readers, threshold=self.config.threshold)
        return tuple(each.box for each in fused)
