"""Frozen features on disk, so that a second epoch, run or stage never encodes an image again.

A feature depends on the encoder's weights, the image processor's settings and the file, and is
stored under a key of exactly these. Layout: ``<cache>/features/<encoder + processor>/`` is a
`TensorStore`: (L, D) under a name made of the file, its size and time, the
frame, and the view where images are augmented.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Sequence
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
from xraygpt.common.paths import cache_root, real
from xraygpt.datasets import controls
from xraygpt.datasets.base import ReadMedia, StudyDataset
from xraygpt.features.tensor_store import TensorStore, make_room, used_now
from xraygpt.media.base import Media, MediaRef
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import FrozenFeatures, require

log = logging.getLogger(__name__)

BATCH = 16  # images encoded at once
_IN_USE: set[Path] = set()  # stores of this process: it makes no room at its own cost


@dataclass(kw_only=True)
class FeatureStore:
    """How frozen features are stored."""

    dtype: Literal["float32", "float16"] = "float32"
    """float16 halves the room; features then differ in the fourth digit."""
    views: int = 0
    """Of each augmented image so many draws are stored, and every epoch takes one of them; 0 stores
    no augmented image, so that every epoch draws and encodes anew."""
    max_gb: float | None = None
    """Most gigabytes (1e9 bytes) of all stored features; those unused for longest go first. What
    has no room is encoded whenever it is read. None: as the disk has room."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(0, "views")
            check.above(0, "max_gb")


