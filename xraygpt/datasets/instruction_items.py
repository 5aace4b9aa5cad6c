"""Instruction sets written by ``python -m xraygpt.prepare_instructions``, with boxes and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.errors import DataError
from xraygpt.common.registry import registry
from xraygpt.common.requirements import CorpusLayout
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import BaseBuilder
from xraygpt.datasets.splits import reserved_split
from xraygpt.instructions.formats import BoxWriter
from xraygpt.instructions.items import MARK, Item
from xraygpt.instructions.records import SPLITS, SYNTHETIC
from xraygpt.instructions.tasks import TaskName
from xraygpt.instructions.wording import enumerate_words
from xraygpt.media.base import MediaRef
from xraygpt.prompting.content import IMAGE
from xraygpt.prompting.renderer import Turn

_ITEMS = "items"  # folder of the files
# Tasks about one region, finding or phrase; in others, naming it would give the answer away.
_PHRASES = ("region_grounding", "abnormality_grounding", "phrase_grounding")
_REMEDY = "write it with python -m xraygpt.prepare_instructions (docs/instructions.md)"


@registry.register_builder("instructions")
class InstructionItems(BaseBuilder):
    """``items/{train,val,test}.jsonl``: questions and conversations with their true boxes.

    Unlike the formats for other trainers, an item has boxes as numbers, its task, its patient and
    the image's labels, which evaluation needs. `Sample.meta` has them as ``task``, ``phrase``,
    ``boxes``, ``spelling``, ``image_size`` (height, width), ``labels``, ``pathologies``,
    ``patient`` and ``facts``.
    """

    @dataclass(kw_only=True)
    class Config(BaseBuilder.Config):
        """Settings of an instruction set."""

        layout: ClassVar[CorpusLayout] = CorpusLayout(None, _ITEMS, _REMEDY)

        tasks: list[TaskName] | None = None
        """Use only items of these tasks; null uses all."""
        collections: list[str] | None = None
        """Use only items of these collections, by their names in the mixture; null uses all."""
        boxes: SpellingName = "thousand"
        """How boxes are written in answers (docs/instructions.md)."""
        dialogue: Literal["whole", "each_answer"] = "whole"
        """`whole` trains on all answers of a conversation; `each_answer` makes a sample of each
        answer, with the true dialogue before it, which evaluation needs."""
        input_check: bool = field(default=False)
        """Warn about images that do not look like chest radiographs."""

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield the records of all splits; see `BaseBuilder.records`.

        Raises:
            DataError: There is no file of items, or a line is damaged.
        """
        folder = self.storage_folder("instruction set", _REMEDY) / _ITEMS
        files = [path for split in SPLITS if (path := folder / f"{split}.jsonl").is_file()]
        if not files:
            names = "train.jsonl, val.jsonl or test.jsonl"
            raise DataError(f"there is no {names} in {folder}; {_REMEDY}")
        writer = BoxWriter(self.config.boxes)
        for path in files:
            for item in _read(path):
                if self._is_chosen(item):
                    for record in self._records_of(item, writer, clean):
                        yield reserved_split(item.study_id) or item.split, record

    def _is_chosen(self, item: Item) -> bool:
        tasks, collections = self.config.tasks, self.config.collections
        return (tasks is None or item.task in tasks) and (
            collections is None or item.collection in collections
        )

    def _records_of(
        self, item: Item, writer: BoxWriter, clean: Callable[[str], str]
    ) -> Iterator[Record | str]:
        if not Path(item.image).is_file():
            yield f"{item.item_id}: there is no image {item.image}"
            return
        if writer.needs_size(item):
            yield f"{item.item_id}: {writer.spelling} needs the size of the image"
            return
        texts = writer.texts(item)
        turns = tuple(
            Turn(role="assistant", text=clean(text)) if i % 2 else Turn(role="user", text=text)
            for i, text in enumerate(texts)
        )
        turns = (Turn(role="user", text=f"{IMAGE}\n{turns[0]['text']}"), *turns[1:])
        ends = [len(turns)] if self.config.dialogue == "whole" else range(2, len(turns) + 1, 2)
        for end in ends:
            number = end // 2
            name = item.item_id if len(turns) == 2 else f"{item.item_id}/{number}"
            yield Record(
                sample_id=item.item_id if self.config.dialogue == "whole" else name,
                study_id=item.study_id,
                media=(MediaRef(item.image, kind="image"),),
                turns=turns[:end],
                meta={**_meta(item, number), "spelling": self.config.boxes},
            )


def _meta(item: Item, number: int) -> dict[str, Any]:
    """Return what evaluation needs to know of an item.

    Args:
        item: The item.
        number: The answer that is asked for, counted from 1.
    """
    answer = item.turns[number - 1][1]
    single = len(item.turns) == 1
    located = [each for i, each in enumerate(item.boxes) if single or f"<boxes:{i}>" in answer]
    meta: dict[str, Any] = {
        "task": item.task,
        "collection": item.collection,
        "patient": item.patient_id,
        "boxes": [
            {"label": name, "box": list(box)}
            for each in located
            for name in _names(each.text, item.labels or ())
            for box in each.boxes
        ],
    }
    if item.task in _PHRASES and len(item.boxes) == 1:
        meta["phrase"] = item.boxes[0].text
    if not single:
        question = MARK.sub("", item.turns[number - 1][0]).strip()
        meta |= {"dialogue": item.item_id, "answer_number": number, "question": question}
    if item.labels is not None:
        meta["labels"], meta["pathologies"] = list(item.labels), list(item.pathologies)
    if item.height and item.width:
        meta["image_size"] = [item.height, item.width]
    if item.facts:
        meta["facts"] = dict(item.facts)
    if item.patient_id.startswith(f"{SYNTHETIC}/"):
        meta["source"] = f"{SYNTHETIC} phantom"
    return meta


def _names(text: str, labels: Sequence[str]) -> list[str]:
    """Return the labels that share their boxes, which an item of detection lists together."""
    names = [name for name in labels if name in text]
    return names if len(names) > 1 and enumerate_words(names) == text else [text]


def _read(path: Path) -> Iterator[Item]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                yield Item.from_json(line)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{path}, line {number} is no item ({type(error).__name__}: {error}); {_REMEDY}"
                ) from None
