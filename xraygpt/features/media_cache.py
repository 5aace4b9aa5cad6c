"""On-disk cache of the features of whole media, filled as training first uses each medium.

`features.cache` encodes all images before the first step. Here nothing waits: in the first epoch,
media are decoded and encoded as usual, and their features are written in the background of
training; from then on, media are neither decoded nor encoded again. Features may have any size, so
that images of any shape and clips are cached, too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xraygpt.common.paths import cache_root
from xraygpt.datasets import controls
from xraygpt.datasets.base import ReadMedia, StudyDataset
from xraygpt.features.cache import FeatureStore, store_name
from xraygpt.features.tensor_store import TensorStore, evict_stores, mark_used
from xraygpt.media.base import Media, MediaRef, read_digest
from xraygpt.media.stored import stored_medium, to_be_stored
from xraygpt.models.base import BaseModel
from xraygpt.models.capabilities import CachesMedia, require

log = logging.getLogger(__name__)

FILE_BYTES = 16 * 2**20  # buffered in memory before a file is written
FLUSH_SECONDS = 30  # after which loader workers see new features
REFRESH_SECONDS = 5  # between two searches for files of other processes
_LAYOUT_SUFFIX = ".layout"
_MIN_FREE = 2**30  # bytes that are left free on the disk


class MediaStore:
    """Stored features of media, with their layouts.

    Args:
        folder: Folder of the store.
        settings: The dtype and the limit.
    """

    def __init__(self, folder: Path, settings: FeatureStore) -> None:
        self.store, self.settings = TensorStore(folder, FILE_BYTES), settings
        self.dtype = getattr(torch, settings.dtype)
        self.room = 0
        self._last_flush = self._last_refresh = time.monotonic()

    def reserve(self) -> None:
        """Find out how much may be stored, removing other stores if there is a limit."""
        folder = self.store.folder
        folder.mkdir(parents=True, exist_ok=True)
        mark_used(folder)
        self.room = shutil.disk_usage(folder).free - _MIN_FREE
        if self.settings.max_gb is not None:
            limit = int(self.settings.max_gb * 1e9)
            self.room = min(self.room, evict_stores(folder.parent, limit, limit, keep={folder}))

    def put(self, name: str, features: Tensor, layout: Tensor) -> Tensor:
        """Store the features of a medium, and return them as they will be read.

        Args:
            name: See `features.cache.store_name`.
            features: Features of any shape.
            layout: The model's description of the medium, a vector.
        """
        half = features.dtype in (torch.bfloat16, torch.float16)
        kept = features.detach() if half else features.detach().to(self.dtype)
        read = kept.to(features.dtype)
        self.room -= kept.nbytes
        if self.room < 0:
            if self.room + kept.nbytes >= 0:
                log.warning(
                    "%s is full: the features of further media are not stored, but computed again "
                    "in every epoch (run.feature_store.max_gb, XRAYGPT_CACHE)",
                    self.store.folder.parent,
                )
            return read
        try:
            self.store.put(name, kept)
            self.store.put(f"{name}{_LAYOUT_SUFFIX}", layout)
            if time.monotonic() - self._last_flush > FLUSH_SECONDS:
                self.flush()
        except OSError as error:
            self.room = -1
            log.warning(
                "features cannot be stored in %s (%s): media are encoded again in every epoch",
                self.store.folder,
                error.strerror or error,
            )
        return read

    def get(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return the features and the layout of a medium, or None if they are not stored."""
        if name not in self.store and time.monotonic() - self._last_refresh > REFRESH_SECONDS:
            self._last_refresh = time.monotonic()
            self.store.refresh()
        layout = self.store.get(f"{name}{_LAYOUT_SUFFIX}")
        features = self.store.get(name)
        return None if layout is None or features is None else (features, layout)

    def flush(self) -> None:
        """Write what is buffered.

        Raises:
            OSError: The file cannot be written.
        """
        self._last_flush = time.monotonic()
        self.store.flush()


class MediaReader:
    """Reads features of media that are stored, and pixels of all others.

    Args:
        read_media: Reads the pixels.
        store: The stored features.
        context: The model's `media_context`.
        processor: Digest of the image processor's settings.
    """

    def __init__(
        self, read_media: ReadMedia, store: MediaStore, context: Any, processor: str
    ) -> None:
        self.read_media, self.store, self.context = read_media, store, context
        self.processor = processor
        self.keywords = getattr(read_media, "keywords", {})  # for black control images

    def __call__(self, ref: MediaRef, rng_key: str = "") -> Media:
        """Read the pixels of one medium."""
        return self.read_media(ref, rng_key)

    def read_all(self, refs: Sequence[MediaRef], rng_key: str) -> list[Media]:
        """Read all media of a sample."""
        context = self.context(refs)
        return [self._read(ref, rng_key, context) for ref in refs]

    def _read(self, ref: MediaRef, rng_key: str, context: str) -> Media:
        if ref.kind == "embedding":
            return self.read_media(ref, rng_key)
        name = store_name(ref, f"|{context}|{self.processor}")
        found = self.store.get(name)
        if found is None:
            return to_be_stored(self.read_media(ref, rng_key), name)
        return stored_medium(
            ref.view,
            *found,
            read_pixels=partial(self.read_media, ref, rng_key),
            content=partial(read_digest, ref),
        )


def use_media_cache(
    parts: Sequence[StudyDataset], model: BaseModel, settings: FeatureStore, precision: str
) -> None:
    """Make datasets read stored features, and the model store those that are missing.

    Args:
        parts: Datasets, modified in place; those with random augmentation or black images are not.
        model: The model with frozen parts; if all its parts are trained, nothing is cached.
        settings: Settings of the cache.
        precision: Precision in which the features are computed, part of the key.
    """
    caching = require(model, CachesMedia)
    key = caching.media_key()
    usable = [p for p in parts if p.cacheable and len(p) and not controls.is_blank(p)]
    if key is None or not usable:
        return
    store = MediaStore(
        cache_root() / "features" / _digest([key, precision, settings.dtype]), settings
    )
    try:
        store.reserve()
    except OSError as error:
        log.warning("features cannot be stored in %s: %s", store.store.folder, error.strerror)
        return
    for part in usable:
        part.read_media = MediaReader(
            part.read_media, store, caching.media_context, _digest(part.signature)
        )
    log.info("features of frozen parts are cached in %s as they are computed", store.store.folder)
    caching.cache_media(store)


def _digest(facts: Any) -> str:
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def flush(model: BaseModel) -> None:
    """Write the features that are buffered, if the model caches any."""
    store = getattr(model, "store", None)
    if isinstance(store, MediaStore):
        try:
            store.flush()
        except OSError as error:
            log.warning("the last features cannot be stored: %s", error.strerror)
