"""A raw corpus -> the training folder: `image/`, `filter_cap.json`, `manifest.json`.

Every report is counted somewhere: read, left out by a named filter, held back by a check, accepted.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from xraygpt import __version__
from xraygpt.common.checkpoint import digest, write_file
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.logging import progress
from xraygpt.common.openi import is_published_test
from xraygpt.curation.checks import problems, reasons_counted, wilson
from xraygpt.curation.rules import clean
from xraygpt.curation.sources import CORPORA, Corpus, ImageName, Problem, SourceReport

log = logging.getLogger(__name__)

# OpenI's own name and Kaggle's for one picture: CXR1_1_IM-0001-4001.png, 1_IM-0001-4001.dcm.png.
_OPENI = re.compile(r"^(?:CXR)?(\d+)_(?:\d+_)?(IM-\d+(?:-\d+)*)")
_PICTURES = (".png", ".jpg", ".jpeg", ".dcm")


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which reports are worth learning from; the defaults are XrayGPT's (Thawkar et al. 2023)."""

    min_findings_words: int = 10
    """Fewest words of the findings, between blanks."""
    min_impression_words: int = 2
    """Fewest words of the impression."""
    views: Literal["frontal", "all"] = "frontal"
    """Which pictures; a corpus that does not say its views keeps all."""


@dataclass
class Counts:
    """What became of the reports."""

    steps: list[tuple[str, int]] = field(default_factory=list)  # filter -> left after it
    removed: Counter[str] = field(default_factory=Counter)  # sentences, by reason
    changed: int = 0  # sentences that lost words
    held: list[list[str]] = field(default_factory=list)  # reasons of each report held back
    accepted: int = 0
    without_image: int = 0


def curate(
    corpus_name: str,
    raw: Path,
    images: Path,
    out: Path,
    filters: Filters,
    *,
    copy: bool = False,
) -> dict[str, Any]:
    """Make the training folder of a corpus by rules alone.

    Args:
        corpus_name: A key of `CORPORA`.
        raw: Its reports, as downloaded.
        images: Folder of its pictures.
        out: Gets the training folder; must not hold one.
        filters: Which reports.
        copy: Copy pictures instead of linking them.

    Returns:
        The manifest.

    Raises:
        InputError: The folder is taken.
        DataError: Nothing was accepted, or the corpus is not there.
    """
    if (out / "filter_cap.json").exists():
        raise InputError(f"{out} holds a curated corpus already; name another folder")
    corpus, counts = CORPORA[corpus_name], Counts()
    rows = list(corpus.read(raw))
    unread = [r for r in rows if isinstance(r, Problem)]
    reports = [r for r in rows if isinstance(r, SourceReport)]
    counts.steps.append(("read", len(reports)))
    for name, keep in _filters(corpus, filters):
        reports = [r for r in reports if keep(r)]
        counts.steps.append((name, len(reports)))
    index = _pictures(images)
    held_back: list[tuple[SourceReport, list[str]]] = []
    annotations: list[dict[str, Any]] = []
    for report in progress(reports, desc="curating", unit="report"):
        text, why = _rewritten(report, corpus, counts)
        if why:
            held_back.append((report, why))
            counts.held.append(why)
            continue
        counts.accepted += 1
        found = _of(report, index, filters)
        counts.without_image += not found
        annotations += [_annotation(report, image, path, text) for image, path in found]
    if not annotations:
        raise DataError(
            f"nothing to train on: {len(reports)} of {len(rows)} reports passed the filters, "
            f"{counts.accepted} the checks, and none has a picture in {images}"
        )
    _write(out, annotations, held_back, unread, copy)
    manifest = _manifest(corpus, raw, filters, counts, unread, annotations)
    write_file(out / "manifest.json", json.dumps(manifest, indent=1))
    return manifest


def _filters(
    corpus: Corpus, filters: Filters
) -> Iterator[tuple[str, Callable[[SourceReport], bool]]]:
    """Name and test of each filter, in their order."""

    def words(report: SourceReport, section: str) -> int:
        return len(report.sections.get(section, "").split())

    if not corpus.has_sections:
        yield "a caption", lambda r: words(r, "findings") > 0
        return
    yield "findings and impression", lambda r: bool(words(r, "findings") and words(r, "impression"))
    yield (
        f"at least {filters.min_findings_words} words of findings",
        lambda r: words(r, "findings") >= filters.min_findings_words,
    )
    yield (
        f"at least {filters.min_impression_words} words of impression",
        lambda r: words(r, "impression") >= filters.min_impression_words,
    )


