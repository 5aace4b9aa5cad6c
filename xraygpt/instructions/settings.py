"""The YAML file of an instruction set: its collections, its mixture and its output."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from xraygpt.boxes.spelling import SpellingName
from xraygpt.common.checks import Checks
from xraygpt.common.registry import did_you_mean
from xraygpt.instructions.collections.base import Collection
from xraygpt.instructions.records import VIEWS, ImageRow, Split
from xraygpt.instructions.tasks import TaskName, TaskOptions

Format = Literal[
    "llava", "jsonl", "sharegpt", "swift", "coco", "parquet", "webdataset", "sheet",
]  # fmt: skip
FORMATS: tuple[Format, ...] = get_args(Format)


@dataclass(kw_only=True)
class Entry:
    """One line of the mixture.

    Attributes:
        collection: Name of a collection in this file.
        task: Name of the task.
        splits: Splits of the collection whose images are used.
        into: The file that the items go to; None: the first of `splits`.
        repeats: How often each item is written, each time in another wording.
        cap: Maximum number of items before repeats; which ones is decided by a hash.
        views: Views that are used.
        require: What an image must have: a report, boxes of phrases, a conversation.
        per_image: See `TaskOptions`.
        negatives: See `TaskOptions`.
        uncertain: See `TaskOptions`.
        pathologies: See `TaskOptions`.
    """

    collection: str
    task: TaskName
    splits: list[Split] = field(default_factory=lambda: ["train"])
    into: Split | None = None
    repeats: int = 1
    cap: int | None = None
    views: Literal["all", "frontal", "lateral"] = "all"
    require: list[Literal["report", "phrases", "conversation"]] = field(default_factory=list)
    per_image: int | None = None
    negatives: float = 0.0
    uncertain: Literal["positive", "negative", "skip"] = "positive"
    pathologies: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "repeats", "cap", "per_image")
            check.at_least(0, "negatives")
            check.refuse(not self.splits, "splits", "must name at least one of train, val, test")

    @property
    def target(self) -> Split:
        """The file that the items go to."""
        return self.into or self.splits[0]

    def options(self) -> TaskOptions:
        """Return the options of the task."""
        return TaskOptions(self.per_image, self.negatives, self.uncertain, tuple(self.pathologies))

    def accepts(self, image: ImageRow) -> bool:
        """Check the split and view of an image."""
        if image.split not in self.splits:
            return False
        return self.views == "all" or image.view in VIEWS[self.views]

    def title(self) -> str:
        """Return a short text for tables, such as "vindr detection (train) x2"."""
        repeats = f" x{self.repeats}" if self.repeats > 1 else ""
        return f"{self.collection} {self.task} ({', '.join(self.splits)}){repeats}"


@dataclass(kw_only=True)
class Output:
    """How the items are written.

    Attributes:
        formats: Files to write besides ``items/*.jsonl``.
        boxes: Spelling of boxes in the formats that have them in the text.
        max_pixels: For the spellings with pixels: largest area of the image that the tower reads.
        min_pixels: For the spellings with pixels: smallest area.
        seed: Seeds every choice.
        wording: A file like ``xraygpt/data/instructions.yaml``; None uses that of the package.
        images: Whether image files must exist: ``require`` stops at the first that is missing,
            ``skip`` leaves their items out and counts them, ``unchecked`` does not look.
        overlap: What happens to patients of val or test who are also in train: ``refuse`` stops,
            ``exclude`` leaves them out of train, ``allow`` keeps them.
    """

    formats: list[Format] = field(default_factory=lambda: ["llava"])
    boxes: SpellingName = "thousand"
    max_pixels: int = 12845056
    min_pixels: int = 3136
    seed: int = 0
    wording: Path | None = None
    images: Literal["require", "skip", "unchecked"] = "require"
    overlap: Literal["refuse", "exclude", "allow"] = "refuse"

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "max_pixels", "min_pixels")
            smaller = self.max_pixels < self.min_pixels
            check.refuse(smaller, "max_pixels", "must be at least min_pixels", "min_pixels")


@dataclass(kw_only=True)
class InstructionSet:
    """An instruction set.

    Attributes:
        collections: The collections by name.
        mixture: What is asked about which images.
        output: How the items are written.
        imports: Modules with further collections.
    """

    collections: dict[str, Collection.Config]
    mixture: list[Entry]
    output: Output = field(default_factory=Output)
    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.refuse(not self.mixture, "mixture", "must have at least one entry")
            for i, entry in enumerate(self.mixture):
                unknown = entry.collection not in self.collections
                message = f"there is no collection '{entry.collection}'" + did_you_mean(
                    entry.collection, self.collections
                )
                check.refuse(unknown, f"mixture.{i}.collection", message, "collections")

    def build(self) -> dict[str, Collection]:
        """Return the collections that the mixture uses, in the order of the file."""
        used = {entry.collection for entry in self.mixture}
        return {
            name: config.build(name=name)
            for name, config in self.collections.items()
            if name in used
        }
