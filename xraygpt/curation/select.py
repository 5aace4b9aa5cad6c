"""Which reports and pictures of a corpus are worth learning from; what is left out is named."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError, ImageError, InputError
from xraygpt.common.logging import progress
from xraygpt.curation.sources import CORPORA, Corpus, ImageName, Problem, SourceReport
from xraygpt.media.pixels import read_image

log = logging.getLogger(__name__)

# OpenI's own name and Kaggle's for one picture: CXR1_1_IM-0001-4001.png, 1_IM-0001-4001.dcm.png.
_OPENI = re.compile(r"^(?:CXR)?(\d+)_(?:\d+_)?(IM-\d+(?:-\d+)*)")
_PICTURES = (".png", ".jpg", ".jpeg", ".dcm")
_FRONTAL = ("", "frontal", "pa", "ap")
METADATA = "mimic-cxr-2.0.0-metadata.csv"

# What a caption says it shows; the modality named first counts.
_MODALITIES = {
    "xray": r"x\W?\s?rays?|radiogra(?:ph|m)\w*|roentgen\w*|cxrs?|plain films?|orthopantomogra\w*|"
    r"opg|mammogra\w*|panorex",
    "ct": r"cect|ncct|hrct|cbct|ct|computed tomogra\w*|computeri[sz]ed tomogra\w*|"
    r"computed axial tomogra\w*|cat scans?",
    "mri": r"mri?|magnetic resonance|mrcp|mra|flair|t[12][- ]?w\w*",
    "ultrasound": r"ultraso\w*|sonogra\w*|usg|echocardiogra\w*|doppler|tte|tee|echo",
    "angiography": r"\w*angiogra\w*|arteriogra\w*|venogra\w*|fluoroscop\w*|cholangiogra\w*|ercp",
    "nuclear": r"pet|pet[-/]ct|scintigra\w*|spect|bone scan",
}
MODALITIES = (*_MODALITIES, "other")
_MODALITY = re.compile(
    r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _MODALITIES.items()) + r")\b",
    re.IGNORECASE,
)
_CHEST = re.compile(
    r"\b(?:chest|thora\w*|lungs?|pulmonary|pleura\w*|mediastin\w*|cxrs?|hilar|hilum|"
    r"cardiomegaly|pneumothora\w*|pneumonia|hemithorax)\b",
    re.IGNORECASE,
)


def modality_of(caption: str) -> str:
    """The modality a caption names first, one of `MODALITIES`; ``other`` if it names none."""
    match = _MODALITY.search(caption)
    return str(match.lastgroup) if match else "other"


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which reports are worth learning from; word counts as in XrayGPT (Thawkar et al. 2023)."""

    min_findings_words: int = 10
    """Fewest words of the findings, between blanks."""
    min_impression_words: int = 2
    """Fewest words of the impression."""
    views: Literal["frontal", "all"] = "frontal"
    """Which pictures; a corpus that does not say its views keeps all."""
    modality: str = ""
    """Of captions: one of `MODALITIES`, or ``any``; empty: as the corpus has it (ROCO: xray)."""
    region: Literal["chest", "any"] = "any"
    """Of captions: those that speak of the chest, or all."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(0, "min_findings_words", "min_impression_words")
            unknown = self.modality not in ("", "any", *MODALITIES)
            none = f"{self.modality} is none of any, {', '.join(MODALITIES)}"
            check.refuse(unknown, "modality", none)


@dataclass(frozen=True)
class LeftOut:
    """A report, row or picture without a place in the training folder. Never holds report text.

    Attributes:
        source_id: Empty where it could not be read.
        where: File, and row if it has one.
        stage: ``unreadable`` (a row), ``filter`` (a report), ``picture`` (one picture of a report:
            absent or unreadable), ``no_picture`` (a report that has none), ``check``, ``refused``,
            ``invalid`` or ``failed`` (a report, or a picture where each has its own text).
        reason: Why.
    """

    source_id: str
    where: str
    stage: str
    reason: str


@dataclass(frozen=True)
class Picture:
    """A readable picture of a report."""

    path: Path
    view: str
    sha256: str


@dataclass
class Selection:
    """Reports that passed, with their pictures, and all that did not."""

    corpus: Corpus
    reports: list[SourceReport]
    steps: list[tuple[str, int]] = field(default_factory=list)  # filter -> left after it
    left_out: list[LeftOut] = field(default_factory=list)
    pictures: dict[str, list[Picture]] = field(default_factory=dict)  # source_id -> pictures
    sources_sha256: str = ""

    def sections(self) -> tuple[str, ...]:
        """Sections that are rewritten, in the order they stand in."""
        return ("findings", "impression") if self.corpus.has_sections else ("findings",)

    def text(self, report: SourceReport) -> str:
        """Source text of a report: what a rewriting is held against."""
        return " ".join(report.sections[name] for name in self.sections())


def corpus_named(name: str) -> Corpus:
    """A corpus of `CORPORA`.

    Raises:
        InputError: There is none of that name.
    """
    if name not in CORPORA:
        raise InputError(f"no corpus {name!r}; there are {', '.join(CORPORA)}")
    return CORPORA[name]


def select_reports(corpus_name: str, raw: Path, filters: Filters) -> Selection:
    """Read a corpus, or the JSON lines that `write_reports` made of it, and filter its reports.

    Raises:
        DataError: The corpus is not there or lacks a column.
    """
    corpus = corpus_named(corpus_name)
    selection = Selection(corpus, [])
    seen: dict[str, str] = {}
    hashed = hashlib.sha256()
    rows = read_reports(raw, corpus_name) if raw.suffix == ".jsonl" else corpus.read(raw)
    for row in rows:
        if isinstance(row, SourceReport) and row.source_id in seen:
            row = Problem(row.where, f"{row.source_id} stands in {seen[row.source_id]} already")
        if isinstance(row, Problem):
            selection.left_out.append(LeftOut("", row.where, "unreadable", row.why))
            continue
        seen[row.source_id] = row.where
        hashed.update(json.dumps([row.source_id, row.sections], sort_keys=True).encode())
        selection.reports.append(row)
    selection.sources_sha256 = hashed.hexdigest()
    selection.steps.append(("read", len(selection.reports)))
    for name, keep in _filters(corpus, filters):
        kept = []
        for report in selection.reports:
            if keep(report):
                kept.append(report)
            else:
                out = LeftOut(report.source_id, report.where, "filter", f"not: {name}")
                selection.left_out.append(out)
        selection.reports = kept
        selection.steps.append((name, len(kept)))
    return selection


def _filters(
    corpus: Corpus, filters: Filters
) -> Iterator[tuple[str, Callable[[SourceReport], bool]]]:
    """Name and test of each filter, in their order."""

    def words(report: SourceReport, section: str) -> int:
        return len(report.sections.get(section, "").split())

    if corpus.has_sections:
        yield (
            "findings and impression",
            lambda r: bool(words(r, "findings") and words(r, "impression")),
        )
        yield (
            f"at least {filters.min_findings_words} words of findings",
            lambda r: words(r, "findings") >= filters.min_findings_words,
        )
        yield (
            f"at least {filters.min_impression_words} words of impression",
            lambda r: words(r, "impression") >= filters.min_impression_words,
        )
        return
    yield "a caption", lambda r: words(r, "findings") > 0
    modality = filters.modality or corpus.modality
    if modality != "any":
        yield f"modality {modality}", lambda r: modality_of(r.sections["findings"]) == modality
    if filters.region == "chest":
        yield "of the chest", lambda r: bool(_CHEST.search(r.sections["findings"]))


def write_reports(selection: Selection, path: Path) -> None:
    """JSON lines of the reports that passed, for their owner alone; `select_reports` reads them."""
    name = selection.corpus.name
    rows = ({"corpus": name, **asdict(report)} for report in selection.reports)
    write_private(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def read_reports(path: Path, corpus: str) -> Iterator[SourceReport | Problem]:
    """What `write_reports` wrote.

    Raises:
        DataError: The file is absent.
        InputError: It is of another corpus, whose licence may be another.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path}: {getattr(error, 'strerror', 'no UTF-8')}") from None
    for number, line in enumerate(lines, 1):
        where = f"{path.name}, line {number}"
        if not line:
            continue
        try:
            row = json.loads(line)
            of = row.pop("corpus")
            images = tuple(ImageName(**image) for image in row.pop("images"))
            report = SourceReport(**{**row, "images": images})
        except (ValueError, TypeError, KeyError, AttributeError):
            yield Problem(where, "no report as the filter writes it")
            continue
        if of != corpus:
            raise InputError(f"{path} holds reports of {of}, not of {corpus}")
        yield report


