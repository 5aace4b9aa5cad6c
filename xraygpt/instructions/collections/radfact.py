"""Grounded reports in the form of RadFact's examples: sentences with boxes or without.

S. Bannur et al.: MAIRA-2: Grounded radiology report generation. arXiv:2406.04449.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from xraygpt.boxes.units import check_box
from xraygpt.common.errors import DataError
from xraygpt.common.registry import COLLECTIONS
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.tables import Tables, read_json
from xraygpt.media.geometry import Box

_CORNERS = ("x_min", "y_min", "x_max", "y_max")


@COLLECTIONS.register("radfact")
class RadFact(Collection):
    """A JSON list of ``{example_id, target: [{text, boxes}]}``; ``target`` is the reference.

    An entry may name its image under ``image``. RadFact's own examples come without images: set
    ``output.images`` to ``unchecked`` to write their texts.
    """

    title = "grounded reports (RadFact)"
    folders = ("RadFact", "radfact")
    licence = "as the reports'; RadFact's examples: MIT"

    @dataclass(kw_only=True)
    class Config(Collection.Config):
        """Settings.

        Attributes:
            file: The file below the root.
            side: Which list of sentences is read.
        """

        file: str = "grounded_reporting_examples.json"
        side: str = "target"

    config: Config

    def files(self) -> list[Path]:
        """Return the file of reports."""
        return [self.require(self.config.file)]

    def load(self, tables: Tables) -> None:
        """Load the sentences; a sentence with a damaged box is left out."""
        rows = read_json(self.files()[0])
        if not isinstance(rows, list):
            raise DataError(f"{self.files()[0]}: expected a list of reports")
        problems: list[str] = []
        names = [(self._id(row, i), self._image(row, i)) for i, row in enumerate(rows)]
        tables.load_rows("reports", ("id", "image"), names)
        sentences = self._sentences(rows, problems)
        tables.load_rows("sentences", ("id", "text", "boxes"), sentences, key="id")
        text = "sentences with a box that is empty or leaves the image"
        self.remark(tables, "lost", text, len(problems), problems[0] if problems else "")
        self.add_images(
            tables,
            "SELECT id, image, id, 'radfact/' || id, 'train', 'FRONTAL', '', NULL, NULL FROM "
            "reports ORDER BY rowid",
        )

    def _id(self, row: Any, number: int) -> str:
        if not isinstance(row, dict) or not isinstance(row.get(self.config.side), list):
            where = f"{self.files()[0]}, report {number}"
            raise DataError(f"{where}: expected a list under '{self.config.side}'")
        return str(row.get("example_id", number))

    def _image(self, row: dict[str, Any], number: int) -> str:
        return str(row.get("image") or f"{self._id(row, number)}.png")

    def _sentences(
        self, rows: list[dict[str, Any]], problems: list[str]
    ) -> Iterator[tuple[str, str, str]]:
        for number, row in enumerate(rows):
            name = self._id(row, number)
            for sentence in row[self.config.side]:
                try:
                    boxes = [
                        check_box([float(box[corner]) for corner in _CORNERS])
                        for box in sentence.get("boxes") or ()
                    ]
                    text = str(sentence["text"])
                except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
                    problems.append(f"report {name}: {error}")
                    continue
                yield name, text, json.dumps(boxes)

    def describe(self, tables: Tables, image: ImageRow) -> ImageRecord:
        """Return the sentences with their boxes, and the report that they make."""
        sql = "SELECT text, boxes FROM sentences WHERE id = ? ORDER BY rowid"
        phrases = tuple(
            Located(text, tuple(cast(Box, tuple(box)) for box in json.loads(boxes)))
            for text, boxes in tables.rows(sql, image.image_id)
        )
        report = " ".join(phrase.text for phrase in phrases)
        return ImageRecord(image, report=report, phrases=phrases)
