"""Items of an instruction set: a question or a conversation about one image, with its boxes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from xraygpt.instructions.records import Located, Split
from xraygpt.media.geometry import Box

MARK = re.compile(r"<boxes:(\d+)>")
_DECIMALS = 6  # of stored coordinates


@dataclass(frozen=True, slots=True)
class Item:
    """A question or a conversation about one image.

    Attributes:
        item_id: Unique in the instruction set, and the same for any mixture that has the item:
            ``<collection>_<task>_<image_id>[_<n>][_r<repeat>]``.
        image: The image file: an absolute path.
        collection: Name of the collection in the YAML file.
        task: Name of the task.
        split: The split that the item belongs to.
        study_id: The study of the image.
        patient_id: The patient; see `ImageRow.patient_id`.
        image_id: The image; unique in the collection.
        width: Width of the original image in pixels; None if unknown.
        height: Its height.
        turns: Pairs (question, answer). ``<boxes:K>`` stands for the boxes of ``boxes[K]``, which
            each file writes in its own way; see `boxes.spelling`.
        boxes: Phrases or names with their boxes.
        labels: Findings of the image; None if they are not known.
        pathologies: The findings that were judged, among which `labels` are the positive ones.
        facts: What a judge of a conversation is told: ``report``, ``view``, ``sex``.
    """

    item_id: str
    image: str
    collection: str
    task: str
    split: Split
    study_id: str
    patient_id: str
    image_id: str
    width: int | None
    height: int | None
    turns: tuple[tuple[str, str], ...]
    boxes: tuple[Located, ...] = ()
    labels: tuple[str, ...] | None = None
    pathologies: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the item as one line of JSON; coordinates have six decimals."""
        row: dict[str, Any] = {
            "id": self.item_id, "image": self.image, "collection": self.collection,
            "task": self.task, "split": self.split, "study_id": self.study_id,
            "patient_id": self.patient_id, "image_id": self.image_id,
            "width": self.width, "height": self.height,
            "turns": [{"question": q, "answer": a} for q, a in self.turns],
            "boxes": [
                {"text": each.text, "boxes": [[round(v, _DECIMALS) for v in b] for b in each.boxes]}
                for each in self.boxes
            ],
            "labels": self.labels, "pathologies": self.pathologies,
        }  # fmt: skip
        if self.facts:
            row["facts"] = dict(self.facts)
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Item:
        """Read a line written by `to_json`."""
        row = json.loads(line)
        labels = row["labels"]
        return cls(
            row["id"], row["image"], row["collection"], row["task"], row["split"],
            row["study_id"], row["patient_id"], row["image_id"], row["width"], row["height"],
            tuple((turn["question"], turn["answer"]) for turn in row["turns"]),
            tuple(
                Located(each["text"], tuple(_box(b) for b in each["boxes"]))
                for each in row["boxes"]
            ),
            None if labels is None else tuple(labels),
            tuple(row["pathologies"]), row.get("facts", {}),
        )  # fmt: skip


def _box(values: list[float]) -> Box:
    x_min, y_min, x_max, y_max = values
    return x_min, y_min, x_max, y_max
