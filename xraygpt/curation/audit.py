"""Random rows of a curated folder, source beside result, for a person to mark."""

from __future__ import annotations

import csv
import difflib
import io
import json
import random
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.checks import wilson
from xraygpt.curation.folder import CAPTIONS, MANIFEST, TURNS
from xraygpt.curation.llm.items import encode_picture
from xraygpt.curation.select import Selection, as_cell, write_private
from xraygpt.vocabulary.chest_labeller import mentions

PAGE, TABLE = "audit.html", "audit.csv"
_SIDE = 300  # pixels of a picture on the page
Piece = tuple[str, str]  # ("both" or "only", words)


def audit(selection: Selection, out: Path, rows: int, seed: int) -> str:
    """Write `audit.html` and `audit.csv` into a curated folder; both hold report text.

    Args:
        selection: Its corpus, read again with every filter open.
        out: The folder.
        rows: Most rows to draw.
        seed: Of the draw.

    Returns:
        A line that says where they are.

    Raises:
        DataError: The folder holds no curated corpus, or one of other reports.
    """
    _check_unmarked(out / TABLE)
    reports = {report.source_id: report for report in selection.reports}
    results = _results(out)
    unknown = [name for name, row in results.items() if row["study"] not in reports]
    if unknown:
        raise DataError(
            f"{out} has {len(unknown)} texts of reports that --reports does not hold "
            f"({unknown[0]} …); name the reports it was made of"
        )
    names = random.Random(seed).sample(sorted(results), min(rows, len(results)))
    shown, table = [], []
    for name in names:
        row = results[name]
        report = reports[row["study"]]
        source, result = selection.text(report), row["text"]
        labels = label_difference(source, row["said"])
        before, after = word_difference(source, result)
        path = row["picture"]
        shown.append({
            "item": name, "where": report.where, "source": before, "result": after,
            "labels": labels, "picture": encode_picture(path, _SIDE) if path.exists() else "",
        })  # fmt: skip
        changed = {kind: [n for n, k in labels if k == kind] for kind in ("lost", "new")}
        lost, new = ("; ".join(changed[k]) for k in ("lost", "new"))
        table.append([*map(as_cell, (name, source, result, lost, new)), "", ""])
    facts = _facts(out)
    template = (resources.files("xraygpt") / "data" / PAGE.replace(".", "_page.")).read_text(
        "utf-8"
    )
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    html = page.render(
        corpus=selection.corpus.name, rows=shown, seed=seed, facts=facts,
        pictures=any(row["picture"] for row in shown),
    )  # fmt: skip
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["item", "source", "result", "lost", "new", "mark", "comment"])
    writer.writerows(table)
    for file, content in ((PAGE, html), (TABLE, text.getvalue())):
        write_private(out / file, content)
    changed_rows = sum(bool(row[3] or row[4]) for row in table)
    return (
        f"{out / PAGE} and {TABLE}: {len(shown)} of {len(results)} texts, {changed_rows} with a "
        "finding lost or new. Mark each good or bad, then --marks audit.csv"
    )


def _check_unmarked(path: Path) -> None:
    """Refuse to write over a person's work.

    Raises:
        InputError: The table holds marks.
    """
    if not path.is_file():
        return
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        if any((row.get("mark") or "").strip() for row in csv.DictReader(file)):
            raise InputError(f"{path} holds marks; move it away, or count it with --marks {path}")


