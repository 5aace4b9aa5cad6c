"""SYNTHETIC phantoms with boxes of regions, findings and sentences."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import SYNTHETIC, ImageRecord, ImageRow, Label, Located
from xraygpt.instructions.tables import Tables
from xraygpt.media.geometry import Box
from xraygpt.phantom.corpus import ROWS


@COLLECTIONS.register("phantom")
class Phantoms(Collection):
    """A folder written by ``python -m xraygpt.synthesize --grounded``."""

    title = "SYNTHETIC phantoms"
    folders = ("phantoms",)
    licence = "as the project's"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings; there are none of its own."""

    config: Config

    def files(self) -> list[Path]:
        """Return the file of rows."""
        return [self.require(ROWS)]

    def load(self, tables: Tables) -> None:
        """Load the rows."""
        columns = ("id", "image", "split", "width", "height", "row")
        tables.load_rows("phantoms", columns, _read_rows(self.files()[0]), key="id")
        self.add_images(
            tables,
            f"SELECT id, image, id, '{SYNTHETIC}/' || id, split, 'PA', '', width, height FROM "
            "phantoms ORDER BY rowid",
        )

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return everything that is drawn."""
        row = json.loads(tables.value("SELECT row FROM phantoms WHERE id = ?", image.image_id))
        findings = row["findings"]
        labels: dict[str, Label] = {
            name: "positive" if name in findings else "negative" for name in row["searched"]
        }
        return ImageRecord(
            image,
            report=" ".join(text for text, _ in row["sentences"]),
            labels=labels,
            healthy=row["complete"] and not findings,
            regions=tuple(Located(name, (_box(box),)) for name, box in row["regions"].items()),
            findings=tuple(Located(n, tuple(map(_box, boxes))) for n, boxes in findings.items()),
            searched=tuple(row["searched"]),
            complete=row["complete"],
            phrases=tuple(
                Located(text, tuple(map(_box, boxes))) for text, boxes in row["sentences"]
            ),
        )


def _read_rows(path: Path) -> Iterator[tuple[Any, ...]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            row = json.loads(line)
            if "regions" not in row:
                raise DataError(
                    f"{path}, line {number}: a phantom without regions; draw the phantoms with "
                    "python -m xraygpt.synthesize --grounded"
                )
            size = (row["width"], row["height"])
            yield row["id"], row["image"], row["split"], *size, line


def _box(values: list[float]) -> Box:
    x_min, y_min, x_max, y_max = values
    return x_min, y_min, x_max, y_max
