"""What every corpus becomes: `Sample`s out of a `StudyDataset`; a `Batch` is what a model receives.

This file is the interface of the framework. Notation: B rows, T tokens, N images of a batch, C H W
of an image, F frames of a clip, L tokens and D width of pre-computed features.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypedDict

from torch import Tensor
from torch.utils.data import Dataset

from xraygpt.common.errors import DataError
from xraygpt.media.base import Kind, Media, MediaRef, read
from xraygpt.media.geometry import Geometry
from xraygpt.processors.base import BaseProcessor
from xraygpt.prompting.renderer import Turn

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
DEFAULT_VOCABULARY = "chest_xray"


class Sample(TypedDict):
    """What every dataset returns: a study, or a question about one."""

    sample_id: str
    study_id: str
    media: list[Media]  # as their processor made them
    turns: list[Turn]  # the text of a turn holds one `<image>` or `<video>` per medium
    meta: dict[
        str, Any
    ]  # views, codes, boxes (normalised xyxy on the original image), source, licence
    rng_key: str  # keys every random draw made for this sample: seed, epoch, sample_id


class MediaRun(NamedTuple):
    """Where the tokens of one medium stand in a batch."""

    row: int
    kind: Kind
    start: int  # column of the first token, padding counted
    length: int


class Original(NamedTuple):
    """The picture that a medium of a batch was made of."""

    height: int  # pixels
    width: int
    geometry: Geometry  # its normalised coordinates -> those of what the model sees


class Batch(TypedDict):
    """What every model receives. Right-padded to train, left-padded to generate."""

    input_ids: Tensor  # (B, T) int64; IMAGE_TOKEN_ID at every token of a medium
    labels: (
        Tensor  # (B, T) int64, aligned with input_ids (not shifted); IGNORE_INDEX off the answers
    )
    attention_mask: Tensor  # (B, T) int64, 1 on tokens, 0 on padding
    runs: list[MediaRun]  # of all media, row by row, in the order of their text
    originals: list[Original | None]  # of each run; None where its processor does not say
    media_inputs: dict[str, Tensor]  # what the model's packer made of them
    extra: dict[str, Tensor]  # what the task wants beside: each (B, …), see `BaseTask.extra`
    question: list[str]  # B; what is asked, without marks, for models that read it with the image
    sample_id: list[str]  # B; an empty string marks a row that only fills an empty batch
    skipped: int  # samples left out because a medium could not be read


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before its media are read."""

    sample_id: str
    study_id: str
    media: tuple[MediaRef, ...]
    turns: tuple[Turn, ...] | Callable[[str], Sequence[Turn]]  # a function draws them, by `rng_key`
    meta: dict[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[object, ...]:
        """Pickled as its fields."""
        return Record, (self.sample_id, self.study_id, self.media, self.turns, self.meta)


ReadMedia = Callable[[MediaRef, str], Media]  # (where, draw) -> what `Sample.media` holds


class StudyDataset(Dataset[Sample | None]):
    """Records and a way to read their media; nothing is decoded before `__getitem__`.

    Args:
        records: What there is.
        read_media: Reads and processes one medium. The feature cache puts its own in this place.
        on_error: What an unreadable medium does: stop, or leave the sample out.
        seed: Goes into every sample's `rng_key`.
        vocabulary: Name of the vocabulary that reads its reports.
        cacheable: Whether `read_media` depends on the file alone.
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
        """The sample at `index`, with the draws of `epoch`; None if it is left out.

        Args:
            key: ``index`` (epoch 0) or ``(index, epoch)``.

        Raises:
            DataError: A medium cannot be read and `on_error` is "error".
        """
        index, epoch = (key, 0) if isinstance(key, int) else key
        record = self.records[index]
        rng_key = self.rng_key_of(record, epoch)
        try:
            media = [self.read_media(ref, rng_key) for ref in record.media]
        except ValueError as error:  # DataError is one; a full disk is none
            if self.on_error == "skip":
                log.warning("skipped %s: %s", record.sample_id, error)
                return None
            raise DataError(
                f"sample {record.sample_id}: {error} "
                "(on_error: skip leaves such samples out and counts them)"
            ) from None
        turns = record.turns(rng_key) if callable(record.turns) else record.turns
        return Sample(
            sample_id=record.sample_id,
            study_id=record.study_id,
            media=media,
            turns=list(turns),
            meta=record.meta,
            rng_key=rng_key,
        )

    def rng_key_of(self, record: Record, epoch: int = 0) -> str:
        """`Sample.rng_key`."""
        return f"{self.seed}/{epoch}/{record.sample_id}"

    def turns_of(self, index: int, epoch: int = 0) -> list[Turn]:
        """The turns of a sample without reading its media."""
        record = self.records[index]
        rng_key = self.rng_key_of(record, epoch)
        return list(record.turns(rng_key) if callable(record.turns) else record.turns)

    def digest(self) -> str:
        """SHA-256 over sample ids, media, turns and meta: changes when the annotations do."""
        sha = hashlib.sha256()
        for i, record in enumerate(self.records):
            media = [list(ref) for ref in record.media]
            row = [record.sample_id, media, self.turns_of(i), record.meta]
            sha.update(json.dumps(row, default=str).encode())
        return sha.hexdigest()

    def media_refs(self) -> list[MediaRef]:
        """Every medium once, in order."""
        records = self.records
        each = getattr(records, "media", None)  # what is packed need not be unpacked whole
        listed = each() if each else (record.media for record in records)
        return list(dict.fromkeys(ref for refs in listed for ref in refs))

    def texts(self) -> list[str]:
        """Every text a tokenizer may learn from: all turns of all samples, in order."""
        return [t["text"] for i in range(len(self)) for t in self.turns_of(i)]


def reference_of(turns: Sequence[Turn]) -> str:
    """The last answer: what a prediction is compared with."""
    return next((t["text"] for t in reversed(turns) if t["role"] == "assistant"), "")


def read_media(ref: MediaRef, rng_key: str, processor: BaseProcessor) -> Media:
    """One medium as `Sample.media` holds it; embeddings are not processed.

    Raises:
        DataError: The file cannot be read; says which, why and what to do.
    """
    media = read(ref, at_least=getattr(processor, "at_least", None))
    return media if media.kind == "embedding" else processor.process(media, rng_key)
