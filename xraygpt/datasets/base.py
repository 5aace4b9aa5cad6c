"""Data types shared by corpora and models: `Record`, `Sample`, `Batch` and `StudyDataset`.

Notation: a batch has B rows of T tokens and N images; an image has C channels, height H and width
W; a clip has F frames; pre-computed features have L tokens of width D.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

from torch import Tensor
from torch.utils.data import Dataset

from xraygpt.common.errors import DataError
from xraygpt.media.base import Kind, Media, MediaRef, read_media_file
from xraygpt.media.geometry import Geometry
from xraygpt.processors.base import BaseProcessor
from xraygpt.prompting.renderer import Turn

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test", "lockbox"]
DEFAULT_VOCABULARY = "chest_xray"


class Sample(TypedDict):
    """One item of a dataset: a study, or a question about one."""

    sample_id: str
    study_id: str
    media: list[Media]  # processed
    turns: list[Turn]  # their text contains one `<image>` or `<video>` per medium
    meta: dict[
        str, Any
    ]  # views, codes, boxes (normalised xyxy on the original image), source, licence
    rng_key: str  # seeds every random choice made for this sample: seed, epoch, sample_id


class MediaRun(NamedTuple):
    """Position of one medium's tokens in a batch."""

    row: int
    kind: Kind
    start: int  # column of the first token, including padding
    length: int


class Original(NamedTuple):
    """Size of the image that a medium was made from, before processing."""

    height: int  # pixels
    width: int
    geometry: Geometry  # maps its normalised coordinates to those of the model input


