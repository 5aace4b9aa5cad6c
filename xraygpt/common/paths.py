"""Where the framework keeps what it can make again."""

from __future__ import annotations

import os
import stat
from functools import lru_cache
from pathlib import Path


def cache_root() -> Path:
    """`XRAYGPT_CACHE`, or the user's cache folder."""
    named = os.environ.get("XRAYGPT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "xraygpt"


def real(path: Path) -> str:
    """`path.resolve()` as text, for thousands of files in few folders."""
    text = str(path)
    folder, mark, name = text.rpartition(os.sep)
    if not mark or not folder or name == ".." or _is_link(text):
        return str(path.resolve())
    return f"{real_folder(folder)}{os.sep}{name}"


def _is_link(path: str) -> bool:
    try:
        return stat.S_ISLNK(os.lstat(path).st_mode)
    except (OSError, ValueError):
        return False


@lru_cache(maxsize=4096)
def real_folder(folder: str) -> str:
    """`resolve()` of a folder, found once."""
    return str(Path(folder).resolve())


def is_plain_file_within(path: str, root: str) -> bool:
    """Whether this is a file in a folder, neither empty nor a link, though its folders may be.

    One look at the disk, which for thousands of files is most of the time.
    """
    folder, _, name = path.rpartition(os.sep)
    try:
        facts = os.lstat(path)
    except (OSError, ValueError):
        return False
    if not folder or name == ".." or not stat.S_ISREG(facts.st_mode) or not facts.st_size:
        return False
    return _folder_lies_in(folder, root)


def is_within(path: Path, root: Path) -> bool:
    """Whether a file lies in a folder, links followed."""
    return _lies_in(real(path), str(root))


@lru_cache(maxsize=4096)
def _folder_lies_in(folder: str, root: str) -> bool:
    return _lies_in(real_folder(folder), root)


def _lies_in(there: str, root: str) -> bool:
    home = real_folder(root)
    return there == home or there.startswith(home if home.endswith(os.sep) else home + os.sep)
