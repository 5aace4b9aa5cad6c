"""A page with random items of each task, their boxes drawn on their images."""

from __future__ import annotations

import base64
import heapq
import io
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.errors import DataError
from xraygpt.common.keyed_random import keyed_int
from xraygpt.instructions.exports.reading import read_items
from xraygpt.instructions.formats import BoxWriter
from xraygpt.instructions.items import Item
from xraygpt.instructions.records import SYNTHETIC

PER_TASK = 60  # items
_SIDE = 320  # pixels of the longer side of an image
_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008b8b", "#b8860b", "#808000")


def write_sheet(items: Path, folder: Path, boxes: BoxWriter) -> None:
    """Write ``sheet/<split>.html``, which contains its images.

    Which items are shown is decided by a hash of their ids.

    Args:
        items: ``items/<split>.jsonl``.
        folder: The folder ``sheet``.
        boxes: How boxes are written in the text.
    """
    from jinja2 import Environment

    folder.mkdir(parents=True, exist_ok=True)
    source = resources.files("xraygpt").joinpath("data/instructions_sheet.html").read_text("utf-8")
    page = Environment(autoescape=True).from_string(source)
    tasks = {
        f"{collection}: {task}": [_card(item, boxes) for item in chosen]
        for (collection, task), chosen in choose(items).items()
    }
    text = page.render(split=items.stem, tasks=tasks)
    write_text_atomic(folder / f"{items.stem}.html", text)


def choose(items: Path, per_task: int = PER_TASK) -> dict[tuple[str, str], list[Item]]:
    """Return the items with the smallest hashes, by collection and task."""
    heaps: dict[tuple[str, str], list[tuple[int, str, Item]]] = {}
    for item in read_items(items):
        heap = heaps.setdefault((item.collection, item.task), [])
        entry = (-keyed_int("sheet", item.item_id), item.item_id, item)
        if len(heap) < per_task:
            heapq.heappush(heap, entry)
        elif entry[0] > heap[0][0]:
            heapq.heapreplace(heap, entry)
    return {
        key: [item for *_, item in sorted(heap, key=lambda e: -e[0])]
        for key, heap in sorted(heaps.items())
    }


def _card(item: Item, boxes: BoxWriter) -> dict[str, Any]:
    """Return what the page shows of an item."""
    texts = boxes.texts(item) if not boxes.needs_size(item) else [t for p in item.turns for t in p]
    legend = [
        (each.text or "box", _COLOURS[i % len(_COLOURS)])
        for i, each in enumerate(item.boxes)
        if each.boxes
    ]
    try:
        picture, problem = draw(item), ""
    except (DataError, OSError) as error:
        picture, problem = draw(item, blank=True), str(error)
    return {
        "id": item.item_id,
        "synthetic": item.patient_id.startswith(f"{SYNTHETIC}/"),
        "picture": picture,
        "problem": problem,
        "legend": legend,
        "turns": list(zip(texts[::2], texts[1::2], strict=True)),
    }


def draw(item: Item, *, blank: bool = False) -> str:
    """Return the image with its boxes as a data address.

    Args:
        item: The item.
        blank: Whether to draw the boxes on a grey square instead of the image.

    Raises:
        DataError: The image cannot be read.
    """
    from PIL import Image, ImageDraw

    from xraygpt.media.pixels import read_image

    if blank:
        image = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128))
    else:
        pixels = read_image(Path(item.image), min_side=_SIDE).pixels
        values = np.clip(pixels * 255 + 0.5, 0, 255).astype(np.uint8)
        image = Image.fromarray(values).convert("RGB")
    scale = _SIDE / max(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    pen = ImageDraw.Draw(image)
    for i, each in enumerate(item.boxes):
        for x0, y0, x1, y1 in each.boxes:
            w, h = image.width - 1, image.height - 1
            corners = (x0 * w, y0 * h, x1 * w, y1 * h)
            pen.rectangle(corners, outline=_COLOURS[i % len(_COLOURS)], width=2)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