def _rewritten(report: SourceReport, corpus: Corpus, counts: Counts) -> tuple[str, list[str]]:
    names = ("findings", "impression") if corpus.has_sections else ("findings",)
    sections = [report.sections[name] for name in names]
    done = clean(sections)
    counts.removed.update(done.removed)
    counts.changed += done.changed
    return done.text, problems(" ".join(sections), done.text)


def _pictures(folder: Path) -> dict[Any, Path]:
    """Key of a picture's name -> its file.

    Raises:
        DataError: The folder is absent or holds none.
    """
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in _PICTURES]
    if not found:
        raise DataError(f"no pictures ({', '.join(_PICTURES)}) in {folder}")
    index: dict[Any, Path] = {}
    for path in found:
        index.setdefault(_key(str(path.relative_to(folder))), path)
        index.setdefault(_key(path.name), path)
    return index


def _key(name: str) -> Any:
    match = _OPENI.match(Path(name).name)
    if match:
        return int(match[1]), match[2]
    while Path(name).suffix.lower() in _PICTURES:
        name = name[: -len(Path(name).suffix)]
    return name


def _of(
    report: SourceReport, index: dict[Any, Path], filters: Filters
) -> list[tuple[ImageName, Path]]:
    """Pictures of a report that are there and wanted."""
    wanted = [
        i for i in report.images if filters.views == "all" or i.view.lower() in ("", "frontal")
    ]
    return [(i, index[_key(i.name)]) for i in wanted if _key(i.name) in index]


def _annotation(report: SourceReport, image: ImageName, path: Path, text: str) -> dict[str, Any]:
    row = {"image_id": path.stem, "caption": text, "study": report.source_id}
    if image.view:
        row["view"] = image.view
    if is_published_test(report.source_id):
        row["split"] = "test"
    return {**row, "_path": path}


def _write(
    out: Path,
    annotations: list[dict[str, Any]],
    held_back: list[tuple[SourceReport, list[str]]],
    unread: list[Problem],
    copy: bool,
) -> None:
    (out / "image").mkdir(parents=True, exist_ok=True)
    rows = []
    for row in annotations:
        path: Path = row.pop("_path")
        target = out / "image" / path.name
        if not target.exists():
            bring = shutil.copyfile if copy or not _same_disk(path, out) else os.link
            bring(path, target)
        rows.append(row)
    write_file(out / "filter_cap.json", json.dumps({"annotations": rows}, indent=1))
    aside = out / f"held_back.csv.tmp-{os.getpid()}"
    with aside.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["source_id", "where", "reasons"])
        table.writerows([r.source_id, r.where, "; ".join(why)] for r, why in held_back)
        table.writerows(["", p.where, p.why] for p in unread)
    aside.replace(out / "held_back.csv")


def _same_disk(path: Path, out: Path) -> bool:
    return path.stat().st_dev == out.stat().st_dev


def _manifest(
    corpus: Corpus,
    raw: Path,
    filters: Filters,
    counts: Counts,
    unread: list[Problem],
    annotations: list[dict[str, Any]],
) -> dict[str, Any]:
    """Counts, hashes of the input, settings; no report text."""
    checked = counts.accepted + len(counts.held)
    low, high = wilson(counts.accepted, checked) if checked else (0.0, 0.0)
    hashes = {raw.name: digest(raw)} if raw.is_file() else {}
    if raw.is_dir():
        hashes = {p.name: digest(p) for p in sorted(raw.glob("*.csv"))}
    return {
        "corpus": corpus.name,
        "licence": corpus.licence,
        "provider": "rules",
        "xraygpt": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "inputs": hashes,
        "filters": asdict(filters),
        "unreadable": len(unread),
        "left_after": dict(counts.steps),
        "sentences_removed": dict(counts.removed),
        "sentences_changed": counts.changed,
        "held_back": len(counts.held),
        "held_back_for": reasons_counted(counts.held),
        "accepted": counts.accepted,
        "acceptance": {"rate": counts.accepted / max(checked, 1), "low": low, "high": high},
        "accepted_without_image": counts.without_image,
        "pictures": len(annotations),
        "pictures_of_published_test_split": sum(r.get("split") == "test" for r in annotations),
        "privacy": "rules alone: no text left this machine",
    }
