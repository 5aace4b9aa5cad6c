"""Studies on the page: uploads, analysis and exports, without a browser."""

from __future__ import annotations

import base64
import logging
import re
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from xraygpt.common.errors import InputError
from xraygpt.common.logging import progress_to
from xraygpt.demo.sessions import PageSession, Sessions
from xraygpt.demo.study_files import StudyLimits, clean_name, free_path, is_zip, unpack
from xraygpt.demo.study_work import StudyWork
from xraygpt.studies.base import Analysis, Format
from xraygpt.studies.predictor import write_report
from xraygpt.studies.rendering import render
from xraygpt.studies.report import StudyReport

log = logging.getLogger(__name__)

STUDY_NAME = "upload"
"""Name of a study in its report, because the files' names may be a patient's."""
MAX_DOWNLOAD = 256 * 2**20
"""Size in bytes of the largest file that a page can save."""
_POLL = 0.5  # seconds between two updates of the page
_MIME: dict[Format, str] = {
    "html": "text/html", "md": "text/markdown", "json": "application/json",
    "pdf": "application/pdf",
}  # fmt: skip


@dataclass(frozen=True)
class StudyUpdate:
    """The state of an analysis.

    Attributes:
        status: One line for the page.
        fraction: Part of the current step that is done; None if unknown.
        report: The report when it is complete.
        failed: Whether the study could not be analysed; `status` says why.
    """

    status: str
    fraction: float | None = None
    report: StudyReport | None = None
    failed: bool = False


class StudyDesk:
    """Analyses the studies that visitors upload, one at a time.

    Args:
        analysis: What to do with a study.
        name: Name of the analysis, for display.
        sessions: Sessions of all open pages.
        limits: Limits on uploads.
    """

    def __init__(
        self,
        analysis: Analysis,
        name: str,
        sessions: Sessions[Any],
        limits: StudyLimits = StudyLimits(),  # noqa: B008
    ) -> None:
        self.analysis, self.name = analysis, name
        self.sessions, self.limits = sessions, limits
        self.formats: Sequence[Format] = analysis.config.formats  # type: ignore[attr-defined]
        self._turn = threading.Lock()

    def add_uploads(self, session: PageSession, uploads: list[str]) -> list[str]:
        """Add files to the study, or start a new one if the last has been analysed.

        Args:
            session: The visitor's session.
            uploads: Paths in the upload folder.

        Returns:
            An error message for each file that was not added.

        Raises:
            InputError: An analysis is running.
        """
        work = session.study
        with _locked(work):
            if work.report is not None:
                work.delete_files()
                work.reset()
            for folder in (work.folder, work.files):
                folder.mkdir(exist_ok=True, mode=0o700)
            errors = []
            for number, upload in enumerate(uploads, start=1):
                try:
                    self._add(work, Path(upload))
                except InputError as error:
                    errors.append(f"File {number} {error}")
        return errors

    def _add(self, work: StudyWork, upload: Path) -> None:
        left = StudyLimits(
            self.limits.max_files - work.num_files, self.limits.max_bytes - work.num_bytes
        )
        path = free_path(work.files, clean_name(upload.name))
        self.sessions.move_upload(upload, path)
        if is_zip(path):
            archive = path.rename(free_path(work.folder, "archive"))
            try:
                added = unpack(archive, work.files, left)
            finally:
                archive.unlink()
            work.num_files += added.files
            work.num_bytes += added.size
            return
        size = path.stat().st_size
        if left.max_files < 1 or left.max_bytes < size:
            path.unlink()
            raise InputError("is too much for one study; upload one study at a time")
        work.num_files += 1
        work.num_bytes += size

    def describe(self, session: PageSession) -> str:
        """Return the status line about the uploaded files."""
        work = session.study
        if not work.num_files:
            return ""
        files = "1 file" if work.num_files == 1 else f"{work.num_files:,} files"
        return f"{files}, {max(work.num_bytes / 1e6, 0.1):,.1f} MB. Add more, or press Analyse."

    def analyse(self, session: PageSession) -> Iterator[StudyUpdate]:
        """Analyse the uploaded study; the last update has the report or says why there is none.

        Raises:
            InputError: There are no files, or the last analysis is still running.
        """
        work = session.study
        if not work.num_files:
            raise InputError("upload a study first")
        if work.is_stopped:
            yield StudyUpdate("Stopped before it started.", failed=True)
            return
        if not work.lock.acquire(blocking=False):
            raise InputError("the last analysis is still running")
        job = _Job(lambda: self._analyse(work), work, self._turn)
        job.start()
        try:
            while not job.wait(_POLL):
                session.last_used = time.monotonic()
                yield job.update()
        finally:
            if not job.wait(0):
                work.stop()  # the page was closed
        yield job.update()

    def _analyse(self, work: StudyWork) -> StudyReport:
        work.report = None
        shutil.rmtree(work.results, ignore_errors=True)
        work.results.mkdir(mode=0o700)
        try:
            studies = self.analysis.find_studies(work.files)
            if len(studies) > 1:
                raise InputError(
                    f"the files belong to {len(studies)} studies; press Clear and upload one of "
                    "them"
                )
            report = self.analysis.analyse(studies[0], work.results)
        except InputError as error:
            raise InputError(_without_folder(str(error), work.files)) from None
        warnings = tuple(_without_folder(text, work.files) for text in report.warnings)
        report = replace(report, study=STUDY_NAME, warnings=warnings)
        work.report = replace(report, clips=())
        return report

    def export(self, session: PageSession, kind: Format) -> dict[str, str]:
        """Return the report in one format as a file for the browser to save.

        Raises:
            InputError: There is no report, or a package is missing.
        """
        report = self._require_report(session.study)
        return _download(f"{_stem(report)}.{kind}", _MIME[kind], render(report, kind))

    def export_all(self, session: PageSession) -> dict[str, str]:
        """Return a zip file with all formats, figures, videos and the analysis's own files.

        Raises:
            InputError: There is no report, the files are too large, or a package is missing.
        """
        work = session.study
        report = self._require_report(work)
        with _locked(work):
            write_report(report, self.formats, work.results)
            files = [path for path in sorted(work.results.rglob("*")) if path.is_file()]
            if sum(path.stat().st_size for path in files) > 4 * MAX_DOWNLOAD:
                raise InputError("the files are too large to save from the page; use predict.py")
            buffer = BytesIO()
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(f"{_stem(report)}/NOTICE.txt", f"{report.banner()}\n")
                for path in files:
                    name = path.relative_to(work.results).as_posix()
                    archive.write(path, f"{_stem(report)}/{name}")
        return _download(f"{_stem(report)}.zip", "application/zip", buffer.getvalue())

    def _require_report(self, work: StudyWork) -> StudyReport:
        if work.report is None:
            raise InputError("there is nothing to export yet: analyse a study first")
        return work.report


