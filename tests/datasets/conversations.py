"""Writes corpora of conversations for tests, and reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from xraygpt.common.config import from_tree
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.experiment import NO_IMAGES

SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images", "videos": "videos"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
             "assistant_tag": "assistant"},
}  # fmt: skip


def messages(*texts: str, role: str = "role", content: str = "content") -> list[dict[str, str]]:
    """Questions and answers in turn."""
    names = ("user", "assistant") if role == "role" else ("human", "gpt")
    return [{role: names[i % 2], content: text} for i, text in enumerate(texts)]


def row(*texts: str, **fields: Any) -> dict[str, Any]:
    return {"messages": messages(*texts), **fields}


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 6), 90).save(folder / name, format="PNG")


def write_rows(folder: Path, rows: Any, entry: dict[str, Any] | None = None) -> Path:
    """Write `rows.json` and its entry in `dataset_info.json`."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.json").write_text(json.dumps(rows))
    info = {"rows": {"file_name": "rows.json", **(SHAREGPT if entry is None else entry)}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def build(builder: str, folder: Path, seed: int = 0, **keys: Any) -> Any:
    tree = {"builder": builder, "storage": str(folder), **keys}
    config = from_tree(BaseBuilder.Config, tree, "datasets.x")
    return config.build(image_spec=NO_IMAGES, seed=seed)


def read(builder: str, folder: Path, **keys: Any) -> tuple[dict[Any, list[Record]], list[str]]:
    """Records by split, and the problems."""
    by_split, problems = build(builder, folder, **keys).records_by_split()
    return {split: list(records) for split, records in by_split.items()}, problems


def texts(record: Record) -> list[tuple[str, str]]:
    return [(turn["role"], turn["text"]) for turn in record.turns]