class Batch(TypedDict):
    """Input of every model. Right-padded for training, left-padded for generation."""

    input_ids: Tensor  # (B, T) int64; IMAGE_TOKEN_ID for every token of a medium
    labels: Tensor  # (B, T) int64, not shifted; IGNORE_INDEX outside the answers
    attention_mask: Tensor  # (B, T) int64, 1 on tokens, 0 on padding
    runs: list[MediaRun]  # one per medium, row by row, in the order of the text
    originals: list[Original | None]  # one per run; None if the processor provides no geometry
    media_inputs: dict[str, Tensor]  # output of the model's media collator
    extra: dict[str, Tensor]  # further inputs for the task, each (B, …); see `BaseTask.extra`
    question: list[str]  # one per row, without marks, for models that read it with the image
    content_key: list[Callable[[], str]]  # one per row: computes a key of its media's content
    sample_id: list[str]  # one per row; empty for a row that only fills an empty batch
    meta: NotRequired[list[dict[str, Any]]]  # `Sample.meta` of each row, in prompts only
    task: NotRequired[str]  # name of the task, in evaluation and prediction only
    skipped: int  # samples skipped because a medium could not be read


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before its media are read.

    Attributes:
        sample_id: Id of the sample, unique in the corpus.
        study_id: Id of the study that the sample belongs to.
        media: References to its media.
        turns: The conversation, or a function of `rng_key` that samples it anew each epoch.
        meta: Copied to `Sample.meta`.
    """

    sample_id: str
    study_id: str
    media: tuple[MediaRef, ...]
    turns: tuple[Turn, ...] | Callable[[str], Sequence[Turn]]
    meta: dict[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        return Record, (self.sample_id, self.study_id, self.media, self.turns, self.meta)

    def get_turns(self, rng_key: str) -> list[Turn]:
        """Return the turns for one RNG key."""
        return list(self.turns(rng_key) if callable(self.turns) else self.turns)


ReadMedia = Callable[[MediaRef, str], Media]  # (reference, rng_key) -> item of `Sample.media`


class StudyDataset(Dataset[Sample | None]):
    """Records and a function that reads their media; nothing is decoded before `__getitem__`.

    Args:
        records: The records.
        read_media: Reads and processes one medium. The feature cache replaces it with its own.
        on_error: Whether an unreadable medium raises an error or its sample is skipped.
        seed: Part of every sample's `rng_key`.
        cacheable: Whether the result of `read_media` depends only on the file.
        signature: Signature of the image processor, for the cache key.
        vocabulary: Name of the vocabulary for the reports.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read_media: ReadMedia,
        *,
        on_error: Literal["error", "skip"] = "error",
        seed: int = 0,
        cacheable: bool = True,
        signature: dict[str, Any] | None = None,
        vocabulary: str = DEFAULT_VOCABULARY,
    ) -> None:
        self.records, self.read_media, self.on_error = records, read_media, on_error
        self.seed, self.cacheable, self.signature = seed, cacheable, signature or {}
        self.vocabulary = vocabulary

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:
        """Read one sample, or return None if it is skipped.

        Args:
            key: ``index`` (epoch 0) or ``(index, epoch)``.

        Raises:
            DataError: A medium cannot be read and `on_error` is "error".
        """
        index, epoch = (key, 0) if isinstance(key, int) else key
        record = self.records[index]
        rng_key = self.get_rng_key(record, epoch)
        try:
            media = self._read_all(record.media, rng_key)
        except ValueError as error:  # includes DataError, but not a full disk
            if self.on_error == "skip":
                log.warning("skipped %s: %s", record.sample_id, error)
                return None
            raise DataError(
                f"sample {record.sample_id}: {error} "
                "(set on_error: skip to skip and count such samples)"
            ) from None
        return Sample(
            sample_id=record.sample_id,
            study_id=record.study_id,
            media=media,
            turns=record.get_turns(rng_key),
            meta=record.meta,
            rng_key=rng_key,
        )

    def _read_all(self, refs: Sequence[MediaRef], rng_key: str) -> list[Media]:
        """Read the media of a record; a reader may treat them together, with `read_all`."""
        read_all = getattr(self.read_media, "read_all", None)
        if read_all is not None:
            media: list[Media] = read_all(refs, rng_key)
            return media
        return [self.read_media(ref, rng_key) for ref in refs]

    def get_rng_key(self, record: Record, epoch: int = 0) -> str:
        """Return the `Sample.rng_key` of a record in one epoch."""
        return f"{self.seed}/{epoch}/{record.sample_id}"

    def get_turns(self, index: int, epoch: int = 0) -> list[Turn]:
        """Return the turns of a sample without reading its media."""
        record = self.records[index]
        return record.get_turns(self.get_rng_key(record, epoch))

    def digest(self) -> str:
        """Return the SHA-256 of the sample ids, media, turns and meta, to detect changed data."""
        sha = hashlib.sha256()
        for i, record in enumerate(self.records):
            media = [ref.identity for ref in record.media]
            row = [record.sample_id, media, self.get_turns(i), record.meta]
            sha.update(json.dumps(row, default=str).encode())
        return sha.hexdigest()

    def media_refs(self) -> list[MediaRef]:
        """Return all distinct media, in order."""
        records = self.records
        read_all_media = getattr(records, "media", None)  # avoids unpickling whole records
        all_media = read_all_media() if read_all_media else (record.media for record in records)
        return list(dict.fromkeys(ref for refs in all_media for ref in refs))

    def texts(self) -> Iterator[str]:
        """Yield the texts of all turns of all samples, in order, to train tokenizers."""
        return (t["text"] for i in range(len(self)) for t in self.get_turns(i))


def reference_text(turns: Sequence[Turn]) -> str:
    """Return the last answer, which predictions are compared with, or "" if there is none."""
    return next((t["text"] for t in reversed(turns) if t["role"] == "assistant"), "")


def read_media(
    ref: MediaRef,
    rng_key: str,
    processor: BaseProcessor,
    check: Callable[[Media], tuple[str, ...]] | None = None,
) -> Media:
    """Read and process one medium; embeddings are not processed.

    Args:
        ref: The medium.
        rng_key: Seeds the processor's random choices.
        processor: The image processor.
        check: Returns the `warnings` of a medium as read, such as `InputCheck`; None, as in
            training, checks nothing.

    Raises:
        DataError: The file cannot be read.
    """
    media = read_media_file(
        ref,
        min_side=getattr(processor, "min_side", None),
        uint8=getattr(processor, "reads_uint8", False),
    )
    if media.kind == "embedding":
        return media
    processed = processor.process(media, rng_key)
    return processed if check is None else replace(processed, warnings=check(media))
