"""How a run stops: the stop signal, operating system signals and the result."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    Attributes:
        stop_reason: Why the run stopped early; empty if every item has its final state.
        exit_code: 0, or a code as in `common.errors`.
        calls: Number of calls in this run.
    """

    stop_reason: str = ""
    exit_code: int = 0
    calls: int = 0

    @property
    def is_interrupt(self) -> bool:
        """Whether SIGINT or SIGTERM ended the run."""
        return self.exit_code > 100


class RunStopped(Exception):
    """The run is stopping and no call is in progress; the row can be released."""


class StopSignal:
    """Tells all workers that nothing new may start."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Stop the run."""
        self._event.set()

    def is_set(self) -> bool:
        """Whether the run is stopping."""
        return self._event.is_set()

    async def wait_for(self, awaitable: Awaitable[T]) -> T:
        """Await an awaitable, or cancel it when the run stops.

        Raises:
            RunStopped: The run is stopping.
        """
        task = asyncio.ensure_future(awaitable)
        await asyncio.sleep(0)
        if not task.done():
            stop = asyncio.ensure_future(self._event.wait())
            try:
                await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                if not task.done():
                    task.cancel()
        if self.is_set():
            raise RunStopped
        return task.result()


def handle_signals(handler: Callable[[RunResult], None] | None) -> None:
    """Call `handler` on SIGINT and SIGTERM, or restore the defaults if it is None."""
    loop = asyncio.get_running_loop()
    if sys.platform == "win32":
        return  # no signal handlers there: Ctrl-C ends the run, and answers are saved
    for number, exit_code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        try:
            if handler is None:
                loop.remove_signal_handler(number)
            else:
                loop.add_signal_handler(number, handler, RunResult("interrupted", exit_code))
        except (ValueError, RuntimeError):
            return  # signals arrive only in the main thread
