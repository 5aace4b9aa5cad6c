"""On-disk cache of the features of frozen encoders, so that no image is encoded twice.

Features depend on the encoder's weights, the image processor's settings and the image file, and
the cache key is built from exactly these. ``<cache>/features/<encoder + processor>/`` is a
`TensorStore` of (L, D) tensors. The name of each tensor is derived from the path, size and
modification time of the file, the frame and, if images are augmented, the number of the view.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from xraygpt.common import distributed
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, TrainingError
from xraygpt.common.keyed_random import keyed_int
from xraygpt.common.logging import progress
from xraygpt.common.paths import cache_root, resolve_cached
from xraygpt.datasets import controls
from xraygpt.datasets.base import ReadMedia, StudyDataset
from xraygpt.features.tensor_store import TensorStore, evict_stores, mark_used
from xraygpt.media.base import Media, MediaRef, read_digest
from xraygpt.media.content import BLACK
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import FrozenFeatures, require

log = logging.getLogger(__name__)

BATCH_SIZE = 16  # images encoded at once
_IN_USE: set[Path] = set()  # stores that this process uses and must not evict

View = tuple[MediaRef, int]  # an image and the number of its augmented view


@dataclass(kw_only=True)
class FeatureStore:
    """Settings of the feature cache."""

    dtype: Literal["float32", "float16"] = "float32"
    """Data type of the stored features. float16 halves their size, but changes the fourth digit."""
    views: int = 0
    """Number of augmented views to store for each image; every epoch uses one of them. With 0, no
    augmented images are stored, and every epoch augments and encodes them again."""
    max_gb: float | None = None
    """Limit in gigabytes (1e9 bytes) for all stored features; the least recently used are evicted
    first. Images that do not fit are encoded on every read. None means the free disk space."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(0, "views")
            check.above(0, "max_gb")


class CachedReader:
    """Reads stored features instead of pixels, and encodes images whose features are not stored.

    Args:
        read_media: Reads the pixels.
        model: Model with the frozen encoder.
        store: Stored features.
        settings: Settings of the cache.
        views: Number of stored views of each image; 0 if images are not augmented.
    """

    def __init__(
        self,
        read_media: ReadMedia,
        model: BaseModel,
        store: TensorStore,
        settings: FeatureStore,
        views: int,
    ) -> None:
        self.read_media, self.model, self.store, self.views = read_media, model, store, views
        self.dtype = getattr(torch, settings.dtype)
        self.encoder = require(model, FrozenFeatures)

    def __call__(self, ref: MediaRef, rng_key: str = "") -> Media:
        """Return the float32 features of one image, of shape (L, D)."""
        view = keyed_int(rng_key, "view") % self.views if self.views else 0
        features = self.store.get(self.name(ref, view))
        if features is None:  # the file has changed, or there was no room
            self._refuse_in_worker(ref)
            pixels = read_pixels(self.read_media, ref, view, self.views)
            features = self.encode(pixels[None])[0]
        return Media(features.float(), "embedding", ref.view, content=self._content(ref))

    def _content(self, ref: MediaRef) -> Callable[[], str]:
        """Return a function that reads the digest of the pixels, as it is rarely needed."""
        processor = getattr(self.read_media, "keywords", {}).get("processor")
        return partial(read_digest, ref, getattr(processor, "min_side", None))

    def _refuse_in_worker(self, ref: MediaRef) -> None:
        """Refuse to encode in a worker: a process forked from one that uses CUDA cannot use it."""
        if self.model.device.type == "cuda" and get_worker_info() is not None:
            raise TrainingError(
                f"{ref.path}: its features are not stored, and a worker cannot encode on a GPU; "
                "set run.num_workers to 0 or increase run.feature_store.max_gb"
            )

    def black(self) -> Media:
        """Return the features of a black image, of shape (L, D)."""
        processor = self.read_media.keywords["processor"]  # type: ignore[attr-defined]
        pixels: Tensor = processor(np.zeros((64, 64), np.float32), "")
        return Media(self.encode(pixels[None])[0].float(), "embedding", content=BLACK)

    def name(self, ref: MediaRef, view: int) -> str:
        """Return the name of a view in the store; the name changes when the file does.

        Raises:
            DataError: The image is missing.
        """
        return store_name(ref, f"|{view}" if self.views else "")

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (N, C, H, W) as features (N, L, D) in the dtype of the store."""
        return self.encoder.encode_frozen(images.to(self.model.device)).to(self.dtype).cpu()


def store_name(ref: MediaRef, suffix: str = "") -> str:
    """Return the name of a medium in a store; the name changes when its files do.

    Args:
        ref: The medium.
        suffix: What else its features depend on.

    Raises:
        DataError: A file is missing.
    """
    key = f"{_file_key(ref.path)}|{ref.index}"
    key += f"|{ref.tensor}" if ref.tensor else ""
    key += f"|{ref.frames}" if ref.frames else ""
    key += f"|{ref.sampling}" if ref.sampling else ""
    key += "".join(f"|{_file_key(Path(file))}" for file in ref.frame_files)
    key += "|mirrored" if ref.mirrored else ""
    return hashlib.sha256(f"{key}{suffix}".encode()).hexdigest()[:32]


def _file_key(path: Path) -> str:
    """Return a text that changes when the file does.

    Raises:
        DataError: The file is missing.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    return f"{resolve_cached(path)}|{stat.st_size}|{stat.st_mtime_ns}"


