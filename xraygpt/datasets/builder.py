"""What all corpus builders share: settings, safe paths, counted skips, reading one image."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from xraygpt.common import memory
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.paths import is_plain_file_within, is_within
from xraygpt.common.registry import BUILDERS, Plugin, Registry, did_you_mean
from xraygpt.datasets import controls
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Record, Split, StudyDataset, read_media
from xraygpt.datasets.mapped_records import MappedRecords, RecordFile
from xraygpt.datasets.splits import SplitRule
from xraygpt.media.base import ARRAYS, KINDS, MediaRef
from xraygpt.processors.base import BaseProcessor
from xraygpt.processors.image import ImageSpec, XrayImage
from xraygpt.processors.text import Identity

log = logging.getLogger(__name__)


Phase = Literal["train", "eval"]


class RecordError(ValueError):
    """One record that cannot be used: `on_error` decides what becomes of it."""


class BaseBuilder(Plugin):
    """Turns a folder into datasets, one per split."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """What every corpus can set. Paths may hold `${oc.env:XRAYGPT_DATA}`."""

        kind: ClassVar[Registry] = BUILDERS

        storage: Path = Path()
        """The corpus's folder."""
        annotations: Path | None = None
        """The annotation file, relative to `storage`; None takes the builder's usual name."""
        images: Path | None = None
        """The folder of the images, relative to `storage`; no image may lie outside it."""
        split: SplitRule = field(default_factory=SplitRule)
        """Which studies are train, val and test."""
        views: list[str] | None = None
        """Keep only images with one of these views; None keeps all."""
        on_error: Literal["error", "skip"] = "error"
        """What a bad record or image does: stop with a message, or be left out and counted."""
        max_samples: int | None = None
        """Only the first so many records of each split, to try things out; None takes all."""
        blank_images: bool = False
        """Show black pictures instead, in training too: a control that knows the question only."""
        weight: float = 1.0
        """Passes over this corpus in one epoch; 0.5 draws half of it, 2 goes through it twice."""
        balance: float = 0.0
        """Draw studies of rare findings more often in training: 0 draws all alike, 1 those of each
        coded heading (or labelled finding, where nobody coded) as often as those of any other."""
        vis_processor: dict[Literal["train", "eval"], BaseProcessor.Config] = field(
            default_factory=dict
        )
        """Image processor of training and of everything else; None takes `xray_image`."""
        text_processor: dict[Literal["train", "eval"], BaseProcessor.Config] = field(
            default_factory=dict
        )
        """Text processor of training and of everything else; None leaves texts alone."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(0, "weight")
                check.share("balance")

    config: Config

    def __init__(self, config: Config, *, image_spec: ImageSpec, seed: int = 0) -> None:
        self.config, self.image_spec, self.seed = config, image_spec, seed
        self._surveyed: dict[str, tuple[dict[str | None, MappedRecords], list[str]]] = {}

    def records(self, clean: Callable[[str], str]) -> Iterable[tuple[str | None, Record | str]]:
        """Every record with its split, or the reason why a record is none.

        A `str` in place of a record says what is wrong and where; `clean` processes report text.
        """
        raise NotImplementedError

    def build(self, split: Split, phase: Phase | None = None) -> StudyDataset:
        """The dataset of one split; empty if the corpus has nothing in it.

        Args:
            split: Which studies.
            phase: Whose processors; None takes those of training for `train`, else of evaluation.

        Raises:
            DataError: A path is missing, or a record is bad and `on_error` is "error".
        """
        phase = phase or ("train" if split == "train" else "eval")
        vis = self.processor("vis", phase)
        by_split, problems = self.survey(phase)
        kept = (by_split.get(split) or MappedRecords())[: self.config.max_samples]
        self._settle(problems, len(kept))
        data = StudyDataset(
            kept,
            partial(read_media, processor=vis),
            on_error=self.config.on_error,
            seed=self.seed,
            cacheable=vis.deterministic,
            signature=vis.signature(),
            vocabulary=getattr(self.config, "vocabulary", DEFAULT_VOCABULARY),
        )
        return controls.blanked(data) if self.config.blank_images else data

    def survey(self, phase: Phase = "train") -> tuple[dict[str | None, MappedRecords], list[str]]:
        """Records by split (None: one nobody asked for), and what is wrong with the others.

        Made once for phases with one text processor.
        """
        key = repr(self._processor_config("text", phase))
        if key in self._surveyed:
            return self._surveyed[key]
        with memory.no_collection():
            self._surveyed[key] = self._sorted_records(self.processor("text", phase))
        memory.give_back()
        return self._surveyed[key]

    def _sorted_records(
        self, clean: Callable[[str], str]
    ) -> tuple[dict[str | None, MappedRecords], list[str]]:
        file, times = RecordFile(), dict[str, int]()
        by_split: dict[str | None, MappedRecords] = {}
        problems: list[str] = []
        for where, record in self.records(clean):
            if isinstance(record, str):
                problems.append(record)
                continue
            name = record.sample_id
            times[name] = time = times.get(name, 0) + 1
            if time > 1:  # several questions on one image
                record = replace(record, sample_id=f"{name}#{time}")
            if where not in by_split:
                by_split[where] = MappedRecords(file=file)
            by_split[where].append(record)
        return by_split, problems

    def processor(self, which: Literal["vis", "text"], phase: Phase) -> Any:
        """The processor of a phase; either phase's stands in for the other, as the lineage did."""
        return self._processor_config(which, phase).build(image_spec=self.image_spec)

    def _processor_config(
        self, which: Literal["vis", "text"], phase: Phase
    ) -> BaseProcessor.Config:
        given = self.config.vis_processor if which == "vis" else self.config.text_processor
        config = given.get(phase) or given.get("train" if phase == "eval" else "eval")
        if config is None:
            config = XrayImage.Config() if which == "vis" else Identity.Config()
        return config.for_eval() if phase == "eval" and "eval" not in given else config

    def _settle(self, problems: list[str], kept: int) -> None:
        """Stop at the first bad record, or count them."""
        if not problems:
            return
        first = "; ".join(problems[:3])
        if self.config.on_error == "error":
            raise DataError(
                f"{len(problems)} records of {self.config.storage} cannot be used: {first}. "
                "Mend them, or set on_error: skip to leave them out"
            )
        reasons = Counter(p.partition(": ")[2].split(" (")[0][:60] for p in problems)
        log.warning(
            "%s: %d records skipped, %d kept: %s",
            self.config.storage,
            len(problems),
            kept,
            "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(5)),
        )

    def folder(self, name: str, hint: str) -> Path:
        """`storage`, checked to exist.

        Raises:
            DataError: It does not; says how it is made.
        """
        path = Path(self.config.storage)
        if not path.is_dir():
            raise DataError(f"{name}: no folder {path} (datasets.<label>.storage). {hint}")
        return path