def write_private(path: Path, content: str) -> None:
    """Write a file whole, readable by its owner alone, and rename it."""
    aside = path.with_name(f"{path.name}.part")
    aside.unlink(missing_ok=True)
    handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
        file.write(content)
    aside.replace(path)


def as_cell(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text


def write_left_out(rows: Sequence[LeftOut], path: Path) -> None:
    """`held_back.csv`: written whole, then renamed."""
    aside = path.with_name(f"{path.name}.part")
    with aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["source_id", "where", "stage", "reason"])
        table.writerows([*map(as_cell, (r.source_id, r.where, r.stage, r.reason))] for r in rows)
    aside.replace(path)


def select_pictures(
    selection: Selection,
    folder: Path,
    filters: Filters,
    known: MutableMapping[str, tuple[str, str]] | None = None,
) -> None:
    """Find, read and keep the wanted pictures of each report; reports without one go.

    Args:
        selection: Of reports.
        folder: Holds the pictures.
        filters: Which views.
        known: Stamp of a file -> what reading it gave before; new ones are added.

    Raises:
        DataError: The folder is absent or holds no picture.
    """
    index, by_study = _index(folder)
    views = _mimic_views(folder, filters) if selection.corpus.name == "mimic" else {}
    wanted: list[tuple[SourceReport, Path, str]] = []
    for report in selection.reports:
        for path, view in _of(report, index, by_study, views, selection.left_out):
            if filters.views == "all" or view.lower() in _FRONTAL:
                wanted.append((report, path, view))
    paths = list(dict.fromkeys(path for _, path, _ in wanted))
    known = {} if known is None else known
    stamps = {path: _stamp(path) for path in paths}
    new = [path for path in paths if stamps[path] not in known]
    with ThreadPoolExecutor() as pool:
        read = progress(pool.map(_read, new), total=len(new), desc="pictures", unit="picture")
        known.update({stamps[path]: result for path, result in zip(new, read, strict=True)})
    found = {path: known[stamps[path]] for path in paths}
    for report, path, view in wanted:
        sha256, why = found[path]
        if why:
            where = str(path.relative_to(folder))
            selection.left_out.append(LeftOut(report.source_id, where, "picture", why))
        else:
            selection.pictures.setdefault(report.source_id, []).append(Picture(path, view, sha256))
    kept = []
    for report in selection.reports:
        if report.source_id in selection.pictures:
            kept.append(report)
        else:
            why = f"no {filters.views if filters.views == 'frontal' else ''} picture in the folder"
            out = LeftOut(report.source_id, report.where, "no_picture", " ".join(why.split()))
            selection.left_out.append(out)
    selection.reports = kept
    selection.steps.append(("with a picture", len(kept)))