def read_pixels(read_media: ReadMedia, ref: MediaRef, view: int, views: int) -> Tensor:
    """Return the pixels of one image, (C, H, W); augmented views are the same in every run.

    Args:
        read_media: Reads and processes the file.
        ref: The image.
        view: Number of the augmented view.
        views: Number of augmented views; 0 if images are not augmented.

    Raises:
        DataError: The image cannot be read.
    """
    rng_key = f"view {view} of {resolve_cached(ref.path)} {ref.index}{ref.tensor}"
    return read_media(ref, rng_key if views else "").data


def use_cache(
    data: StudyDataset,
    model: BaseModel,
    encoder: str,
    accelerator: Accelerator,
    settings: FeatureStore | None = None,
    workers: int = 0,
) -> StudyDataset:
    """Make a dataset read features instead of pixels, and store missing features.

    Args:
        data: Dataset, modified in place. It is unchanged if its images are augmented and no views
            are to be stored, if it has no images of a fixed size, or if it already reads features.
        model: Model with the frozen encoder, which runs on the model's device.
        encoder: Key of the encoder, from `model.feature_key()`.
        accelerator: Distributes the encoding over the processes.
        settings: Settings of the cache; None uses the defaults.
        workers: Number of processes that read images during encoding.

    Returns:
        The dataset `data`.

    Raises:
        TrainingError: Features cannot be stored. `on_error` does not apply, because no image is at
            fault.
    """
    settings = settings or FeatureStore()
    root = cache_root() / "features"
    if controls.is_blank(data):
        _use_black_features(data, model, TensorStore(root), settings)
        return data
    refs = data.media_refs()
    views = 0 if data.cacheable else settings.views
    if not _can_cache(data, refs) or not (data.cacheable or views):
        return data
    facts = {"encoder": encoder, "processor": data.signature, "dtype": settings.dtype}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    folder = root / key
    reader = CachedReader(data.read_media, model, TensorStore(folder), settings, views)
    missing = _missing_views(reader, refs)
    _IN_USE.add(folder)
    with contextlib.suppress(OSError):  # a complete store may be read-only
        mark_used(folder)
    if missing:
        _store_features(reader, missing, settings, accelerator, workers)
    accelerator.wait_for_everyone()
    reader.store.refresh()
    data.read_media = reader
    return data


def _use_black_features(
    data: StudyDataset, model: BaseModel, store: TensorStore, settings: FeatureStore
) -> None:
    """Encode the black image of a blanked dataset here, as loader workers cannot use CUDA."""
    inner = data.read_media.keywords["read_media"]  # type: ignore[attr-defined]
    reader = CachedReader(inner, model, store, settings, 0)
    data.read_media = partial(
        controls.read_black_image, read_media=reader, cache={"black": reader.black()}
    )


