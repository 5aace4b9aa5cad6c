"""Progress with an ETA: a bar in a terminal, or a line every half minute in a log file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

OnProgress = Callable[[str, int, int], None]
"""Receives what a loop does, how many of its items are done, and how many there are."""
_listener: ContextVar[OnProgress | None] = ContextVar("listener", default=None)


def progress(*args: Any, **options: Any) -> Any:
    """Build a `tqdm` bar that suits the destination of stderr: a terminal or a log file."""
    listener = _listener.get()
    if listener is not None and args and isinstance(args[0], Sized):
        options.setdefault("total", len(args[0]))
        args = (_listened(args[0], options.get("desc", ""), listener), *args[1:])  # type: ignore[arg-type]
    if sys.stderr.isatty():
        return tqdm(*args, **options)
    plain = {"mininterval": 30.0, "maxinterval": 60.0, "ascii": True}
    if "bar_format" not in options:
        plain["ncols"] = 80
    return tqdm(*args, **{**plain, **options})


@contextmanager
def progress_to(listener: OnProgress) -> Iterator[None]:
    """Context manager in which `progress` also calls a function, before and after each item.

    Only loops over a collection in this thread are reported. An exception that the function raises
    ends the loop.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def _listened(items: Iterable[Any], name: str, listener: OnProgress) -> Iterator[Any]:
    total = len(items)  # type: ignore[arg-type]
    listener(name, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        listener(name, done, total)
