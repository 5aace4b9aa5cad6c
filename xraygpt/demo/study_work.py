"""A visitor's study: its files, the results, and the flag that stops its analysis."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xraygpt.common.errors import InputError
from xraygpt.studies.report import StudyReport


class StudyWork:
    """The study of one open page.

    Args:
        folder: Private folder, made when the first file comes.

    Attributes:
        lock: Held while files are added and while the study is analysed.
        report: The report without its clips; None before the analysis.
        num_files: Number of files of the study.
        num_bytes: Their size in bytes, unpacked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.Lock()
        self._stop = threading.Event()
        self._ended = False
        self.reset()

    def reset(self) -> None:
        """Forget the study; its files are not deleted."""
        self.report: StudyReport | None = None
        self.num_files = self.num_bytes = 0

    @property
    def files(self) -> Path:
        """Folder of the uploaded files."""
        return self.folder / "upload"

    @property
    def results(self) -> Path:
        """Folder for the files that the analysis writes."""
        return self.folder / "results"

    @property
    def is_stopped(self) -> bool:
        """Whether the analysis is to stop, or not to start."""
        return self._stop.is_set()

    def allow(self) -> None:
        """Permit the next analysis after a stop."""
        if not self._ended:
            self._stop.clear()

    def stop(self) -> None:
        """Stop the analysis at its next step, or keep a waiting one from starting."""
        self._stop.set()

    @contextmanager
    def stopped(self, seconds: float = 30) -> Iterator[bool]:
        """Context manager that stops the analysis and yields whether it stopped in time."""
        self.stop()
        acquired = self.lock.acquire(timeout=seconds)
        try:
            yield acquired
        finally:
            if acquired:
                self.lock.release()

    def clear(self) -> None:
        """Stop the analysis and delete the study.

        Raises:
            InputError: The analysis does not stop in time.
        """
        with self.stopped() as acquired:
            if not acquired:
                raise InputError("the analysis has not stopped yet; try again in a minute")
            self.delete_files()
            self.reset()

    def end(self) -> None:
        """Stop for good and delete the files, which the analysis does itself if it still runs."""
        self._ended = True
        self.delete_files()
        with self.stopped():
            self.delete_files()
            self.reset()

    def release(self) -> None:
        """Release the lock after an analysis, and delete its files if the page was closed."""
        if self._ended:
            self.delete_files()
        self.lock.release()

    def delete_files(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