def _stamp(path: Path) -> str:
    """Place, size and time of a file: another content has another stamp."""
    facts = path.stat()
    return f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}"


def _read(path: Path) -> tuple[str, str]:
    """SHA-256 of a picture, or why it cannot be used."""
    try:
        read_image(path)
        return file_sha256(path), ""
    except (ImageError, OSError) as error:
        return "", f"unreadable picture: {str(error).replace(str(path), path.name)}"


def _index(folder: Path) -> tuple[dict[Any, Path], dict[str, list[Path]]]:
    """Key of a picture's name -> its file; name of the folder it lies in -> files."""
    if not folder.is_dir():
        raise DataError(f"no folder {folder} (--images)")
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in _PICTURES]
    if not found:
        raise DataError(f"no pictures ({', '.join(_PICTURES)}) in {folder}")
    index: dict[Any, Path] = {}
    by_folder: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        index.setdefault(_key(str(path.relative_to(folder))), path)
        index.setdefault(_key(path.name), path)
        by_folder[path.parent.name].append(path)
    return index, by_folder


def _key(name: str) -> Any:
    match = _OPENI.match(Path(name).name)
    if match:
        return int(match[1]), match[2]
    while Path(name).suffix.lower() in _PICTURES:
        name = name[: -len(Path(name).suffix)]
    return name


def _of(
    report: SourceReport,
    index: dict[Any, Path],
    by_folder: dict[str, list[Path]],
    views: dict[str, str],
    left_out: list[LeftOut],
) -> Iterator[tuple[Path, str]]:
    """Pictures of a report with their views: by name, or all in the folder called as the study."""
    if not report.images:
        for path in by_folder.get(report.source_id, []):
            yield path, views.get(path.stem, "unknown" if views else "")
    for image in report.images:
        found = index.get(_key(image.name))
        if found is not None:
            yield found, image.view
        elif image.view.lower() in _FRONTAL:
            why = f"picture {image.name} is absent"
            left_out.append(LeftOut(report.source_id, report.where, "picture", why))


def _mimic_views(folder: Path, filters: Filters) -> dict[str, str]:
    """Picture -> view, from MIMIC-CXR-JPG's table of metadata in its folder or one above.

    Raises:
        InputError: It is absent, and laterals would pass for frontal.
        DataError: It cannot be read.
    """
    names = (f"{METADATA}.gz", METADATA)
    above = (folder, *folder.resolve().parents[:4])
    found = [place / name for place in above for name in names if (place / name).is_file()]
    if not found:
        if filters.views == "all":
            return {}
        raise InputError(
            f"no {METADATA}(.gz) in {folder} or above: without it laterals pass for frontal. "
            "Put it there, or say --views all"
        )
    path = found[0]
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if not {"dicom_id", "ViewPosition"} <= set(table.fieldnames or ()):
                raise DataError(f"{path} lacks the column dicom_id or ViewPosition")
            # A view that is not said must not pass for frontal.
            return {row["dicom_id"]: row["ViewPosition"] or "unknown" for row in table}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {type(error).__name__}") from None