def _results(out: Path) -> dict[str, dict[str, Any]]:
    """Name -> study, text and picture of each text of a folder; pictures of one text count once."""
    found: dict[str, dict[str, Any]] = {}
    try:
        if (out / TURNS).exists():
            for line in (out / TURNS).read_text(encoding="utf-8").split("\n")[:-1]:
                row = json.loads(line)
                turns = [t["text"] for t in row["turns"]]
                text = "\n".join(turns)
                path = out / "image" / row["images"][0]["path"]
                said = " ".join(t["text"] for t in row["turns"] if t["role"] == "assistant")
                found.setdefault(row["study"], _result(row, text, said, path))
            return found
        rows = json.loads((out / CAPTIONS).read_text(encoding="utf-8"))["annotations"]
    except OSError as error:
        raise DataError(f"{out} holds no curated corpus: {error.strerror} ({CAPTIONS})") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{out}: {CAPTIONS} or {TURNS} is not as curation writes it") from None
    files = {p.stem: p for p in (out / "image").iterdir()}
    told: set[tuple[str, str]] = set()
    for row in rows:
        if (row["study"], row["caption"]) in told:
            continue
        told.add((row["study"], row["caption"]))
        name = row["study"] if row["study"] not in found else f"{row['study']}/{row['image_id']}"
        path = files.get(row["image_id"], out / "image" / row["image_id"])
        found[name] = _result(row, row["caption"], row["caption"], path)
    return found


def _result(row: dict[str, Any], text: str, said: str, picture: Path) -> dict[str, Any]:
    """A text, and what of it affirms or denies: questions do neither."""
    return {"study": row["study"], "text": text, "said": said, "picture": picture}


def _facts(out: Path) -> str:
    """How the folder was made, for people."""
    try:
        made = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        by = made["provider"] if made["provider"] == "rules" else f"{made['task']}, {made['model']}"
        rate = made["acceptance"]
        return (
            f"Made {made['date']} by {by}; {made['accepted']:,} texts accepted "
            f"({rate['rate']:.1%}, 95 % interval {rate['low']:.1%} to {rate['high']:.1%})"
        )
    except (OSError, ValueError, KeyError):
        return "Without a manifest"


def word_difference(source: str, result: str) -> tuple[list[Piece], list[Piece]]:
    """Words of both texts, marked ``only`` where the other has not got them."""
    before, after = source.split(), result.split()
    plain = [[w.strip(".,;:").lower() for w in words] for words in (before, after)]
    matcher = difflib.SequenceMatcher(None, plain[0], plain[1], autojunk=False)
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        said = "both" if kind == "equal" else "only"
        if b > a:
            left.append((said, " ".join(before[a:b])))
        if d > c:
            right.append((said, " ".join(after[c:d])))
    return left, right


def label_difference(source: str, result: str) -> list[tuple[str, str]]:
    """Findings of both texts with ``kept``, ``lost`` or ``new``; what is denied may go unsaid."""
    before, after = _labels(source), _labels(result)
    found = [(label, "kept") for label in sorted(before & after)]
    lost = [(label, "lost") for label in sorted(before - after) if not label.startswith("no ")]
    return [*found, *lost, *((label, "new") for label in sorted(after - before))]


def _labels(text: str) -> set[str]:
    words = {"positive": "", "negative": "no ", "uncertain": "perhaps "}
    found = set()
    for mention in mentions(text):
        side = f", {mention.laterality}" if mention.laterality else ""
        side = "" if mention.status == "negative" else side
        found.add(f"{words[mention.status]}{mention.finding.replace('_', ' ')}{side}")
    return found


def read_marks(path: Path) -> str:
    """Share of good rows in a marked table, with its interval.

    Raises:
        InputError: The file is absent, lacks a column, or has no mark or another word as one.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read the marks {path}: {error}") from None
    if rows and not {"item", "mark"} <= set(rows[0]):
        raise InputError(f"{path} lacks the column item or mark; it has {', '.join(rows[0])}")
    marks: Sequence[str] = [(row["mark"] or "").strip().lower() for row in rows]
    for number, mark in enumerate(marks, 2):
        if mark not in ("", "good", "bad"):
            raise InputError(f"{path}, line {number}: the mark is neither good nor bad")
    marked = [mark for mark in marks if mark]
    if not marked:
        raise InputError(f"{path}: no row is marked good or bad")
    good = marked.count("good")
    low, high = wilson(good, len(marked))
    return (
        f"{good} of {len(marked)} marked rows are good: {good / len(marked):.1%} "
        f"(95 % interval {low:.1%} to {high:.1%}); {len(marks) - len(marked)} not marked"
    )