def _can_cache(data: StudyDataset, refs: Sequence[MediaRef]) -> bool:
    """Return whether a dataset consists of images that are processed to a fixed size."""
    if not refs or isinstance(data.read_media, CachedReader):
        return False
    processor = getattr(data.read_media, "keywords", {}).get("processor")
    return all(ref.kind == "image" for ref in refs) and getattr(processor, "fixed_size", True)


def _missing_views(reader: CachedReader, refs: Sequence[MediaRef]) -> list[View]:
    """Return the views that are not stored; the list is the same in every process."""
    views = [(ref, view) for ref in refs for view in range(max(1, reader.views))]
    missing = [i for i, view in enumerate(views) if reader.name(*view) not in reader.store]
    return [views[i] for i in distributed.broadcast(missing)]


def _store_features(
    reader: CachedReader,
    missing: Sequence[View],
    settings: FeatureStore,
    accelerator: Accelerator,
    workers: int,
) -> None:
    """Encode and store views, distributed over the processes.

    Raises:
        TrainingError: The features cannot be stored.
    """
    folder = reader.store.folder
    local = missing[accelerator.process_index :: accelerator.num_processes]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        log.info("encoding %d images once; their features are written to %s", len(missing), folder)
        needed = len(missing) * reader.black().data.to(reader.dtype).nbytes
        room = _make_room(folder, needed, settings, accelerator)
        _encode(reader, local, room * len(local) // len(missing), accelerator, workers)
    except OSError as error:
        raise TrainingError(
            f"cannot store features in {folder}: {error.strerror or error}; free disk space, set "
            "XRAYGPT_CACHE to another folder, or set run.feature_cache to false"
        ) from None


class _PixelDataset(Dataset[Any]):
    """Images to encode, read by workers; an unreadable image is replaced by its error message."""

    def __init__(self, read_media: ReadMedia, images: Sequence[View], views: int) -> None:
        self.read_media, self.images, self.views = read_media, images, views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor | str:
        try:
            return read_pixels(self.read_media, *self.images[i], self.views)
        except ValueError as error:
            return str(error)


def _encode(
    reader: CachedReader,
    images: Sequence[View],
    room: int,
    accelerator: Accelerator,
    workers: int,
) -> None:
    """Encode images and store up to `room` bytes of features.

    An unreadable image causes only a warning here, but an error when it is used.
    """
    loader: DataLoader[Any] = DataLoader(
        _PixelDataset(reader.read_media, images, reader.views),
        batch_size=BATCH_SIZE,
        collate_fn=list,
        num_workers=workers,
        generator=torch.Generator(),  # encoding must not change the run's random state
    )
    hidden = not accelerator.is_main_process
    try:
        for n, batch in enumerate(progress(loader, "encoding", unit="batch", disable=hidden)):
            for message in (x for x in batch if not isinstance(x, Tensor)):
                log.warning("cannot encode an image: %s", message)
            readable = [
                (i, x) for i, x in enumerate(batch, n * BATCH_SIZE) if isinstance(x, Tensor)
            ]
            if not readable:
                continue
            features = reader.encode(torch.stack([pixels for _, pixels in readable]))
            room -= features.nbytes
            if room < 0:
                remaining = len(images) - n * BATCH_SIZE
                log.warning(
                    "run.feature_store.max_gb is reached; features of %d images are not stored",
                    remaining,
                )
                break
            for (i, _), image_features in zip(readable, features, strict=True):
                reader.store.put(reader.name(*images[i]), image_features)
    finally:
        reader.store.flush()


def _make_room(folder: Path, needed: int, settings: FeatureStore, accelerator: Accelerator) -> int:
    """Evict other stores and return the number of bytes that may be stored.

    The main process determines this number for all processes.

    Raises:
        OSError: The disk has less free space; raised in every process.
    """
    room, free = needed, 0
    if accelerator.is_main_process:
        if settings.max_gb is not None:
            max_bytes = int(settings.max_gb * 1e9)
            room = min(needed, evict_stores(folder.parent, needed, max_bytes, keep=_IN_USE))
        free = shutil.disk_usage(folder).free
    room, free = distributed.broadcast((room, free))
    if room > free:
        raise OSError(f"{room / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")
    return room
