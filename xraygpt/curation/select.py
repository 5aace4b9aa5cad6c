"""Selection of the reports in a corpus that are useful for training; the others are listed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.curation.files import LeftOut, read_reports
from xraygpt.curation.sources import CORPORA, Corpus, Problem, SourceReport

# How captions name modalities.
_MODALITY_PATTERNS = {
    "xray": r"x\W?\s?rays?|radiogra(?:ph|m)\w*|roentgen\w*|cxrs?|plain films?|orthopantomogra\w*|"
    r"opg|mammogra\w*|panorex",
    "ct": r"cect|ncct|hrct|cbct|ct|computed tomogra\w*|computeri[sz]ed tomogra\w*|"
    r"computed axial tomogra\w*|cat scans?",
    "mri": r"mri?|magnetic resonance|mrcp|mra|flair|t[12][- ]?w\w*",
    "ultrasound": r"ultraso\w*|sonogra\w*|usg|echocardiogra\w*|doppler|tte|tee|echo",
    "angiography": r"\w*angiogra\w*|arteriogra\w*|venogra\w*|fluoroscop\w*|cholangiogra\w*|ercp",
    "nuclear": r"pet|pet[-/]ct|scintigra\w*|spect|bone scan",
}
MODALITIES = (*_MODALITY_PATTERNS, "other")
_MODALITY = re.compile(
    r"\b(?:"
    + "|".join(f"(?P<{name}>{pattern})" for name, pattern in _MODALITY_PATTERNS.items())
    + r")\b",
    re.IGNORECASE,
)
_CHEST = re.compile(
    r"\b(?:chest|thora\w*|lungs?|pulmonary|pleura\w*|mediastin\w*|cxrs?|hilar|hilum|"
    r"cardiomegaly|pneumothora\w*|pneumonia|hemithorax)\b",
    re.IGNORECASE,
)


def find_modality(caption: str) -> str:
    """Return the modality in `MODALITIES` that a caption names first, or ``other``."""
    match = _MODALITY.search(caption)
    return str(match.lastgroup) if match else "other"


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which reports to select; the word limits are those of XrayGPT (Thawkar et al. 2023)."""

    min_findings_words: int = 10
    """Minimum number of words in the findings, separated by white space."""
    min_impression_words: int = 2
    """Minimum number of words in the impression."""
    views: Literal["frontal", "all"] = "frontal"
    """Which pictures to select; all are kept if the corpus does not name views."""
    modality: str = ""
    """For captions: one of `MODALITIES`, or ``any``; empty for the corpus's default."""
    region: Literal["chest", "any"] = "any"
    """For captions: whether to select only those about the chest, or all."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(0, "min_findings_words", "min_impression_words")
            unknown = self.modality not in ("", "any", *MODALITIES)
            message = f"{self.modality} is not one of any, {', '.join(MODALITIES)}"
            check.refuse(unknown, "modality", message)


@dataclass(frozen=True)
class Picture:
    """A readable picture of a report."""

    path: Path
    view: str
    sha256: str


@dataclass
class Selection:
    """The selected reports with their pictures, and everything that was excluded.

    Attributes:
        corpus: The corpus.
        reports: The selected reports.
        steps: The name of each filter, and the number of reports that remain after it.
        left_out: The excluded reports and pictures, with reasons.
        pictures: source_id -> pictures.
        sources_sha256: Hash of all reports before filtering.
    """

    corpus: Corpus
    reports: list[SourceReport]
    steps: list[tuple[str, int]] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)
    sources_sha256: str = ""

    def sections(self) -> tuple[str, ...]:
        """Return the names of the sections to rewrite, in order."""
        return ("findings", "impression") if self.corpus.has_sections else ("findings",)

    def text(self, report: SourceReport) -> str:
        """Return the source text of a report, which its rewritten text is compared with."""
        return " ".join(report.sections[name] for name in self.sections())

    def all_pictures(self) -> list[Picture]:
        """Return the pictures of all reports."""
        return [picture for pictures in self.pictures.values() for picture in pictures]


def get_corpus(name: str) -> Corpus:
    """Look up a corpus in `CORPORA`.

    Raises:
        InputError: There is no corpus with that name.
    """
    if name not in CORPORA:
        raise InputError(f"no corpus is called {name!r}; choose from {', '.join(CORPORA)}")
    return CORPORA[name]


def select_reports(corpus_name: str, raw: Path, filters: Filters) -> Selection:
    """Read a corpus and select reports.

    Args:
        corpus_name: A key of `CORPORA`.
        raw: The corpus as downloaded, or a `.jsonl` file written by `files.write_reports`.
        filters: Which reports to select.

    Raises:
        DataError: The corpus or a column is missing.
        InputError: The `.jsonl` file contains reports from another corpus.
    """
    selection = read_corpus(corpus_name, raw)
    for name, passes in _report_filters(selection.corpus, filters):
        remaining = []
        for report in selection.reports:
            if passes(report):
                remaining.append(report)
            else:
                left_out = LeftOut(report.source_id, report.where, "filter", f"not: {name}")
                selection.left_out.append(left_out)
        selection.reports = remaining
        selection.steps.append((name, len(remaining)))
    return selection


def read_corpus(corpus_name: str, raw: Path) -> Selection:
    """Read all reports, excluding unreadable and repeated ones; see `select_reports`."""
    corpus = get_corpus(corpus_name)
    selection = Selection(corpus, [])
    locations: dict[str, str] = {}
    digest = hashlib.sha256()
    rows = read_reports(raw, corpus.name) if raw.suffix == ".jsonl" else corpus.read(raw)
    for row in rows:
        if isinstance(row, SourceReport) and row.source_id in locations:
            first = locations[row.source_id]
            row = Problem(row.where, f"{row.source_id} already appears in {first}")
        if isinstance(row, Problem):
            selection.left_out.append(LeftOut("", row.where, "unreadable", row.reason))
            continue
        locations[row.source_id] = row.where
        digest.update(json.dumps([row.source_id, row.sections], sort_keys=True).encode())
        selection.reports.append(row)
    selection.sources_sha256 = digest.hexdigest()
    selection.steps.append(("read", len(selection.reports)))
    return selection


def _report_filters(
    corpus: Corpus, filters: Filters
) -> Iterator[tuple[str, Callable[[SourceReport], bool]]]:
    """Yield the name and the test of each filter, in order."""

    def count_words(report: SourceReport, section: str) -> int:
        return len(report.sections.get(section, "").split())

    if corpus.has_sections:
        yield (
            "findings and impression",
            lambda r: bool(count_words(r, "findings") and count_words(r, "impression")),
        )
        yield (
            f"at least {filters.min_findings_words} words of findings",
            lambda r: count_words(r, "findings") >= filters.min_findings_words,
        )
        yield (
            f"at least {filters.min_impression_words} words of impression",
            lambda r: count_words(r, "impression") >= filters.min_impression_words,
        )
        return
    yield "a caption", lambda r: count_words(r, "findings") > 0
    modality = filters.modality or corpus.modality
    if modality != "any":
        yield f"modality {modality}", lambda r: find_modality(r.sections["findings"]) == modality
    if filters.region == "chest":
        yield "of the chest", lambda r: bool(_CHEST.search(r.sections["findings"]))
