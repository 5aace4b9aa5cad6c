"""What every corpus becomes: `Sample`s out of a `StudyDataset`; a `Batch` is what a model receives.

This file is the interface of the framework. Notation: B rows, T tokens, N images of a batch, C H W
of an image, F frames of a clip, L tokens and D width of pre-computed features.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from xraygpt.common.errors import DataError
from xraygpt.processors.pixels import read_image
from xraygpt.processors.prompts import Turn

log = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]


class Sample(TypedDict):
    """What every dataset returns: a study, or a question about one."""

    sample_id: str
    study_id: str
    images: list[Tensor]  # each (C, H, W) float32, (F, C, H, W) for a clip, (L, D) if pre-encoded
    turns: list[Turn]  # the text of a turn holds one `<image>` per image
    meta: dict[
        str, Any
    ]  # views, codes, boxes (normalised xyxy on the original image), source, licence
    draw: str  # keys every random draw made for this sample: seed, epoch, sample_id


class Batch(TypedDict):
    """What every model receives. Right-padded to train, left-padded to generate."""

    input_ids: Tensor  # (B, T) int64; IMAGE_TOKEN_ID at every token of an image
    labels: (
        Tensor  # (B, T) int64, aligned with input_ids (not shifted); IGNORE_INDEX off the answers
    )
    attention_mask: Tensor  # (B, T) int64, 1 on tokens, 0 on padding
    image_inputs: dict[
        str, Tensor
    ]  # pixel_values (N, C, H, W), or features (N, L, D) with their mask
    extra: dict[str, Tensor]  # what the task wants beside: each (B, …), see `BaseTask.extra`
    question: list[str]  # B; what is asked, without marks, for models that read it with the image
    told: NotRequired[list[list[str]]]  # B; findings told beside the images, in words
    sample_id: list[str]  # B; an empty string marks a row that only fills an empty batch
    skipped: int  # samples left out because their image could not be read


class _Where(NamedTuple):
    file: str
    view: str
    frame: int | None


class ImageRef(_Where):
    """Where one image lies, not yet read.

    Args:
        path: Kept as text, which takes a tenth of a `Path`'s time in a large corpus.
        view: PA, AP, LATERAL, frontal … as the corpus spells it.
        frame: Of a multi-frame DICOM; None takes all of them as one clip.
    """

    __slots__ = ()

    def __new__(cls, path: Path | str, view: str = "", frame: int | None = 0) -> ImageRef:
        """Made from a path of either kind."""
        return super().__new__(cls, os.fspath(path), view, frame)

    @property
    def path(self) -> Path:
        """`file` as a path."""
        return Path(self.file)

    @property
    def name(self) -> str:
        """The last part of it."""
        return self.file.rpartition(os.sep)[2]


@dataclass(frozen=True, slots=True)
class Record:
    """One sample before its images are read."""

    sample_id: str
    study_id: str
    images: tuple[ImageRef, ...]
    turns: tuple[Turn, ...] | Callable[[str], Sequence[Turn]]  # a function draws them, by `draw`
    meta: dict[str, Any] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:
        """As `ImageRef`'s."""
        return Record, (self.sample_id, self.study_id, self.images, self.turns, self.meta)


ReadImage = Callable[[ImageRef, str], Tensor]  # (where, draw) -> what `Sample.images` holds


class StudyDataset(Dataset[Sample | None]):
    """Records and a way to read their images; nothing is decoded before `__getitem__`.

    Args:
        records: What there is.
        read_image: Reads and processes one image. The feature cache puts its own in this place.
        on_error: What an unreadable image does: stop, or leave the sample out.
        seed: Goes into every sample's `draw`.
        cacheable: Whether `read_image` depends on the file alone.
    """

    def __init__(
        self,
        records: Sequence[Record],
        read_image: ReadImage,
        *,
        on_error: Literal["error", "skip"] = "error",
        seed: int = 0,
        cacheable: bool = True,
        signature: dict[str, Any] | None = None,
    ) -> None:
        self.records, self.read_image, self.on_error = records, read_image, on_error
        self.seed, self.cacheable, self.signature = seed, cacheable, signature or {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | None:
        """The sample at `index`, with the draws of `epoch`; None if it is left out.

        Args:
            key: ``index`` (epoch 0) or ``(index, epoch)``.

        Raises:
            DataError: An image cannot be read and `on_error` is "error".
        """
        index, epoch = (key, 0) if isinstance(key, int) else key
        record = self.records[index]
        draw = self.draw_of(record, epoch)
        try:
            images = [self.read_image(ref, draw) for ref in record.images]
        except ValueError as error:  # DataError is one; a full disk is none
            if self.on_error == "skip":
                log.warning("skipped %s: %s", record.sample_id, error)
                return None
            raise DataError(
                f"sample {record.sample_id}: {error} "
                "(on_error: skip leaves such samples out and counts them)"
            ) from None
        turns = record.turns(draw) if callable(record.turns) else record.turns
        return Sample(
            sample_id=record.sample_id,
            study_id=record.study_id,
            images=images,
            turns=list(turns),
            meta=record.meta,
            draw=draw,
        )

    def draw_of(self, record: Record, epoch: int = 0) -> str:
        """`Sample.draw`."""
        return f"{self.seed}/{epoch}/{record.sample_id}"

    def turns_of(self, index: int, epoch: int = 0) -> list[Turn]:
        """The turns of a sample without reading its images."""
        record = self.records[index]
        draw = self.draw_of(record, epoch)
        return list(record.turns(draw) if callable(record.turns) else record.turns)

    def digest(self) -> str:
        """SHA-256 over sample ids, image paths and turns: changes when the annotations do."""
        sha = hashlib.sha256()
        for i, record in enumerate(self.records):
            row = [record.sample_id, [str(r.path) for r in record.images], self.turns_of(i)]
            sha.update(json.dumps(row).encode())
        return sha.hexdigest()

    def image_refs(self) -> list[ImageRef]:
        """Every image once, in order."""
        records = self.records
        each = getattr(records, "images", None)  # what is packed need not be unpacked whole
        listed = each() if each else (record.images for record in records)
        return list(dict.fromkeys(ref for refs in listed for ref in refs))

    def texts(self) -> list[str]:
        """Every text a tokenizer may learn from: all turns of all samples, in order."""
        return [t["text"] for i in range(len(self)) for t in self.turns_of(i)]


def reference_of(turns: Sequence[Turn]) -> str:
    """The last answer: what a prediction is compared with."""
    return next((t["text"] for t in reversed(turns) if t["role"] == "assistant"), "")


def read_tensor(ref: ImageRef, draw: str, processor: Any) -> Tensor:
    """One image as `Sample.images` holds it; `.npy` files are features (L, D), not processed.

    Raises:
        ValueError: The file cannot be read; says which, why and what to do.
    """
    if ref.path.suffix == ".npy":
        features = torch.from_numpy(np.load(ref.path, allow_pickle=False)).float()
        if features.dim() == 1:
            features = features[None]
        if features.dim() != 2:
            raise ValueError(f"{ref.path}: features must be (L, D), got {tuple(features.shape)}")
        return features
    enough = getattr(processor, "at_least", None)
    tensor: Tensor = processor(read_image(ref.path, frame=ref.frame, at_least=enough).pixels, draw)
    return tensor
