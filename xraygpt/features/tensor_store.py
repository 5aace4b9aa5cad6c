"""Many tensors under names, in few files that are mapped instead of read.

A store is a folder of safetensors shards, each written aside and renamed: it is there whole or not
at all, however many processes write at once. A shard that is damaged all the same is left out, so
that what it held counts as missing.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

log = logging.getLogger(__name__)

SHARD_BYTES = 128 * 2**20  # written at once: lost by a kill at most, held in memory at most
OPEN = 256  # shards a process keeps mapped
_LEFT = 3600  # seconds after which a shard written aside is what a kill has left
_USED = ".used"  # its time is when a process last began to use a store


class TensorStore:
    """One store; safe to hand to worker processes.

    Args:
        folder: Made on the first write.
        shard_bytes: Size from which what was put is written.
    """

    def __init__(self, folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.shard_bytes = folder, shard_bytes
        self._where: dict[str, Path] = {}
        self._seen: set[Path] = set()
        self._new: dict[str, Tensor] = {}
        self._held = 0  # bytes in it
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Without maps, which each process makes anew."""
        return {**vars(self), "_open": OrderedDict()}

    def __contains__(self, name: str) -> bool:
        return name in self._where or name in self._new

    def __len__(self) -> int:
        return len(self._where.keys() | self._new.keys())

    def refresh(self) -> None:
        """Look for shards that other processes have written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._seen:
                continue
            self._seen.add(path)
            try:
                with safe_open(path, framework="pt") as shard:
                    self._where.update(dict.fromkeys(shard.keys(), path))
            except (OSError, SafetensorError) as error:
                log.warning("%s is damaged (%s) and not used", path, error)

    def get(self, name: str) -> Tensor | None:
        """The tensor, in the dtype it was put in; a view of the file. None if it is not there."""
        if name in self._new:
            return self._new[name]
        path = self._where.get(name)
        if path is None:
            return None
        try:
            tensor: Tensor = self._mapped(path).get_tensor(name)
        except (OSError, SafetensorError):  # another process made room
            del self._where[name]
            return None
        return tensor

    def _mapped(self, path: Path) -> Any:
        shard = self._open.pop(path, None)
        if shard is None:
            shard = safe_open(path, framework="pt")
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)
        self._open[path] = shard
        return shard

    def put(self, name: str, tensor: Tensor) -> None:
        """Hold a tensor until a shard is full.

        Raises:
            OSError: The shard cannot be written.
        """
        self._new[name] = tensor.detach().cpu().contiguous().clone()
        self._held += tensor.nbytes
        if self._held >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is held.

        Raises:
            OSError: It cannot be written; it is held no longer.
        """
        held, self._new, self._held = self._new, {}, 0
        if not held:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        path = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(3)}.safetensors"
        aside = path.with_suffix(f".tmp-{os.getpid()}")
        try:
            save_file(held, aside)
            aside.replace(path)
        except (OSError, SafetensorError) as error:
            aside.unlink(missing_ok=True)
            raise error if isinstance(error, OSError) else OSError(str(error)) from None
        self._seen.add(path)
        self._where.update(dict.fromkeys(held, path))

    def _sweep(self) -> None:
        """Remove what killed processes were writing."""
        for aside in self.folder.glob("*.tmp-*"):
            try:
                if time.time() - aside.stat().st_mtime > _LEFT:
                    aside.unlink()
            except OSError:
                continue  # another process was sooner


def used_now(folder: Path) -> None:
    """Note that a store is used, for `make_room`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _USED).touch()


def size_of(folder: Path) -> int:
    """Bytes of the files beneath."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # another process took it away
    return total


def make_room(root: Path, needed: int, most: int, keep: Iterable[Path]) -> int:
    """Remove the stores under `root` that were not used for longest, as far as needed.

    Args:
        root: A folder of stores.
        needed: Bytes that will be written.
        most: Bytes that may lie there afterwards.
        keep: Stores that stay.

    Returns:
        Bytes there is room for; below `needed` if the kept ones fill it.
    """
    stays = set(keep)
    stores = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    sizes = {p: size_of(p) for p in stores}
    for folder in sorted(stores, key=_last_use):
        if sum(sizes.values()) + needed <= most:
            break
        if folder not in stays:
            log.info("making room: removing %s, %.1f GB", folder, sizes[folder] / 1e9)
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
    return max(0, most - sum(sizes.values()))


def _last_use(folder: Path) -> float:
    mark = folder / _USED
    try:
        return (mark if mark.exists() else folder).stat().st_mtime
    except OSError:
        return 0.0
