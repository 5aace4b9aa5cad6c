"""Frozen features on disk, so that a second epoch, run or stage never encodes an image again.

A feature depends on the encoder's weights, the image processor's settings and the file, and is
stored under a key of exactly these. Layout: ``<cache>/<encoder + processor>/<file>.npy``, float32
(L, D).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from xraygpt.common.errors import DataError, TrainingError
from xraygpt.common.logging import progress
from xraygpt.common.paths import cache_root
from xraygpt.datasets import controls
from xraygpt.datasets.base import ImageRef, ReadImage, StudyDataset
from xraygpt.models.base import BaseModel

log = logging.getLogger(__name__)

BATCH = 16  # images encoded at once


class CachedReader:
    """Reads stored features in place of pixels; encodes and stores what is not there yet.

    Args:
        read_image: What reads the pixels.
        model: Whose frozen encoder makes the features.
        folder: Where they lie.
    """

    def __init__(self, read_image: ReadImage, model: BaseModel, folder: Path) -> None:
        self.read_image, self.model, self.folder = read_image, model, folder

    def __call__(self, ref: ImageRef, draw: str = "") -> Tensor:
        """(L, D) float32 features of one image."""
        path = self.path(ref)
        try:
            return torch.from_numpy(np.load(path, allow_pickle=False))
        except (OSError, ValueError, EOFError):  # not there yet, or cut off by a crash
            return self.encode([ref])[0]

    def black(self) -> Tensor:
        """(L, D) features of a black picture."""
        processor = self.read_image.keywords["processor"]  # type: ignore[attr-defined]
        pixels: Tensor = processor(np.zeros((64, 64), np.float32), "")
        return self._features(pixels[None])[0]

    def path(self, ref: ImageRef) -> Path:
        """Where the features of a file lie; the name changes when the file does.

        Raises:
            DataError: The image is gone.
        """
        try:
            facts = ref.path.stat()
        except OSError as error:
            raise DataError(f"{ref.path}: {error.strerror}") from None
        key = f"{ref.path.resolve()}|{facts.st_size}|{facts.st_mtime_ns}|{ref.frame}"
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    def encode(self, refs: Sequence[ImageRef]) -> Tensor:
        """(N, L, D) features, stored on the way; a file appears whole or not at all.

        Raises:
            TrainingError: They cannot be stored. This is no fault of an image, so nothing skips it.
        """
        features = self._features(torch.stack([self.read_image(ref, "") for ref in refs]))
        for ref, one in zip(refs, features, strict=True):
            path = self.path(ref)
            aside = path.with_suffix(f".tmp-{os.getpid()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with aside.open("wb") as file:
                    np.save(file, one.numpy())
                aside.replace(path)
            except OSError as error:
                raise TrainingError(
                    f"cannot store features under {self.folder}: {error.strerror}. Make room, set "
                    "XRAYGPT_CACHE to another folder, or run.feature_cache to false"
                ) from None
        return features

    def _features(self, pixels: Tensor) -> Tensor:
        device = next(self.model.parameters()).device
        return self.model.encode_frozen(pixels.to(device)).float().cpu()


def use_cache(
    data: StudyDataset, model: BaseModel, encoder: str, accelerator: Accelerator
) -> StudyDataset:
    """Let `data` read features instead of pixels; encodes what is missing, each process its share.

    Args:
        data: Changed in place and returned. Left alone if its processor is random, or if it holds
            features already.
        model: Its frozen encoder is used, on the device it is on.
        encoder: `model.feature_key()`.
        accelerator: Divides the work.
    """
    if controls.is_blank(data):  # only the one black picture is ever encoded
        inner = data.read_image.keywords["read_image"]  # type: ignore[attr-defined]
        reader = CachedReader(inner, model, cache_root())
        # Found here, not in a loader's worker, where CUDA could not be used.
        data.read_image = partial(
            controls.black_image, read_image=reader, known={"black": reader.black()}
        )
        return data
    refs = list(dict.fromkeys(ref for record in data.records for ref in record.images))
    stored = any(ref.path.suffix == ".npy" or ref.frame is None for ref in refs)
    if not refs or stored or not data.cacheable or isinstance(data.read_image, CachedReader):
        return data
    key = json.dumps({"encoder": encoder, "processor": data.signature}, sort_keys=True)
    folder = cache_root() / "features" / hashlib.sha256(key.encode()).hexdigest()[:24]
    reader = CachedReader(data.read_image, model, folder)
    missing = [ref for ref in refs if not reader.path(ref).is_file()]
    accelerator.wait_for_everyone()  # before anyone writes: all must divide the same list
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if missing:
        log.info("encoding %d images once; features go to %s", len(missing), folder)
    chunks = [mine[i : i + BATCH] for i in range(0, len(mine), BATCH)]
    for chunk in progress(
        chunks, "encoding", unit="batch", disable=not accelerator.is_main_process
    ):
        _encode_readable(reader, chunk)
    accelerator.wait_for_everyone()
    data.read_image = reader
    return data


def _encode_readable(reader: CachedReader, refs: Sequence[ImageRef]) -> None:
    """Encode a batch; if one image is bad, the others alone. The bad one speaks up when used."""
    try:
        reader.encode(refs)
    except ValueError:
        for ref in refs:
            try:
                reader.encode([ref])
            except ValueError as error:
                log.warning("cannot encode: %s", error)