def inside(root: Path, name: object) -> Path:
    """`name` under `root`, with nothing that leads out of it.

    Raises:
        RecordError: Not a path, or one that leaves the image root (also through a link).
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RecordError(f"image path {name!r} is not a path")
    path = root / name
    if not is_within(path, root):
        raise RecordError(f"image path {name!r} leaves the image folder")
    return path


def image_in(root: Path, name: object) -> str:
    """`existing(inside(root, name))` as text, quicker where nothing is wrong.

    Raises:
        RecordError: As these do.
    """
    if isinstance(name, str):
        path = os.path.join(root, name)  # noqa: PTH118 (quicker)
        if is_plain_file_within(path, str(root)):
            plain = "/." not in path and "//" not in path
            return path if plain else str(Path(path))  # one file has one name
    return str(existing(inside(root, name)))


def existing(path: Path) -> Path:
    """`path` if a non-empty file lies there.

    Raises:
        RecordError: It does not exist or is empty.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise RecordError(f"image not found ({path})") from None
    if size == 0:
        raise RecordError(f"image file is empty ({path})")
    return path


_KEYS = ("path", "view", "kind", "index", "frame", "frames", "tensor", "spacing", "fps")


def media_of(item: object, place: Callable[[object], Path | str], view: str = "") -> MediaRef:
    """One entry of a record's `images`.

    Args:
        item: ``{path, view?, kind?, index?, frames?, tensor?, spacing?, fps?}`` as `MediaRef` has
            them; `frame` is another name of `index`, and `frame: null` a clip of all frames.
        place: The entry's path -> where the file lies.
        view: Where the entry names none.

    Raises:
        RecordError: Something in it cannot be used; says what.
    """
    if not isinstance(item, dict):
        raise RecordError(f"an image is a path or an object with a path, not {item!r}")
    unknown = sorted(set(item) - set(_KEYS))
    if unknown:
        raise RecordError(f"an image has {unknown[0]!r}{did_you_mean(unknown[0], _KEYS)}")
    kind = item.get("kind")
    if "frame" in item and item["frame"] is None:
        kind = kind or "clip"
    if kind not in (None, *KINDS):
        raise RecordError(f"kind {kind!r} is none of {', '.join(KINDS)}")
    fps, spacing, frames = item.get("fps"), item.get("spacing"), item.get("frames")
    try:
        return MediaRef(
            place(item.get("path")),
            str(item.get("view") or view),
            _index(item),
            kind=kind,
            frames=None if frames is None else _frames(frames),
            tensor=str(item.get("tensor") or ""),
            spacing=None if spacing is None else tuple(float(s) for s in spacing),
            fps=None if fps is None else float(fps),
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(
            f"an image's index, frames [start, stop, step], spacing or fps is not of that form: "
            f"{error}"
        ) from None


def _index(item: Mapping[str, object]) -> int | None:
    """`index`, or `frame` of a picture; features have no frames."""
    features = str(item.get("path")).endswith(ARRAYS) and item.get("kind") in (None, "embedding")
    return _whole(item.get("index", None if features else item.get("frame")))


def _whole(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"{value!r} is no whole number")


def _frames(value: Iterable[str | float]) -> tuple[int, int, int]:
    start, stop, *rest = (int(v) for v in value)
    (step,) = rest or (1,)
    return start, stop, step
