"""Chest ImaGenome: scene graphs of MIMIC-CXR images with anatomical regions.

J. T. Wu et al.: Chest ImaGenome dataset for clinical reasoning. NeurIPS 2021, Datasets and
Benchmarks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.boxes.units import from_corners
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.collections.mimic_cxr import IMAGE_PATH, VIEW, MimicCXR, load_metadata
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.tables import Tables, read_json

_CORNERS = ("original_x1", "original_y1", "original_x2", "original_y2")
_SPLITS = {"train": "train", "val": "valid", "test": "test"}


@COLLECTIONS.register("chest_imagenome")
class ChestImaGenome(Collection):
    """``silver_dataset/splits/*.csv`` and ``silver_dataset/scene_graph/*_SceneGraph.json``.

    Its images are those of MIMIC-CXR-JPG, whose metadata contain their sizes.
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
        splits = self.require("silver_dataset/splits", "splits")
        own = [splits / f"{name}.csv" for name in _SPLITS.values()]
        for path in own:
            if not path.is_file():
                raise DataError(f"{self.name}: there is no {path}")
        mimic = self.mimic()
        tables = [t for t in (mimic.table("metadata"), mimic.table("split")) if t is not None]
        return [*own, self._graphs(), *tables]

    def load(self, tables: Tables) -> None:
        """Load splits and regions. The split of an image is ImaGenome's own."""
        load_metadata(self, tables, self.mimic())
        for (split, name), path in zip(_SPLITS.items(), self.files(), strict=False):
            tables.load_csv(f"{name}_ids", path, ("dicom_id",), key="dicom_id")
            self._remark(
                tables, "lost", f"images of {name}.csv that MIMIC-CXR's metadata do not have",
                f"SELECT count(*), min(dicom_id) FROM {name}_ids WHERE dicom_id NOT IN "
                "(SELECT dicom_id FROM metadata)",
            )  # fmt: skip
            self.add_images(
                tables,
                f"SELECT m.dicom_id, {IMAGE_PATH}, m.study_id, 'mimic/' || m.subject_id, "
                f"'{split}', {VIEW}, '', m.Columns, m.Rows FROM {name}_ids i JOIN "
                "metadata m USING (dicom_id) ORDER BY i.rowid",
            )
        self._load_graphs(tables)
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
        self._remark(
            tables, "lost", "regions that leave their image",
            f"SELECT count(*), min(dicom_id) {joined} NOT {empty} AND (min({x0}, {y0}) < -2 OR "
            f"{x1} > i.width * 1.001 OR {y1} > i.height * 1.001)",
        )  # fmt: skip

    def _remark(self, tables: Tables, kind: Any, text: str, sql: str) -> None:
        count, example = tables.row(sql) or (0, "")
        self.remark(tables, kind, text, count, example)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the regions; empty ones and those outside the image are left out."""
        if image.width is None or image.height is None:
            return ImageRecord(image)
        regions = []
        sql = f"SELECT name, {', '.join(_CORNERS)} FROM regions WHERE dicom_id = ? ORDER BY rowid"
        for name, *corners in tables.rows(sql, image.image_id):
            try:
                box = from_corners(corners, image.width, image.height)
            except DataError:  # counted by `load`
                continue
            regions.append(Located(name, (box,)))
        return ImageRecord(image, regions=tuple(regions))


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
