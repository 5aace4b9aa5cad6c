"""The cache folder, and fast path checks for thousands of files."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path


def cache_root() -> Path:
    """Return the folder set in `XRAYGPT_CACHE`, or else the user's cache folder."""
    configured = os.environ.get("XRAYGPT_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "xraygpt"


def resolve_cached(path: Path) -> str:
    """Return `path.resolve()` as text; fast for thousands of files in few folders."""
    text = str(path)
    folder, separator, name = text.rpartition(os.sep)
    if not separator or not folder or name == ".." or _is_link(text):
        return str(path.resolve())
    return f"{resolve_folder(folder)}{os.sep}{name}"


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=4096)
def resolve_folder(folder: str) -> str:
    """Return `Path(folder).resolve()` as text; results are cached."""
    return str(Path(folder).resolve())


def is_plain_file_within(path: str, root: str) -> bool:
    """Check whether `path` is a non-empty regular file below `root` and not itself a link.

    Makes a single system call per file, because system calls dominate for thousands of files.
    """
    folder, _, name = path.rpartition(os.sep)
    try:
        status = os.lstat(path)
    except (OSError, ValueError):
        return False
    if not folder or name == ".." or not stat.S_ISREG(status.st_mode) or not status.st_size:
        return False
    return _is_folder_within(folder, root)


def is_within(path: Path, root: Path) -> bool:
    """Check whether a file is below a folder after following links."""
    return _is_resolved_within(resolve_cached(path), str(root))


@lru_cache(maxsize=4096)
def _is_folder_within(folder: str, root: str) -> bool:
    return _is_resolved_within(resolve_folder(folder), root)


def _is_resolved_within(path: str, root: str) -> bool:
    base = resolve_folder(root)
    return path == base or path.startswith(base if base.endswith(os.sep) else base + os.sep)
