"""Where the framework keeps what it can make again."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


def cache_root() -> Path:
    """`XRAYGPT_CACHE`, or the user's cache folder."""
    named = os.environ.get("XRAYGPT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "xraygpt"


def real(path: Path) -> str:
    """`path.resolve()` as text, for thousands of files in few folders."""
    folder, name = os.path.split(path)
    if name in ("", "..") or os.path.islink(path):  # noqa: PTH114 - which raises for no name
        return str(path.resolve())
    return os.path.join(real_folder(folder), name)  # noqa: PTH118 - a tenth of the time


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    """`resolve()` of a folder, found once."""
    return str(Path(folder).resolve())


def is_within(path: Path, root: Path) -> bool:
    """Whether a file lies in a folder, links followed."""
    there, home = real(path), real_folder(str(root))
    return there == home or there.startswith(home.rstrip(os.sep) + os.sep)
