"""Chest ImaGenome: scene graphs of MIMIC-CXR images with anatomical regions.

J. T. Wu et al.: Chest ImaGenome dataset for clinical reasoning. NeurIPS 2021, Datasets and
Benchmarks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xraygpt.boxes.units import from_corners
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection, RemarkKind
from xraygpt.instructions.collections.mimic_cxr import (
    IMAGE_PATH,
    SEX,
    VIEW,
    MimicCXR,
    load_metadata,
)
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.tables import Tables, read_json

_CORNERS = ("original_x1", "original_y1", "original_x2", "original_y2")
_MIN_VISIBLE = 0.5  # share of a region that must be inside its image
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


@COLLECTIONS.register("chest_imagenome")
class ChestImaGenome(Collection):
    """``silver_dataset/splits/*.csv`` and ``silver_dataset/scene_graph/*_SceneGraph.json``.

    Its images, reports and labels are those of MIMIC-CXR-JPG, whose metadata contain their sizes.
    """

    title = "Chest ImaGenome"
    folders = ("CHEST_IMA", "chest-imagenome", "chest_imagenome", "Chest-ImaGenome")
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    credentialed = True

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            mimic: Folder of MIMIC-CXR-JPG; None looks in DATA_DIR.
        """

        mimic: Path | None = None

    config: Config

    def mimic(self) -> MimicCXR:
        """Return the collection of the images."""
        return MimicCXR(MimicCXR.Config(root=self.config.mimic), "mimic_cxr")

    def image_folder(self) -> Path:
        """Return the folder of MIMIC-CXR-JPG."""
        return self.config.images or self.mimic().root()

    def _graphs(self) -> Path:
        return self.require("silver_dataset/scene_graph", "scene_graph")

    def files(self) -> list[Path]:
        """Return the splits, the folder of scene graphs, and MIMIC-CXR's tables."""
        return [*self._split_files().values(), self._graphs(), *self.mimic().files()]

    def _split_files(self) -> dict[str, Path]:
        """Return the files of the splits that exist.

        Raises:
            DataError: There is none.
        """
        folder = self.require("silver_dataset/splits", "splits")
        paths = {split: folder / f"{name}.csv" for split, name in _SPLITS.items()}
        found = {split: path for split, path in paths.items() if path.is_file()}
        if not found:
            names = "train.csv, valid.csv or test.csv"
            raise DataError(f"{self.name}: there is no {names} in {folder}")
        return found

    def load(self, tables: Tables) -> None:
        """Load splits and regions. The split of an image is ImaGenome's own."""
        load_metadata(self, tables, self.mimic())
        found = self._split_files()
        absent = [f"{name}.csv" for split, name in _SPLITS.items() if split not in found]
        text = "files of splits that do not exist"
        self.remark(tables, "missing", text, len(absent), ", ".join(absent))
        for split, path in found.items():
            name = path.stem
            tables.load_csv(f"{name}_ids", path, ("dicom_id",), key="dicom_id")
            self._remark(
                tables, "lost", f"images of {name}.csv that MIMIC-CXR's metadata do not have",
                f"SELECT count(*), min(dicom_id) FROM {name}_ids WHERE dicom_id NOT IN "
                "(SELECT dicom_id FROM metadata)",
            )  # fmt: skip
            self.add_images(
                tables,
                f"SELECT m.dicom_id, {IMAGE_PATH}, m.study_id, 'mimic/' || m.subject_id, "
                f"'{split}', {VIEW}, {SEX}, m.Columns, m.Rows FROM {name}_ids i JOIN "
                "metadata m USING (dicom_id) ORDER BY i.rowid",
            )
        self._load_graphs(tables)
        self.mimic().load_texts(tables)
        self._remark(
            tables, "note", "images whose split in MIMIC-CXR is another one",
            "SELECT count(*), min(image_id) FROM images i JOIN metadata m ON "
            "m.dicom_id = i.image_id WHERE m.split != i.split",
        )  # fmt: skip

    def _load_graphs(self, tables: Tables) -> None:
        damaged: list[str] = []
        graphs = _read_graphs(self._graphs(), damaged)
        tables.load_rows("regions", ("dicom_id", "name", *_CORNERS), graphs, key="dicom_id")
        text = "damaged scene graphs"
        self.remark(tables, "lost", text, len(damaged), damaged[0] if damaged else "")
        self._remark(
            tables, "missing", "images without a scene graph",
            "SELECT count(*), min(image_id) FROM images WHERE image_id NOT IN "
            "(SELECT dicom_id FROM regions)",
        )  # fmt: skip
        x0, y0, x1, y1 = _CORNERS
        joined = "FROM regions r JOIN images i ON i.image_id = r.dicom_id WHERE"
        empty = f"({x0} >= {x1} OR {y0} >= {y1})"
        self._remark(
            tables, "lost", "empty regions", f"SELECT count(*), min(dicom_id) {joined} {empty}"
        )
        seen = (
            f"max(min({x1}, i.width) - max({x0}, 0), 0) * "
            f"max(min({y1}, i.height) - max({y0}, 0), 0)"
            f" / (({x1} - {x0}) * ({y1} - {y0}))"
        )
        outside = f"{seen} < {_MIN_VISIBLE}"
        crossing = (
            f"(min({x0}, {y0}) < -2 OR {x1} > i.width * 1.001 OR {y1} > i.height * 1.001) "
            f"AND NOT ({outside})"
        )
        kinds: tuple[tuple[RemarkKind, str, str], ...] = (
            ("lost", "regions of which less than half is in their image", outside),
            ("repaired", "regions that were cut at the border of their image", crossing),
        )
        for kind, text, condition in kinds:
            self._remark(
                tables, kind, text,
                f"SELECT count(*), min(dicom_id) {joined} NOT {empty} AND {condition}",
            )  # fmt: skip

    def _remark(self, tables: Tables, kind: Any, text: str, sql: str) -> None:
        count, example = tables.row(sql) or (0, "")
        self.remark(tables, kind, text, count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the regions, and MIMIC-CXR's report and labels.

        Regions are cut at the border of the image; empty ones and those of which less than half is
        in the image are left out.
        """
        record = self.mimic().describe(tables, image)
        if image.width is None or image.height is None:
            return record
        regions = []
        sql = f"SELECT name, {', '.join(_CORNERS)} FROM regions WHERE dicom_id = ? ORDER BY rowid"
        for name, *corners in tables.rows(sql, image.image_id):
            try:
                box = from_corners(corners, image.width, image.height, tolerance=math.inf)
            except DataError:  # counted by `load`
                continue
            area = (corners[2] - corners[0]) * (corners[3] - corners[1])
            shown = (box[2] - box[0]) * image.width * (box[3] - box[1]) * image.height
            if shown >= _MIN_VISIBLE * area:
                regions.append(Located(name, (box,)))
        return replace(record, regions=tuple(regions))


def _read_graphs(folder: Path, damaged: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield image, name and corners of every region of every scene graph."""
    for path in sorted(folder.glob("*_SceneGraph.json")):
        image = path.name.removesuffix("_SceneGraph.json")
        try:
            objects = read_json(path)["objects"]
            rows = [(image, o["bbox_name"], *(float(o[c]) for c in _CORNERS)) for o in objects]
        except (DataError, KeyError, TypeError, ValueError):
            damaged.append(path.name)
            continue
        yield from rows
