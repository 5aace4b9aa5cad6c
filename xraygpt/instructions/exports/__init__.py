"""Files that are made from ``items/*.jsonl`` once it is complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from xraygpt.instructions.exports.coco import write_coco
from xraygpt.instructions.exports.parquet import write_parquet
from xraygpt.instructions.exports.sheet import write_sheet
from xraygpt.instructions.exports.webdataset import write_webdataset
from xraygpt.instructions.formats import BoxWriter

# Each takes the items of one split, the folder of its output, and how boxes are written.
EXPORTS: dict[str, Callable[[Path, Path, BoxWriter], None]] = {
    "coco": write_coco,
    "parquet": write_parquet,
    "webdataset": write_webdataset,
    "sheet": write_sheet,
}
