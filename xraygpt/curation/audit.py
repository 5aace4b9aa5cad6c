"""Audit of a curated folder: source and result of random rows side by side, for manual marking."""

from __future__ import annotations

import csv
import difflib
import functools
import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.checks import wilson_interval
from xraygpt.curation.files import escape_formula, write_private
from xraygpt.curation.folder import CAPTIONS_FILE, MANIFEST_FILE, TURNS_FILE
from xraygpt.curation.llm.items import encode_picture
from xraygpt.curation.select import Selection
from xraygpt.curation.sources import SourceReport
from xraygpt.vocabulary.chest_labeller import mentions

PAGE_FILE, TABLE_FILE = "audit.html", "audit.csv"
_PICTURE_SIDE = 300  # pixels, on the page
_STATUS_PREFIXES = {"positive": "", "negative": "no ", "uncertain": "perhaps "}
Piece = tuple[str, str]
"""A stretch of words, after ``both`` or ``only``."""


@dataclass(frozen=True)
class _CuratedText:
    """A text in a curated folder.

    Attributes:
        study: The source_id of the report it was made from.
        text: The text, or all turns of a conversation.
        statements: The part that affirms or denies findings: the text, or a conversation's answers.
        picture: Path of the first picture it belongs to.
    """

    study: str
    text: str
    statements: str
    picture: Path


@dataclass(frozen=True)
class _AuditRow:
    """A text next to its source, as shown on the page and in the table."""

    name: str
    report: SourceReport
    source: str
    result: _CuratedText

    @functools.cached_property
    def labels(self) -> list[tuple[str, str]]:
        return label_difference(self.source, self.result.statements)

    def for_page(self) -> dict[str, Any]:
        """Return the values for the page's template."""
        source, result = word_difference(self.source, self.result.text)
        path = self.result.picture
        return {
            "item": self.name,
            "where": self.report.where,
            "source": source,
            "result": result,
            "labels": self.labels,
            "picture": encode_picture(path, _PICTURE_SIDE) if path.exists() else "",
        }

    def for_table(self) -> list[str]:
        """Return the row's cells: item, source, result, lost and new findings, mark, comment."""
        lost = "; ".join(label for label, kind in self.labels if kind == "lost")
        new = "; ".join(label for label, kind in self.labels if kind == "new")
        cells = (self.name, self.source, self.result.text, lost, new)
        return [*map(escape_formula, cells), "", ""]


def write_audit(selection: Selection, out: Path, max_rows: int, seed: int) -> str:
    """Write `audit.html` and `audit.csv` into a curated folder; both contain report text.

    Args:
        selection: All reports of the corpus, without filters.
        out: The folder.
        max_rows: Maximum number of rows.
        seed: Seed for the random choice.

    Returns:
        A summary for the user.

    Raises:
        DataError: The folder contains no curated corpus, or texts made from other reports.
        InputError: The folder contains a table that has marks.
    """
    _check_unmarked(out / TABLE_FILE)
    texts = _read_texts(out)
    rows = _sample_rows(selection, texts, out, max_rows, seed)
    page = _render_page(rows, selection.corpus.name, seed, _describe_manifest(out))
    table = [row.for_table() for row in rows]
    write_private(out / PAGE_FILE, page)
    write_private(out / TABLE_FILE, _format_table(table))
    changed = sum(bool(row[3] or row[4]) for row in table)
    return (
        f"{out / PAGE_FILE} and {TABLE_FILE}: {len(rows)} of {len(texts)} texts, {changed} with a "
        "lost or new finding. Mark each row good or bad, then run with --marks audit.csv"
    )


def _check_unmarked(path: Path) -> None:
    """Refuse to overwrite a table with marks.

    Raises:
        InputError: The table has marks.
    """
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        if any((row.get("mark") or "").strip() for row in csv.DictReader(file)):
            raise InputError(f"{path} contains marks; move it away, or pass --marks {path}")


def _sample_rows(
    selection: Selection, texts: Mapping[str, _CuratedText], out: Path, max_rows: int, seed: int
) -> list[_AuditRow]:
    reports = {report.source_id: report for report in selection.reports}
    unknown = [name for name, text in texts.items() if text.study not in reports]
    if unknown:
        raise DataError(
            f"{out} has {len(unknown)} texts whose reports are not in --reports ({unknown[0]} …); "
            "pass the reports that the folder was made from"
        )
    names = random.Random(seed).sample(sorted(texts), min(max_rows, len(texts)))
    rows = []
    for name in names:
        report = reports[texts[name].study]
        rows.append(_AuditRow(name, report, selection.text(report), texts[name]))
    return rows


def _render_page(rows: Sequence[_AuditRow], corpus: str, seed: int, facts: str) -> str:
    template = resources.files("xraygpt") / "data" / "audit_page.html"
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    values = [row.for_page() for row in rows]
    return environment.from_string(template.read_text("utf-8")).render(
        corpus=corpus,
        rows=values,
        seed=seed,
        facts=facts,
        pictures=any(row["picture"] for row in values),
    )


def _format_table(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["item", "source", "result", "lost", "new", "mark", "comment"])
    writer.writerows(rows)
    return text.getvalue()


