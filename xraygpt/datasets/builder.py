"""Base class for corpus builders: common settings, processors, and handling of bad records."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from xraygpt.common import memory
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import BUILDERS, PROCESSORS, Plugin, Registry
from xraygpt.common.requirements import TABLE, CorpusLayout, Missing, missing_corpus
from xraygpt.datasets import controls
from xraygpt.datasets.base import DEFAULT_VOCABULARY, Record, Split, StudyDataset, read_media
from xraygpt.datasets.input_check import InputCheck
from xraygpt.datasets.leakage import ReportDigests
from xraygpt.datasets.mapped_records import MappedRecords, RecordFile
from xraygpt.datasets.seen_names import SeenNames
from xraygpt.datasets.splits import SplitRule
from xraygpt.media.frame_sampling import FrameSampling
from xraygpt.processors.base import BaseProcessor
from xraygpt.processors.image import ImageSpec
from xraygpt.processors.text import Identity

log = logging.getLogger(__name__)

Phase = Literal["train", "eval"]
RecordsBySplit = dict[str | None, MappedRecords]


class BaseBuilder(Plugin):
    """Builds one dataset per split from a folder."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings common to all corpora. Paths may contain `${oc.env:XRAYGPT_DATA}`."""

        kind: ClassVar[Registry] = BUILDERS
        layout: ClassVar[CorpusLayout] = TABLE  # for messages about missing files
        synthetic: ClassVar[bool] = False  # whether all images are phantoms

        storage: ProjectPath = Path()
        """Folder that contains the corpus."""
        licence: str = ""
        """Licence of the corpus, recorded with every model trained on it."""
        annotations: Path | None = None
        """Annotation file, relative to `storage`; None means the builder's default name."""
        images: Path | None = None
        """Folder with the images, relative to `storage`; all images must be inside it."""
        split: SplitRule = field(default_factory=SplitRule)
        """Which studies belong to train, val, test and lockbox."""
        views: list[str] | None = None
        """Use only images with one of these views; None uses all."""
        on_error: Literal["error", "skip"] = "error"
        """Whether a bad record or image stops the program or is skipped and counted."""
        frames: FrameSampling | None = field(default_factory=FrameSampling)
        """Which frames are read of clips without a `sampling` of their own, also in prediction and
        chat; by default all."""
        max_samples: int | None = None
        """Use only the first records of each split, up to this number; None uses all."""
        input_check: bool = True
        """Warn about images that do not look like chest radiographs in prediction, evaluation,
        chat and `xraygpt.validate`; false for a corpus of other images."""
        blank_images: bool = False
        """Replace all images with black ones, in training too: a control that sees only the
        question."""
        weight: float = 1.0
        """Passes over this corpus in one epoch; 0.5 samples half of it, 2 uses it twice."""
        balance: float = 0.0
        """Sample studies with rare findings more often in training: 0 samples all studies equally,
        1 samples all coded headings equally (in an uncoded corpus, the labeller's findings)."""
        vis_processor: dict[Literal["train", "eval"], BaseProcessor.Config] = field(
            default_factory=dict
        )
        """Image processors for training and for everything else; by default that of the model,
        which is `xray_image` for most."""
        text_processor: dict[Literal["train", "eval"], BaseProcessor.Config] = field(
            default_factory=dict
        )
        """Text processors for training and for everything else; by default texts are unchanged."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(0, "weight")
                check.fraction("balance")

        def missing(self, where: str) -> list[Missing]:
            """List the corpus folder, or its annotation file and image folder, if missing."""
            return missing_corpus(where, self.layout, self.storage, self.annotations, self.images)

    config: Config
    label = ""
    """Name of this corpus in the section `datasets`, for messages; set by `build_corpora`."""

    def __init__(self, config: Config, *, image_spec: ImageSpec, seed: int = 0) -> None:
        self.config, self.image_spec, self.seed = config, image_spec, seed
        self._loaded: dict[str, tuple[RecordsBySplit, list[str]]] = {}
        self._digests: dict[str, ReportDigests] = {}

    def records(self, clean: Callable[[str], str]) -> Iterable[tuple[str | None, Record | str]]:
        """Yield every record with its split, or an error message in place of a bad record.

        Args:
            clean: Processes report text.
        """
        raise NotImplementedError

    def build(self, split: Split, phase: Phase | None = None) -> StudyDataset:
        """Build the dataset of one split, which is empty if the corpus has no studies in it.

        Args:
            split: Split whose studies are used.
            phase: Phase whose processors are used; None means training for `train`, and evaluation
                for the other splits.

        Raises:
            DataError: A path is missing, or a record is bad and `on_error` is "error".
        """
        phase = phase or ("train" if split == "train" else "eval")
        processor = self.processor("vis", phase)
        by_split, problems = self.records_by_split(phase)
        records = (by_split.get(split) or MappedRecords())[: self.config.max_samples]
        self._report_problems(problems, len(records))
        data = StudyDataset(
            records,
            partial(read_media, processor=processor),
            on_error=self.config.on_error,
            seed=self.seed,
            cacheable=processor.deterministic,
            signature=processor.signature(),
            vocabulary=getattr(self.config, "vocabulary", DEFAULT_VOCABULARY),
        )
        return controls.blanked(data) if self.config.blank_images else data

    def records_by_split(self, phase: Phase = "train") -> tuple[RecordsBySplit, list[str]]:
        """Return all records by split (None: not used), and messages about bad records.

        Phases with the same text processor share the result.
        """
        key = repr(self._processor_config("text", phase))
        if key not in self._loaded:
            with memory.pause_gc():
                self._digests[key] = ReportDigests()
                self._loaded[key] = self._load(self.processor("text", phase), self._digests[key])
            memory.release_freed_memory()
        return self._loaded[key]

    def report_digests(self, phase: Phase = "train") -> ReportDigests:
        """Return digests of the reports of each split, to find those that are in two splits."""
        self.records_by_split(phase)
        return self._digests[repr(self._processor_config("text", phase))]

    def _load(
        self, clean: Callable[[str], str], digests: ReportDigests
    ) -> tuple[RecordsBySplit, list[str]]:
        file, names = RecordFile(), SeenNames()
        by_split: RecordsBySplit = {}
        problems: list[str] = []
        for split, record in self.records(clean):
            if isinstance(record, str):
                problems.append(record)
                continue
            count = names.add(record.sample_id)
            if count > 1:  # several questions about one image
                record = replace(record, sample_id=f"{record.sample_id}#{count}")
            if split not in by_split:
                by_split[split] = MappedRecords(file=file)
            by_split[split].append(record)
            digests.add(split, record)
        return by_split, problems

    def processor(self, which: Literal["vis", "text"], phase: Phase) -> Any:
        """Build the processor for a phase; if only one phase has one, both share it."""
        return self._processor_config(which, phase).build(image_spec=self.image_spec)

    def _processor_config(
        self, which: Literal["vis", "text"], phase: Phase
    ) -> BaseProcessor.Config:
        configs = self.config.vis_processor if which == "vis" else self.config.text_processor
        config = configs.get(phase) or configs.get("train" if phase == "eval" else "eval")
        if config is None:
            default = PROCESSORS.get(self.image_spec.processor)
            config = default.Config() if which == "vis" else Identity.Config()
        return config.for_eval() if phase == "eval" and "eval" not in configs else config

    def input_check(self, views: Sequence[str] = ()) -> InputCheck | None:
        """Return the check of images before a model reads them, or None if it is switched off.

        Args:
            views: Views that the model was trained on, unless the configuration names its own.
        """
        if not self.config.input_check:
            return None
        return InputCheck(tuple(self.config.views or views))

    def _report_problems(self, problems: Sequence[str], record_count: int) -> None:
        """Raise an error for bad records or log their number, depending on `on_error`."""
        if not problems:
            return
        if self.config.on_error == "error":
            raise DataError(
                f"{len(problems)} records in {self.config.storage} cannot be used: "
                f"{'; '.join(problems[:3])}. "
                "Fix these records, or set on_error: skip to skip them"
            )
        reasons = Counter(p.partition(": ")[2].split(" (")[0][:60] for p in problems)
        log.warning(
            "%s: %d records skipped, %d kept: %s",
            self.config.storage,
            len(problems),
            record_count,
            "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(5)),
        )

    def key(self, name: str) -> str:
        """Return the YAML key of a setting as the user wrote it: ``datasets.iu_xray.storage``."""
        return f"datasets.{self.label}.{name}" if self.label else name

    def storage_folder(self, name: str, hint: str) -> Path:
        """Return the folder `storage`.

        Args:
            name: Kind of corpus, for the error message.
            hint: How to create the folder, for the error message.

        Raises:
            DataError: The folder does not exist.
        """
        path = Path(self.config.storage)
        if not path.is_dir():
            raise DataError(f"{name}: there is no folder {path} ({self.key('storage')}). {hint}")
        return path


def build_corpora(
    configs: Mapping[str, BaseBuilder.Config], image_spec: ImageSpec, seed: int = 0
) -> list[Any]:
    """Build the builder of every corpus in the section `datasets`, each with its label.

    Args:
        configs: Settings by label.
        image_spec: Input of the vision encoder.
        seed: Seed of random choices.
    """
    builders = []
    for label, config in configs.items():
        builder = config.build(image_spec=image_spec, seed=seed)
        builder.label = label
        builders.append(builder)
    return builders
