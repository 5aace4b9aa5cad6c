"""Rows of the files that trainers read; boxes are written in the chosen spelling."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xraygpt.boxes.spelling import SPELLINGS, Size, qwen_resize, write_boxes
from xraygpt.instructions.items import MARK, Item

IMAGE = "<image>"
# Trainers replace these wherever they stand in a text.
_RESERVED = re.compile(r"<(?:image|video|audio|bbox|ref-object)>")


@dataclass(frozen=True, slots=True)
class BoxWriter:
    """Writes the boxes of items.

    Attributes:
        spelling: A key of `SPELLINGS`.
        min_pixels: Smallest area of the image that the tower reads.
        max_pixels: Largest area.
    """

    spelling: str
    min_pixels: int = 3136
    max_pixels: int = 12845056

    def needs_size(self, item: Item) -> bool:
        """Check whether the item cannot be written because its image has no known size."""
        unknown = item.width is None or item.height is None
        return bool(item.boxes) and SPELLINGS[self.spelling].steps is None and unknown

    def texts(self, item: Item) -> list[str]:
        """Return the texts of all turns, with boxes in place of their marks."""
        texts = plain_texts(item)
        if not item.boxes:
            return texts
        size = self._size(item)
        boxes = [write_boxes(b.boxes, self.spelling, size, b.text) for b in item.boxes]
        return [MARK.sub(lambda match: boxes[int(match[1])], text) for text in texts]

    def _size(self, item: Item) -> Size | None:
        if SPELLINGS[self.spelling].steps is not None or item.height is None or item.width is None:
            return None
        return qwen_resize(
            item.height, item.width, min_pixels=self.min_pixels, max_pixels=self.max_pixels
        )


def plain_texts(item: Item) -> list[str]:
    """Return the texts of all turns without words that trainers replace, such as ``<image>``."""
    return [_RESERVED.sub("", text).strip() for turn in item.turns for text in turn]


def llava_row(item: Item, texts: list[str]) -> dict[str, Any]:
    """Return a row of RadVLM's LLaVA file.

    ``labels`` and ``pathologies`` are there if the image's labels are known.
    """
    speakers = ("human", "gpt")
    turns = [{"from": speakers[i % 2], "value": text} for i, text in enumerate(texts)]
    turns[0]["value"] = f"{IMAGE}\n{turns[0]['value']}"
    row: dict[str, Any] = {"image": item.image, "conversations": turns, "id": item.item_id}
    if item.labels is not None:
        row["labels"] = list(item.labels)
    if item.pathologies:
        row["pathologies"] = list(item.pathologies)
    return row


def sharegpt_row(item: Item, texts: list[str]) -> dict[str, Any]:
    """Return a row of LLaMA-Factory's sharegpt format."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    turns[0]["content"] = f"{IMAGE}{turns[0]['content']}"
    return {"messages": turns, "images": [item.image], "id": item.item_id}


def swift_row(item: Item, _: list[str]) -> dict[str, Any]:
    """Return a row of ms-swift's grounding format (4.6): ``<bbox>`` marks, boxes as fractions."""
    boxes: list[list[float]] = []

    def mark(match: re.Match[str]) -> str:
        found = item.boxes[int(match[1])].boxes
        boxes.extend([round(value, 6) for value in box] for box in found)
        return SPELLINGS["thousand"].join(["<bbox>"] * len(found))

    roles = ("user", "assistant")
    texts = [MARK.sub(mark, text) for text in plain_texts(item)]
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    turns[0]["content"] = f"{IMAGE}{turns[0]['content']}"
    row: dict[str, Any] = {"messages": turns, "images": [item.image]}
    if boxes:
        row["objects"] = {"ref": [], "bbox": boxes, "bbox_type": "norm1"}
    return {**row, "id": item.item_id}


@dataclass(frozen=True, slots=True)
class RowFormat:
    """A file with one row per item.

    Attributes:
        folder: Its folder in the output.
        suffix: ``.json`` for an array, ``.jsonl`` for lines.
        row: Returns the row of an item whose texts are written.
    """

    folder: str
    suffix: str
    row: Callable[[Item, list[str]], dict[str, Any]]

    @property
    def separator(self) -> bytes:
        """What stands between two rows."""
        return b",\n" if self.suffix == ".json" else b"\n"

    @property
    def brackets(self) -> tuple[bytes, bytes]:
        """What stands before the first row and after the last."""
        return (b"[\n", b"\n]\n") if self.suffix == ".json" else (b"", b"\n")


ROW_FORMATS: dict[str, RowFormat] = {
    "llava": RowFormat("llava", ".json", llava_row),
    "jsonl": RowFormat("llava", ".jsonl", llava_row),
    "sharegpt": RowFormat("sharegpt", ".json", sharegpt_row),
    "swift": RowFormat("swift", ".jsonl", swift_row),
}


def encode(row: dict[str, Any]) -> bytes:
    """Return a row as JSON on one line."""
    return json.dumps(row, ensure_ascii=False).encode()


def dataset_info(files: list[str]) -> str:
    """Return LLaMA-Factory's ``dataset_info.json`` for files in the sharegpt format."""
    tags = {
        "role_tag": "role", "content_tag": "content",
        "user_tag": "user", "assistant_tag": "assistant",
    }  # fmt: skip
    info = {
        file.partition(".")[0]: {
            "file_name": file, "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"}, "tags": tags,
        }
        for file in files
    }  # fmt: skip
    return json.dumps(info, indent=2) + "\n"
