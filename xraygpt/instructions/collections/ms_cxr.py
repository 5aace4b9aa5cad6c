"""MS-CXR: phrases of MIMIC-CXR reports with the boxes that radiologists drew for them.

B. Boecking et al.: Making the most of text semantics to improve biomedical vision-language
processing. ECCV 2022.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xraygpt.boxes.units import check_box, from_extent
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.collections.mimic_cxr import (
    IMAGE_PATH,
    SEX,
    VIEW,
    MimicCXR,
    load_metadata,
)
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.tables import Tables, read_json
from xraygpt.media.geometry import Box

_NAMES = ("MS_CXR_Local_Alignment_v1.1.0.csv", "MS_CXR_Local_Alignment_v1.0.0.csv")
_FOLDERS = ("sentences_BBox_mscxr", "sentences_and_BBox_mscxr")
_EXTENT = ("x", "y", "w", "h")


@COLLECTIONS.register("ms_cxr")
class MsCXR(Collection):
    """``MS_CXR_Local_Alignment_*.csv``, or RadVLM's ``sentences_BBox_mscxr/``.

    Its images, reports and labels are those of MIMIC-CXR-JPG. Newer releases have a split of their
    own; otherwise that of MIMIC-CXR is used.
    """

    title = "MS-CXR"
    folders = ("MS-CXR", "ms-cxr", "ms_cxr")
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

    def _source(self) -> Path:
        return self.require(*_NAMES, *_FOLDERS)

    def files(self) -> list[Path]:
        """Return the phrases, and MIMIC-CXR's tables."""
        return [self._source(), *self.mimic().files()]

    def load(self, tables: Tables) -> None:
        """Load the phrases and join them with MIMIC-CXR's metadata."""
        load_metadata(self, tables, self.mimic())
        source = self._source()
        if source.is_dir():
            self._load_folder(tables, source)
        else:
            self._load_table(tables, source)
        found = tables.row(
            "SELECT count(DISTINCT dicom_id), min(dicom_id) FROM phrases WHERE dicom_id NOT IN "
            "(SELECT dicom_id FROM metadata)"
        )
        count, example = found or (0, "")
        text = "images with phrases that MIMIC-CXR's metadata do not have"
        self.remark(tables, "lost", text, count, example)
        self.add_images(
            tables,
            f"SELECT m.dicom_id, {IMAGE_PATH}, m.study_id, 'mimic/' || m.subject_id, "
            "coalesce(p.split, m.split), "
            f"{VIEW}, {SEX}, m.Columns, m.Rows FROM "
            "(SELECT dicom_id, max(split) AS split, min(rowid) AS place FROM phrases "
            "GROUP BY dicom_id) p JOIN metadata m USING (dicom_id) WHERE "
            "coalesce(p.split, m.split) IS NOT NULL ORDER BY p.place",
        )
        self.mimic().load_texts(tables)

    def _load_table(self, tables: Tables, source: Path) -> None:
        needed = ("dicom_id", "label_text", *_EXTENT, "image_width", "image_height")
        tables.load_csv("table", source, needed, ("split",))
        problems: list[str] = []
        rows = _normalised(tables, needed, problems)
        columns = ("dicom_id", "phrase", "box", "split")
        tables.load_rows("phrases", columns, rows, key="dicom_id")
        tables.run("UPDATE phrases SET split = 'val' WHERE split IN ('valid', 'validate')")
        self.remark(tables, "lost", "boxes that are empty or leave their image", len(problems),
                    problems[0] if problems else "")  # fmt: skip

    def _load_folder(self, tables: Tables, source: Path) -> None:
        problems: list[str] = []
        rows = _read_folder(source, problems)
        columns = ("dicom_id", "phrase", "box", "split")
        tables.load_rows("phrases", columns, rows, key="dicom_id")
        self.remark(tables, "lost", "damaged files or boxes", len(problems),
                    problems[0] if problems else "")  # fmt: skip

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the phrases, each with all its boxes, and MIMIC-CXR's report and labels."""
        boxes: dict[str, list[Box]] = defaultdict(list)
        sql = "SELECT phrase, box FROM phrases WHERE dicom_id = ? ORDER BY rowid"
        for phrase, box in tables.rows(sql, image.image_id):
            x_min, y_min, x_max, y_max = json.loads(box)
            boxes[phrase].append((x_min, y_min, x_max, y_max))
        phrases = tuple(Located(phrase, tuple(found)) for phrase, found in boxes.items())
        record = self.mimic().describe(tables, image)
        return replace(record, phrases=phrases, healthy=record.healthy and not phrases)


def _normalised(
    tables: Tables, columns: tuple[str, ...], problems: list[str]
) -> Iterator[tuple[str, str, str, str | None]]:
    sql = f'SELECT {", ".join(columns)}, split FROM "table" ORDER BY rowid'
    for image, phrase, x, y, w, h, width, height, split in list(tables.rows(sql)):
        try:
            box = from_extent([float(v) for v in (x, y, w, h)], float(width), float(height))
        except (DataError, ValueError, TypeError) as error:
            problems.append(f"{image}: {error}")
            continue
        yield image, phrase, json.dumps(box), split


def _read_folder(folder: Path, problems: list[str]) -> Iterator[tuple[str, str, str, None]]:
    """Yield the phrases of RadVLM's files, whose boxes are normalised."""
    for path in sorted(folder.glob("*.json")):
        try:
            rows: Any = read_json(path)
            found = [(row["observation"], check_box(row["box"])) for row in rows]
        except (DataError, KeyError, TypeError, ValueError) as error:
            problems.append(f"{path.name}: {error}")
            continue
        for phrase, box in found:
            yield path.stem, phrase, json.dumps(box), None
