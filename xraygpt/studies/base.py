"""The contract of analyses, which turn the files of a study into a report."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from xraygpt.common.checks import Checks
from xraygpt.common.registry import ANALYSES, Plugin, Registry
from xraygpt.studies.report import StudyReport

Format = Literal["html", "md", "json", "pdf"]


class Analysis(Plugin):
    """Analyses studies one by one: `predict.py` runs it on the files of the user."""

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """The `run` section of a YAML file that analyses studies."""

        kind: ClassVar[Registry] = ANALYSES

        formats: list[Format] = field(default_factory=lambda: ["html", "md", "json", "pdf"])
        """Files to write for each study."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.refuse(not self.formats, "formats", "must name at least one format")

    @abstractmethod
    def find_studies(self, source: Path) -> list[Path]:
        """Return the folder or file of each study in `source`, which may itself be a study.

        Raises:
            InputError: There is no study.
        """

    @abstractmethod
    def files(self, study: Path) -> list[Path]:
        """Return the files of a study; it is analysed again if one of them has changed."""

    def identity(self) -> Sequence[str]:
        """Return what affects the results besides settings and files, such as weights' hashes."""
        return []

    @abstractmethod
    def analyse(self, source: Path, folder: Path) -> StudyReport:
        """Analyse one study.

        Args:
            source: Its folder or file.
            folder: Where to write files other than the report, such as masks.

        Raises:
            InputError: The study cannot be read or measured.
        """


@dataclass(kw_only=True)
class StudyAnalysis:
    """The sections of a YAML file that analyses studies."""

    run: Analysis.Config
    imports: list[str] = field(default_factory=list)
    """Modules with further plug-ins, which are imported first."""
