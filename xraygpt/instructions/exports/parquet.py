"""Items as a Parquet file."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from xraygpt.common.errors import InputError
from xraygpt.common.requirements import INSTALL_PARQUET
from xraygpt.instructions.exports.reading import read_items
from xraygpt.instructions.formats import BoxWriter
from xraygpt.instructions.items import Item

_GROUP = 2000  # rows per row group


def write_parquet(items: Path, folder: Path, boxes: BoxWriter) -> None:
    """Write ``parquet/<split>.parquet``, with messages, image and boxes.

    Args:
        items: ``items/<split>.jsonl``.
        folder: The folder ``parquet``.
        boxes: How boxes are written in the text.

    Raises:
        InputError: Pyarrow is not installed.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"the format parquet needs pyarrow; {INSTALL_PARQUET}") from None
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / f"{items.stem}.parquet"
    partial = out.with_name(f".{out.name}.partial")
    text, texts = arrow.string(), arrow.list_(arrow.string())
    message = arrow.struct([("role", text), ("content", text)])
    box = arrow.struct([("text", text), ("boxes", arrow.list_(arrow.list_(arrow.float64())))])
    schema = arrow.schema(
        [
            ("id", text), ("messages", arrow.list_(message)), ("images", texts), ("task", text),
            ("collection", text), ("study_id", text), ("patient_id", text), ("image_id", text),
            ("width", arrow.int32()), ("height", arrow.int32()), ("boxes", arrow.list_(box)),
            ("labels", texts), ("pathologies", texts),
        ]
    )  # fmt: skip
    writable = (item for item in read_items(items) if not boxes.needs_size(item))
    with parquet.ParquetWriter(partial, schema) as writer:
        while rows := [_row(i, boxes) for i in itertools.islice(writable, _GROUP)]:
            writer.write_table(arrow.Table.from_pylist(rows, schema=schema))
    partial.replace(out)


def _row(item: Item, boxes: BoxWriter) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(boxes.texts(item))]
    messages[0]["content"] = f"<image>{messages[0]['content']}"
    return {
        "id": item.item_id, "messages": messages, "images": [item.image], "task": item.task,
        "collection": item.collection, "study_id": item.study_id, "patient_id": item.patient_id,
        "image_id": item.image_id, "width": item.width, "height": item.height,
        "boxes": [{"text": b.text, "boxes": [list(box) for box in b.boxes]} for b in item.boxes],
        "labels": item.labels, "pathologies": list(item.pathologies),
    }  # fmt: skip
