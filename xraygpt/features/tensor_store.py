"""Store of named tensors in a few memory-mapped files on disk.

A store is a folder of safetensors files. Each is written under a temporary name and then renamed,
so that several processes can write at once and no file is ever incomplete. A damaged file is
ignored, and its tensors count as missing.
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

FILE_BYTES = 128 * 2**20  # also the most that is lost if the process is killed
MAX_OPEN_FILES = 256
_STALE_SECONDS = 3600  # an older temporary file was left by a killed process
_USE_MARKER = ".used"  # its modification time is the last use of a store


class TensorStore:
    """A store of tensors that is safe to pass to worker processes.

    Args:
        folder: Folder of the store, created by the first write.
        file_bytes: Size of the buffer that is written to one file.
    """

    def __init__(self, folder: Path, file_bytes: int = FILE_BYTES) -> None:
        self.folder, self.file_bytes = folder, file_bytes
        self._paths: dict[str, Path] = {}
        self._scanned: set[Path] = set()
        self._buffer: dict[str, Tensor] = {}
        self._buffer_bytes = 0
        self._open_files: OrderedDict[Path, Any] = OrderedDict()
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the memory maps, which each process opens itself."""
        return {**vars(self), "_open_files": OrderedDict()}

    def __contains__(self, name: str) -> bool:
        return name in self._paths or name in self._buffer

    def __len__(self) -> int:
        return len(self._paths.keys() | self._buffer.keys())

    def refresh(self) -> None:
        """Find files that other processes have written in the meantime."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path in self._scanned:
                continue
            self._scanned.add(path)
            try:
                with safe_open(path, framework="pt") as file:
                    self._paths.update(dict.fromkeys(file.keys(), path))
            except (OSError, SafetensorError) as error:
                log.warning("%s is damaged and ignored: %s", path, error)

    def get(self, name: str) -> Tensor | None:
        """Return a memory-mapped tensor in its original dtype, or None if it is not stored."""
        if name in self._buffer:
            return self._buffer[name]
        path = self._paths.get(name)
        if path is None:
            return None
        try:
            tensor: Tensor = self._open(path).get_tensor(name)
        except (OSError, SafetensorError):  # another process evicted the store
            del self._paths[name]
            return None
        return tensor

    def _open(self, path: Path) -> Any:
        file = self._open_files.pop(path, None)
        if file is None:
            file = safe_open(path, framework="pt")
            while len(self._open_files) >= MAX_OPEN_FILES:
                self._open_files.popitem(last=False)
        self._open_files[path] = file
        return file

    def put(self, name: str, tensor: Tensor) -> None:
        """Add a tensor to the buffer, which is written when it is full.

        Raises:
            OSError: The file cannot be written.
        """
        self._buffer[name] = tensor.detach().cpu().contiguous().clone()
        self._buffer_bytes += tensor.nbytes
        if self._buffer_bytes >= self.file_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the buffer.

        Raises:
            OSError: The file cannot be written; the buffer is emptied nevertheless.
        """
        tensors, self._buffer, self._buffer_bytes = self._buffer, {}, 0
        if not tensors:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale_files()
        path = self.folder / f"{time.time_ns():020d}-{secrets.token_hex(3)}.safetensors"
        temporary = path.with_suffix(f".tmp-{os.getpid()}")
        try:
            save_file(tensors, temporary)
            temporary.replace(path)
        except (OSError, SafetensorError) as error:
            temporary.unlink(missing_ok=True)
            raise error if isinstance(error, OSError) else OSError(str(error)) from None
        self._scanned.add(path)
        self._paths.update(dict.fromkeys(tensors, path))

    def _remove_stale_files(self) -> None:
        """Remove temporary files left by killed processes."""
        for temporary in self.folder.glob("*.tmp-*"):
            try:
                if time.time() - temporary.stat().st_mtime > _STALE_SECONDS:
                    temporary.unlink()
            except OSError:
                continue  # another process removed it


def mark_used(folder: Path) -> None:
    """Record that a store is in use, for `evict_stores`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _USE_MARKER).touch()


def folder_size(folder: Path) -> int:
    """Return the total size in bytes of all files in a folder and its subfolders."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # another process removed it
    return total


def evict_stores(root: Path, needed: int, max_bytes: int, keep: Iterable[Path]) -> int:
    """Remove the least recently used stores under `root` until there is room.

    Args:
        root: Folder that contains the stores.
        needed: Bytes that will be written.
        max_bytes: Limit for all stores together.
        keep: Stores that must not be removed.

    Returns:
        Number of bytes that may be written; less than `needed` if the stores in `keep` are too
        large.
    """
    protected = set(keep)
    stores = [p for p in root.iterdir() if p.is_dir()] if root.is_dir() else []
    sizes = {p: folder_size(p) for p in stores}
    for folder in sorted(stores, key=_last_use):
        if sum(sizes.values()) + needed <= max_bytes:
            break
        if folder not in protected:
            log.info("removing %s (%.1f GB) to make room", folder, sizes[folder] / 1e9)
            shutil.rmtree(folder, ignore_errors=True)
            del sizes[folder]
    return max(0, max_bytes - sum(sizes.values()))


def _last_use(folder: Path) -> float:
    marker = folder / _USE_MARKER
    try:
        return (marker if marker.exists() else folder).stat().st_mtime
    except OSError:
        return 0.0
