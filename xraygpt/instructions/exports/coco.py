"""Boxes as a COCO file (Lin et al. 2014), for detectors and for pycocotools."""

from __future__ import annotations

import json
import logging
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from xraygpt.boxes.units import to_extent
from xraygpt.instructions.exports.reading import read_items
from xraygpt.instructions.formats import BoxWriter

log = logging.getLogger(__name__)


def write_coco(items: Path, folder: Path, _: BoxWriter) -> None:
    """Write ``coco/<split>.json``.

    Every image with a size is listed, also those without a box. A box that several items share is
    written once. Ids count from 1, since pycocotools takes an annotation with id 0 for a miss.

    Args:
        items: ``items/<split>.jsonl``.
        folder: The folder ``coco``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{items.stem}.json"
    partial = out.with_name(f".{out.name}.partial")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        db = sqlite3.connect(Path(scratch) / "boxes.sqlite")
        db.execute("PRAGMA journal_mode = OFF")
        without_size = _collect(db, items)
        with partial.open("w", encoding="utf-8") as file:
            _write(db, file)
        db.close()
    partial.replace(out)
    if without_size:
        log.warning("%s: %d images without a size are left out", out, without_size)


def _collect(db: sqlite3.Connection, items: Path) -> int:
    """Collect images and boxes, and return the number of images without a size."""
    db.executescript(
        """
        CREATE TABLE images (id INTEGER PRIMARY KEY, file TEXT UNIQUE, width, height);
        CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
        CREATE TABLE boxes (image, name, x, y, w, h, UNIQUE (image, name, x, y, w, h));
        """
    )
    unsized: set[str] = set()
    for item in read_items(items):
        if item.width is None or item.height is None:
            unsized.add(item.image)
            continue
        row = (item.image, item.width, item.height)
        db.execute("INSERT OR IGNORE INTO images (file, width, height) VALUES (?, ?, ?)", row)
        for each in item.boxes:
            for box in each.boxes:
                extent = [round(v, 2) for v in to_extent(box, item.width, item.height)]
                db.execute("INSERT OR IGNORE INTO names (name) VALUES (?)", (each.text,))
                values = (item.image, each.text, *extent)
                db.execute("INSERT OR IGNORE INTO boxes VALUES (?, ?, ?, ?, ?, ?)", values)
    db.commit()
    return len(unsized)


def _write(db: sqlite3.Connection, file: TextIO) -> None:
    info = {"description": "instruction set of chest X-rays; research use only"}
    file.write('{"info": ' + json.dumps(info))
    images = (
        {"id": i, "file_name": name, "width": width, "height": height}
        for i, name, width, height in db.execute("SELECT * FROM images ORDER BY id")
    )
    _write_list(file, "images", images)
    sql = """
        SELECT i.id, n.id, x, y, w, h FROM boxes b JOIN images i ON i.file = b.image
        JOIN names n ON n.name = b.name ORDER BY i.id, b.rowid
    """
    boxes = (
        {
            "id": number, "image_id": image, "category_id": name, "bbox": [x, y, w, h],
            "area": round(w * h, 2), "iscrowd": 0,
        }
        for number, (image, name, x, y, w, h) in enumerate(db.execute(sql), 1)
    )  # fmt: skip
    _write_list(file, "annotations", boxes)
    names = ({"id": i, "name": n} for i, n in db.execute("SELECT * FROM names ORDER BY id"))
    _write_list(file, "categories", names)
    file.write("}\n")


def _write_list(file: TextIO, key: str, rows: Iterator[dict[str, Any]]) -> None:
    file.write(f',\n"{key}": [')
    for number, row in enumerate(rows):
        file.write(",\n" if number else "\n")
        file.write(json.dumps(row, ensure_ascii=False))
    file.write("]")