class CachedReader:
    """Reads stored features in place of pixels; encodes what is not there.

    Args:
        read_media: What reads the pixels.
        model: Whose frozen encoder makes the features.
        store: Where they lie.
        how: Its settings.
        views: Stored draws of each image; 0: images are not augmented.
    """

    def __init__(
        self,
        read_media: ReadMedia,
        model: BaseModel,
        store: TensorStore,
        how: FeatureStore,
        views: int,
    ) -> None:
        self.read_media, self.model, self.store, self.views = read_media, model, store, views
        self.dtype = getattr(torch, how.dtype)
        self.encoder = require(model, FrozenFeatures)

    def __call__(self, ref: MediaRef, rng_key: str = "") -> Media:
        """(L, D) float32 features of one image."""
        view = keyed_int(rng_key, "view") % self.views if self.views else 0
        stored = self.store.get(self.name(ref, view))
        if stored is None:  # changed since, or there was no room
            self._refuse_in_worker(ref)
            stored = self.features(pixels(self.read_media, ref, view, self.views)[None])[0]
        return Media(stored.float(), "embedding", ref.view)

    def _refuse_in_worker(self, ref: MediaRef) -> None:
        """CUDA cannot be used in a process that was forked from one that uses it."""
        if self.model.device.type == "cuda" and get_worker_info() is not None:
            raise TrainingError(
                f"{ref.path}: its features are not stored, and a worker cannot encode on a GPU: "
                "set run.num_workers: 0, or a larger run.feature_store.max_gb"
            )

    def black(self) -> Media:
        """(L, D) features of a black picture."""
        processor = self.read_media.keywords["processor"]  # type: ignore[attr-defined]
        picture: Tensor = processor(np.zeros((64, 64), np.float32), "")
        return Media(self.features(picture[None])[0].float(), "embedding")

    def name(self, ref: MediaRef, view: int) -> str:
        """Under which a view is stored; changes when the file does.

        Raises:
            DataError: The image is gone.
        """
        try:
            facts = ref.path.stat()
        except OSError as error:
            raise DataError(f"{ref.path}: {error.strerror}") from None
        key = f"{real(ref.path)}|{facts.st_size}|{facts.st_mtime_ns}|{ref.index}"
        key += f"|{ref.tensor}" if ref.tensor else ""
        key += "|mirrored" if ref.mirrored else ""
        if self.views:
            key += f"|{view}"
        return hashlib.sha256(key.encode()).hexdigest()[:32]

    def features(self, images: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, L, D) as they are stored."""
        place = self.model.device
        return self.encoder.encode_frozen(images.to(place)).to(self.dtype).cpu()


def pixels(read_media: ReadMedia, ref: MediaRef, view: int, views: int) -> Tensor:
    """(C, H, W) of one image; of `views` draws, if any, the same `view` in every run.

    Raises:
        DataError: The image cannot be read.
    """
    rng_key = f"view {view} of {real(ref.path)} {ref.index}{ref.tensor}"
    return read_media(ref, rng_key if views else "").data


def use_cache(
    data: StudyDataset,
    model: BaseModel,
    encoder: str,
    accelerator: Accelerator,
    how: FeatureStore | None = None,
    workers: int = 0,
) -> StudyDataset:
    """Let `data` read features instead of pixels; encodes what is missing, each process its share.

    Args:
        data: Changed in place and returned. Left alone if its processor is random and no views are
            to be stored, or if it holds features already.
        model: Its frozen encoder is used, on the device it is on.
        encoder: `model.feature_key()`.
        accelerator: Divides the work.
        how: Settings; None are the defaults.
        workers: Processes that read images meanwhile.

    Raises:
        TrainingError: They cannot be stored. This is no fault of an image, so nothing skips it.
    """
    how = how or FeatureStore()
    root = cache_root() / "features"
    if controls.is_blank(data):  # only the one black picture is ever encoded
        inner = data.read_media.keywords["read_media"]  # type: ignore[attr-defined]
        reader = CachedReader(inner, model, TensorStore(root), how, 0)
        # Found here, not in a loader's worker, where CUDA could not be used.
        data.read_media = partial(
            controls.black_image, read_media=reader, known={"black": reader.black()}
        )
        return data
    refs = data.media_refs()
    processor = getattr(data.read_media, "keywords", {}).get("processor")
    stored = any(ref.kind != "image" for ref in refs) or not getattr(processor, "fixed_size", True)
    views = 0 if data.cacheable else how.views
    ready = isinstance(data.read_media, CachedReader)
    if not refs or stored or ready or not (data.cacheable or views):
        return data
    facts = {"encoder": encoder, "processor": data.signature, "dtype": how.dtype}
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:24]
    reader = CachedReader(data.read_media, model, TensorStore(root / key), how, views)
    wanted = [(ref, view) for ref in refs for view in range(max(1, views))]
    lacking = [i for i, one in enumerate(wanted) if reader.name(*one) not in reader.store]
    missing = [wanted[i] for i in distributed.shared(lacking)]  # all divide the same list
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    _IN_USE.add(root / key)
    with contextlib.suppress(OSError):  # a whole store may be read-only
        used_now(root / key)
    try:
        if missing:
            (root / key).mkdir(parents=True, exist_ok=True)
            log.info("encoding %d images once; features go to %s", len(missing), root / key)
            needed = len(missing) * reader.black().data.to(reader.dtype).nbytes
            room = _room(root / key, needed, how, accelerator)
            _encode(reader, mine, room * len(mine) // len(missing), accelerator, workers)
    except OSError as error:
        raise TrainingError(
            f"cannot store features under {root / key}: {error.strerror or error}. Make room, set "
            "XRAYGPT_CACHE to another folder, or run.feature_cache to false"
        ) from None
    accelerator.wait_for_everyone()
    reader.store.refresh()
    data.read_media = reader
    return data


class _Pixels(Dataset[Any]):
    """Images to encode, read by worker processes; a bad one is its error."""

    def __init__(
        self, read_media: ReadMedia, wanted: Sequence[tuple[MediaRef, int]], views: int
    ) -> None:
        self.read_media, self.wanted, self.views = read_media, wanted, views

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, i: int) -> Tensor | str:
        try:
            return pixels(self.read_media, *self.wanted[i], self.views)
        except ValueError as error:
            return str(error)


def _encode(
    reader: CachedReader,
    wanted: Sequence[tuple[MediaRef, int]],
    room: int,
    accelerator: Accelerator,
    workers: int,
) -> None:
    """Encode and store, as far as there is room. A bad image is warned of, and fails when used."""
    loader: DataLoader[Any] = DataLoader(
        _Pixels(reader.read_media, wanted, reader.views),
        batch_size=BATCH,
        collate_fn=list,
        num_workers=workers,
        generator=torch.Generator(),  # its own: features must not move the run's draws
    )
    hidden = not accelerator.is_main_process
    try:
        for n, batch in enumerate(progress(loader, "encoding", unit="batch", disable=hidden)):
            for bad in (x for x in batch if not isinstance(x, Tensor)):
                log.warning("cannot encode: %s", bad)
            good = [(i, x) for i, x in enumerate(batch, n * BATCH) if isinstance(x, Tensor)]
            if not good:
                continue
            features = reader.features(torch.stack([image for _, image in good]))
            room -= features.nbytes
            if room < 0:
                left = len(wanted) - n * BATCH
                log.warning("run.feature_store.max_gb is full: %d images are not stored", left)
                break
            for (i, _), one in zip(good, features, strict=True):
                reader.store.put(reader.name(*wanted[i]), one)
    finally:
        reader.store.flush()


def _room(folder: Path, needed: int, how: FeatureStore, accelerator: Accelerator) -> int:
    """Bytes that may be stored, found by the main process; the cache is one for all of them.

    Raises:
        OSError: The disk has less than that; on every process.
    """
    room, free = needed, 0
    if accelerator.is_main_process:
        if how.max_gb is not None:
            most = int(how.max_gb * 1e9)
            room = min(needed, make_room(folder.parent, needed, most, keep=_IN_USE))
        free = shutil.disk_usage(folder).free
    room, free = distributed.shared((room, free))
    if room > free:
        raise OSError(f"{room / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
    return room
