"""Runs an analysis on one study or many, and writes a folder of files for each."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import write_bytes_atomic, write_text_atomic
from xraygpt.common.errors import InputError, XrayGPTError
from xraygpt.common.logging import progress
from xraygpt.studies.base import Analysis, Format
from xraygpt.studies.rendering import render
from xraygpt.studies.report import StudyReport
from xraygpt.version import __version__

log = logging.getLogger(__name__)

_SETTINGS = "settings.json"


class SomeStudiesFailed(XrayGPTError):
    """Some studies could not be read or measured; all others have a report."""


class StudyPredictor:
    """Writes reports of studies.

    A study whose report exists already, made with the same settings from the same files, is not
    analysed again, so that an interrupted command continues where it stopped.

    Args:
        analysis: What to do with a study.
        source: A study, or a folder of studies.
        output: Parent of the studies' folders.
        settings: The resolved configuration.

    Attributes:
        studies: The studies to analyse.
        folders: The folder of each study's results.
    """

    def __init__(
        self, analysis: Analysis, source: Path, output: Path, settings: dict[str, Any]
    ) -> None:
        self.analysis, self.settings = analysis, settings
        self.studies: Sequence[Path] = analysis.find_studies(source)
        self.folders = _result_folders(self.studies, output)

    def run(self) -> list[StudyReport]:
        """Analyse the studies without a report and return the new reports.

        Raises:
            InputError: The only study could not be read or measured.
            SomeStudiesFailed: Some studies could not be read or measured.
        """
        reports, failed = [], []
        pairs = list(zip(self.studies, self.folders, strict=True))
        for study, folder in progress(pairs, desc="studies", disable=len(pairs) < 2):
            try:
                signature = self._signature(study)
                if _stored(folder).get("signature") == signature:
                    log.info("%s has a report already", folder)
                    continue
                reports.append(self._analyse(study, folder, signature))
            except (InputError, OSError) as error:
                if len(pairs) == 1:
                    raise
                log.warning("%s: %s", study, error)
                failed.append(f"{study.name}: {error}")
        if failed:
            names = "\n  ".join(failed)
            raise SomeStudiesFailed(
                f"{len(failed)} of {len(pairs)} studies have no report:\n  {names}"
            )
        return reports

    def _analyse(self, study: Path, folder: Path, signature: str) -> StudyReport:
        """Write everything to a new folder, which then replaces that of an earlier analysis."""
        new = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        try:
            report = self.analysis.analyse(study, new)
            write_report(report, self.analysis.config.formats, new)  # type: ignore[attr-defined]
            stored = {
                "source": str(study.resolve()),
                "signature": signature,
                "settings": self.settings,
                "version": __version__,
            }
            write_text_atomic(new / _SETTINGS, json.dumps(stored, indent=1, default=str) + "\n")
            if folder.exists():
                shutil.rmtree(folder)
            new.rename(folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        return report

    def _signature(self, study: Path) -> str:
        """Return a hash of the settings, the version, and the study's files."""
        stats = [
            (str(file), file.stat().st_size, file.stat().st_mtime_ns)
            for file in self.analysis.files(study)
        ]
        identity = [self.settings, __version__, list(self.analysis.identity()), stats]
        return hashlib.sha256(json.dumps(identity, default=str).encode()).hexdigest()[:16]


def write_report(report: StudyReport, formats: Sequence[Format], folder: Path) -> None:
    """Write a report's files `report.*`, the figures of a Markdown file, and the videos.

    Raises:
        InputError: A PDF file is asked for, and reportlab is not installed.
    """
    for kind in formats:
        write_bytes_atomic(folder / f"report.{kind}", render(report, kind))
    if "md" in formats:
        from xraygpt.studies.pdf import encode_png

        (folder / "figures").mkdir(exist_ok=True)
        for figure in report.figures:
            path = folder / "figures" / f"{figure.name}.png"
            write_bytes_atomic(path, encode_png(figure.pixels).read())
    for video in report.videos:
        write_bytes_atomic(folder / f"{video.name}.mp4", video.content)


def _result_folders(studies: Sequence[Path], output: Path) -> list[Path]:
    """Return a folder for each study, named after it.

    If another study has the same name, now or in an earlier command, six digits of a hash of the
    study's path are added.
    """
    names = [_name(study) for study in studies]
    folders = []
    for study, name in zip(studies, names, strict=True):
        source = str(study.resolve())
        if names.count(name) > 1 or _stored(output / name).get("source", source) != source:
            name = f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:6]}"
        folders.append(output / name)
    return folders


def _name(study: Path) -> str:
    """Return the name of a folder, or that of a file without its extensions."""
    name = study.resolve().name
    return re.sub(r"(\.nii)?\.\w+$", "", name) if study.is_file() else name


def _stored(folder: Path) -> dict[str, Any]:
    """Return the settings of an earlier analysis; empty if there is none."""
    try:
        stored = json.loads((folder / _SETTINGS).read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}
