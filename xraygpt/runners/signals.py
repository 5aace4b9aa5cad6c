"""Handles SIGTERM and Ctrl-C in training by finishing the step, saving and stopping."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from xraygpt.common.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PATIENCE = 5.0  # seconds for which a worker may finish what it reads


class StopSignals:
    """Remembers a SIGTERM or SIGINT instead of terminating.

    Attributes:
        received: Number of the last signal received, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Install the handlers inside the block; a repeated signal then has its usual effect."""

        def remember(number: int, _: Any) -> None:
            self.received = number
            signal.signal(number, previous[number])

        previous: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
        for number in previous:
            with contextlib.suppress(ValueError):  # only the main thread may install handlers
                signal.signal(number, remember)
        try:
            yield
        finally:
            for number, handler in previous.items():
                with contextlib.suppress(ValueError):
                    signal.signal(number, handler)

    def stop(self, step: int, run_folder: Path) -> None:
        """End the run after everything has been saved.

        Raises:
            Stopped: Always, with exit code 128 + signal number.
        """
        number = signal.SIGTERM if self.received is None else self.received
        stopped = Stopped(
            f"stopped by {signal.Signals(number).name} at step {step}; saved. Resume with "
            f"--options run.resume_ckpt_path={run_folder}"
        )
        stopped.exit_code = 128 + number
        try:
            raise stopped
        finally:
            del stopped  # the traceback would keep the data loader and its workers alive


def ignore_in_worker(_: int) -> None:
    """Make a data-loader worker ignore group signals, which the main process handles."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def ended_workers() -> Iterator[None]:
    """End the processes that are started inside, even if they ignore signals.

    A loader asks its workers to end and waits for a few seconds. A worker that is busy for longer
    ignores the SIGTERM that follows (`ignore_in_worker`), and Python would wait for it forever at
    the end of the program.
    """
    before = set(multiprocessing.active_children())
    try:
        yield
    finally:
        gc.collect()  # a loader that is gone has asked its workers to end
        for process in set(multiprocessing.active_children()) - before:
            process.join(timeout=_PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()
