"""Progress with an ETA: a bar in a terminal, or a line every half minute in a log file."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm


def progress(*args: Any, **options: Any) -> Any:
    """Build a `tqdm` bar that suits the destination of stderr: a terminal or a log file."""
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    plain = {"mininterval": 30.0, "maxinterval": 60.0, "ascii": True}
    if "bar_format" not in options:
        plain["ncols"] = 80
    return tqdm(*args, **{**plain, **options})