class _Job(threading.Thread):
    """Runs an analysis in the background.

    Args:
        run: The analysis.
        work: The study, whose lock is held and is released at the end.
        turn: Held by the analysis that is running.
    """

    def __init__(
        self, run: Callable[[], StudyReport], work: StudyWork, turn: threading.Lock
    ) -> None:
        super().__init__(daemon=True)
        self._analyse, self._work, self._turn = run, work, turn
        self._finished = threading.Event()
        self._report: StudyReport | None = None
        self._error: Exception | None = None
        self._step, self._done, self._total = "", 0, 0
        self._begun = self._step_begun = time.monotonic()

    def run(self) -> None:
        """Analyse, and keep the report or the error."""
        try:
            with self._turn, progress_to(self._on_progress):
                self._check()
                self._report = self._analyse()
        except Exception as error:
            self._error = error
        finally:
            self._work.release()
            self._finished.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; return whether it was reached."""
        return self._finished.wait(seconds)

    def update(self) -> StudyUpdate:
        """Return the current state.

        Raises:
            Exception: What the analysis raised, unless it is the user's error.
        """
        seconds = time.monotonic() - self._begun
        if isinstance(self._error, _Stop):
            return StudyUpdate("Stopped.", failed=True)
        if isinstance(self._error, InputError):
            return StudyUpdate(f"Not analysed: {self._error}", failed=True)
        if self._error is not None:
            raise self._error
        if self._report is not None:
            return StudyUpdate(f"Analysed in {_in_words(seconds)}.", 1.0, self._report)
        if self._work.is_stopped:
            return StudyUpdate("Stopping after the current step …", self._fraction())
        return StudyUpdate(self._describe(seconds), self._fraction())

    def _describe(self, seconds: float) -> str:
        step, done, total = self._step, self._done, self._total
        if not total:
            return f"Reading the study … {_in_words(seconds)}"
        text = f"{step[:1].upper()}{step[1:]}: {done} of {total}"
        if 0 < done < total:
            left = (time.monotonic() - self._step_begun) * (total - done) / done
            text += f", about {_in_words(left)} left"
        return text

    def _fraction(self) -> float | None:
        return self._done / self._total if self._total else None

    def _on_progress(self, step: str, done: int, total: int) -> None:
        self._check()
        if done == 0:
            self._step_begun = time.monotonic()
        self._step, self._done, self._total = step, done, total

    def _check(self) -> None:
        if self._work.is_stopped:
            raise _Stop


class _Stop(Exception):
    """Ends an analysis that a visitor stopped."""


class _locked:
    """Context manager that holds a study's lock.

    Raises:
        InputError: An analysis is running.
    """

    def __init__(self, work: StudyWork) -> None:
        self.work = work

    def __enter__(self) -> None:
        if not self.work.lock.acquire(blocking=False):
            raise InputError("an analysis is running; stop it or wait for its end")

    def __exit__(self, *_: object) -> None:
        self.work.release()


def _without_folder(text: str, folder: Path) -> str:
    """Return a message with names relative to the folder of uploads."""
    for root in dict.fromkeys((folder, folder.resolve())):
        text = text.replace(f"{root}/", "").replace(f"{root}: ", "").replace(str(root), "upload")
    return text


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _stem(report: StudyReport) -> str:
    return f"xraygpt-study-{re.sub(r'[^0-9]', '', report.date)[:14]}"


def _download(name: str, mime: str, content: bytes) -> dict[str, str]:
    """Return a file for the page's download script.

    Raises:
        InputError: It is too large.
    """
    if len(content) > MAX_DOWNLOAD:
        raise InputError("the file is too large to save from the page; use predict.py")
    return {"name": name, "type": mime, "content": base64.b64encode(content).decode()}
