"""Where the framework keeps what it can make again."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def cache_root() -> Path:
    """`XRAYGPT_CACHE`, or the user's cache folder."""
    named = os.environ.get("XRAYGPT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "xraygpt"


def real(path: Path) -> Path:
    """`path.resolve()`, for thousands of files in few folders."""
    if path.name == ".." or os.path.islink(path):  # noqa: PTH114 - which raises for no name
        return path.resolve()
    return real_folder(str(path.parent)) / path.name


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> Path:
    """`resolve()` of a folder, found once."""
    return Path(folder).resolve()
