"""Where the framework keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """`XRAYGPT_CACHE`, or the user's cache folder."""
    named = os.environ.get("XRAYGPT_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "xraygpt"