def _read_texts(out: Path) -> dict[str, _CuratedText]:
    """Read the texts in a folder by name; a text that several pictures share counts once.

    Raises:
        DataError: The folder is not a curated folder.
    """
    try:
        if (out / TURNS_FILE).exists():
            return _read_conversations(out)
        rows = json.loads((out / CAPTIONS_FILE).read_text(encoding="utf-8"))["annotations"]
    except OSError as error:
        raise DataError(
            f"{out} contains no curated corpus: {error.strerror} ({CAPTIONS_FILE})"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{out}: {CAPTIONS_FILE} or {TURNS_FILE} is not in the form that curation writes"
        ) from None
    return _index_captions(rows, out / "image")


def _read_conversations(out: Path) -> dict[str, _CuratedText]:
    texts: dict[str, _CuratedText] = {}
    for line in (out / TURNS_FILE).read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        text = "\n".join(turn["text"] for turn in row["turns"])
        answers = " ".join(turn["text"] for turn in row["turns"] if turn["role"] == "assistant")
        picture = out / "image" / row["images"][0]["path"]
        texts.setdefault(row["study"], _CuratedText(row["study"], text, answers, picture))
    return texts


def _index_captions(rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, _CuratedText]:
    texts: dict[str, _CuratedText] = {}
    files = {path.stem: path for path in folder.iterdir()}
    seen: set[tuple[str, str]] = set()
    for row in rows:
        study, caption, image = row["study"], row["caption"], row["image_id"]
        if (study, caption) in seen:
            continue
        seen.add((study, caption))
        name = study if study not in texts else f"{study}/{image}"
        texts[name] = _CuratedText(study, caption, caption, files.get(image, folder / image))
    return texts


def _describe_manifest(out: Path) -> str:
    """Describe how the folder was made, as stated in its manifest."""
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
        method = manifest["provider"]
        if method != "rules":
            method = f"{manifest['task']}, {manifest['model']}"
        rate = manifest["acceptance"]
        return (
            f"Made {manifest['date']} by {method}; {manifest['accepted']:,} texts accepted "
            f"({rate['rate']:.1%}, 95 % interval {rate['low']:.1%} to {rate['high']:.1%})"
        )
    except (OSError, ValueError, KeyError):
        return "Without a manifest"


def word_difference(source: str, result: str) -> tuple[list[Piece], list[Piece]]:
    """Split both texts into pieces marked ``only`` if the other text lacks them, else ``both``."""
    source_words, result_words = source.split(), result.split()
    plain = [
        [word.strip(".,;:").lower() for word in words] for words in (source_words, result_words)
    ]
    matcher = difflib.SequenceMatcher(None, plain[0], plain[1], autojunk=False)
    source_pieces: list[Piece] = []
    result_pieces: list[Piece] = []
    for operation, start, end, result_start, result_end in matcher.get_opcodes():
        kind = "both" if operation == "equal" else "only"
        if end > start:
            source_pieces.append((kind, " ".join(source_words[start:end])))
        if result_end > result_start:
            result_pieces.append((kind, " ".join(result_words[result_start:result_end])))
    return source_pieces, result_pieces


def label_difference(source: str, result: str) -> list[tuple[str, str]]:
    """Mark the findings in both texts as ``kept``, ``lost`` or ``new``; omit lost denials."""
    before, after = _labels(source), _labels(result)
    kept = [(label, "kept") for label in sorted(before & after)]
    lost = [(label, "lost") for label in sorted(before - after) if not label.startswith("no ")]
    return [*kept, *lost, *((label, "new") for label in sorted(after - before))]


def _labels(text: str) -> set[str]:
    labels = set()
    for mention in mentions(text):
        has_side = mention.laterality and mention.status != "negative"
        side = f", {mention.laterality}" if has_side else ""
        prefix = _STATUS_PREFIXES[mention.status]
        labels.add(f"{prefix}{mention.finding.replace('_', ' ')}{side}")
    return labels


def summarise_marks(path: Path) -> str:
    """Summarise a marked table as the share of good rows with its confidence interval.

    Raises:
        InputError: The file or a column is missing, no row is marked, or a mark is invalid.
    """
    marks = _read_marks(path)
    marked = [mark for mark in marks if mark]
    if not marked:
        raise InputError(f"{path}: no row is marked good or bad")
    good = marked.count("good")
    low, high = wilson_interval(good, len(marked))
    return (
        f"{good} of {len(marked)} marked rows are good: {good / len(marked):.1%} "
        f"(95 % interval {low:.1%} to {high:.1%}); {len(marks) - len(marked)} not marked"
    )


def _read_marks(path: Path) -> list[str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the marks in {path}: {error}") from None
    if rows and not {"item", "mark"} <= set(rows[0]):
        raise InputError(f"{path} lacks the column item or mark; it has only {', '.join(rows[0])}")
    marks = [(row["mark"] or "").strip().lower() for row in rows]
    for number, mark in enumerate(marks, 2):
        if mark not in ("", "good", "bad"):
            raise InputError(f"{path}, line {number}: the mark is neither good nor bad")
    return marks
