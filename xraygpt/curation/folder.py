"""The training folder: pictures, captions or turns, what was held back, and the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import file_sha256, write_text_atomic
from xraygpt.common.errors import DataError, InputError
from xraygpt.curation.checks import reasons_counted, wilson
from xraygpt.curation.llm.ledger import LEDGER_FILE
from xraygpt.curation.select import Filters, LeftOut, Picture, Selection, write_left_out
from xraygpt.curation.sources import SourceReport
from xraygpt.version import __version__
from xraygpt.vocabulary.openi import is_published_test

CAPTIONS, TURNS = "filter_cap.json", "vqa.jsonl"
MANIFEST, HELD_BACK = "manifest.json", "held_back.csv"
UNFINISHED = ".unfinished"  # stands while the folder is being written
TROUBLE = ("unreadable", "picture", "no_picture", "refused", "invalid", "failed", "todo")
"""Stages of what a file or an endpoint failed, which the exit code speaks of."""


class NothingLeft(DataError):
    """No report came to the end; `held_back.csv` says why."""

    exit_code = 1


@dataclass
class Texts:
    """What rewriting made of a selection.

    Attributes:
        by_item: source_id, or source_id/picture name -> text, or turns of question and answer.
        left_out: What has no text.
        facts: For the manifest.
        asked: Items that were rewritten or tried.
    """

    by_item: dict[str, Any] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    asked: int = 0


def item_name(report: SourceReport, picture: Picture | None) -> str:
    """Name of an item: of the report, or of one of its pictures."""
    return report.source_id if picture is None else f"{report.source_id}/{picture.path.name}"


def check_free(out: Path, corpus: str, task: str) -> None:
    """Refuse a folder that holds something this run would not go on with.

    Args:
        out: The folder.
        corpus: Name of the corpus of this run.
        task: Name of the task of a language model, whose ledger makes the run go on with what is
            there; empty for rules.

    Raises:
        InputError: It does.
    """
    made = [name for name in (CAPTIONS, TURNS) if (out / name).exists()]
    if not made or (out / UNFINISHED).exists():
        return
    if not task or not (out / LEDGER_FILE).exists():
        raise InputError(f"{out} holds a curated corpus already; name another folder")
    try:
        there = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = {}
    for name, wanted in (("corpus", corpus), ("task", task)):
        found = there.get(name, wanted)
        if found != wanted:
            raise InputError(f"{out} holds the {name} {found}, not {wanted}; name another folder")


def write_folder(
    out: Path, selection: Selection, texts: Texts, filters: Filters, raw: Path, copy: bool
) -> dict[str, Any]:
    """Write everything, each file whole; the manifest last.

    Returns:
        The manifest.

    Raises:
        DataError: There is nothing to train on.
    """
    rows = [
        (report, picture, texts.by_item[name])
        for report in selection.reports
        for picture in selection.pictures.get(report.source_id, [])
        for name in (item_name(report, None), item_name(report, picture))
        if name in texts.by_item
    ]
    out.mkdir(parents=True, exist_ok=True)
    left_out = [*selection.left_out, *texts.left_out]
    write_left_out(left_out, out / HELD_BACK)
    if not rows:
        raise NothingLeft(
            f"nothing to train on: of {selection.steps[0][1]} reports {selection.steps[-1][1]} "
            f"passed the filters and have a picture, none a usable text{_commonest(left_out)}\n"
            f"{out / HELD_BACK} names them"
        )
    (out / UNFINISHED).touch()
    names = bring_pictures([picture for _, picture, _ in rows], out / "image", copy)
    if isinstance(rows[0][2], str):
        annotations = [_caption(r, names[p.path], p.view, text) for r, p, text in rows]
        write_text_atomic(out / CAPTIONS, json.dumps({"annotations": annotations}, indent=1))
    else:
        annotations = [_turns(r, names[p.path], p.view, turns) for r, p, turns in rows]
        lines = [json.dumps(row, ensure_ascii=False) for row in annotations]
        write_text_atomic(out / TURNS, "".join(f"{line}\n" for line in lines))
    manifest = _manifest(selection, texts, filters, raw, annotations, left_out)
    manifest["pictures_sha256"] = _joint([p.sha256 for _, p, _ in rows])
    write_text_atomic(out / MANIFEST, json.dumps(manifest, indent=1))
    (out / UNFINISHED).unlink()
    return manifest


def _commonest(left_out: Sequence[LeftOut]) -> str:
    """The commonest reasons, each with an example."""
    examples = {row.stage: row.reason for row in left_out}
    counted = Counter(row.stage for row in left_out).most_common(4)
    return "".join(f"\n  {count} {stage}, such as: {examples[stage]}" for stage, count in counted)


def _joint(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(set(hashes))).encode()).hexdigest()


def bring_pictures(pictures: Sequence[Picture], folder: Path, copy: bool) -> dict[Path, str]:
    """Link or copy pictures; their names in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    names = names_of(pictures)
    for picture in {p.path: p for p in pictures}.values():
        target = folder / names[picture.path]
        if target.exists() and file_sha256(target) == picture.sha256:
            continue
        aside = folder / f".{target.name}.part"
        aside.unlink(missing_ok=True)
        try:
            if copy:
                raise OSError
            os.link(picture.path.resolve(), aside)  # not a link to a link, which may lead nowhere
        except OSError:  # another disk, or one without hard links
            shutil.copyfile(picture.path, aside)
        aside.replace(target)
    return names


def names_of(pictures: Sequence[Picture]) -> dict[Path, str]:
    """Name of each picture in the folder.

    Raises:
        DataError: Two would have the same.
    """
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in dict.fromkeys(picture.path for picture in pictures):
        name = path.name
        if name in taken:  # patients' folders often hold files of the same names
            name = f"{path.parent.name}_{name}"
        if name in taken:
            raise DataError(f"two pictures would both be called {name}: {path} is the second")
        taken.add(name)
        names[path] = name
    return names


def _caption(report: SourceReport, name: str, view: str, text: str) -> dict[str, Any]:
    row = {"image_id": Path(name).stem, "caption": text, "study": report.source_id}
    if report.patient_id:
        row["patient"] = report.patient_id
    return row | _known(report, view)


def _turns(report: SourceReport, name: str, view: str, turns: list[Any]) -> dict[str, Any]:
    said = [
        {"role": role, "text": turn[key]}
        for turn in turns
        for role, key in (("user", "question"), ("assistant", "answer"))
    ]
    row: dict[str, Any] = {"id": Path(name).stem, "study": report.source_id}
    if report.patient_id:
        row["patient"] = report.patient_id
    known = _known(report, view)
    picture = {"path": name, "view": known.pop("view", "")}
    return row | known | {"images": [picture], "turns": said}


def _known(report: SourceReport, view: str) -> dict[str, str]:
    known = {"view": view} if view else {}
    if is_published_test(report.source_id):
        known["split"] = "test"
    return known


def _manifest(
    selection: Selection,
    texts: Texts,
    filters: Filters,
    raw: Path,
    annotations: Sequence[Mapping[str, Any]],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """Counts, hashes of the input, settings; no report text, no path of this machine."""
    stages = Counter(row.stage for row in left_out)
    accepted = len(texts.by_item)
    judged = accepted + sum(stages[s] for s in ("check", "refused", "invalid"))
    low, high = wilson(accepted, judged) if judged else (0.0, 0.0)
    of_checks = [r.reason.split("; ") for r in left_out if r.stage in ("check", "invalid")]
    return {
        "corpus": selection.corpus.name,
        "licence": selection.corpus.licence,
        "notice": "research use only, not for diagnosis",
        **texts.facts,
        "xraygpt": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "inputs": {raw.name: file_sha256(raw)} if raw.is_file() else _tables(raw),
        "reports_sha256": selection.sources_sha256,
        "filters": asdict(filters),
        "left_after": dict(selection.steps),
        "left_out": dict(sorted(stages.items())),
        "held_back_for": reasons_counted(of_checks),
        "accepted": accepted,
        "acceptance": {"rate": accepted / max(judged, 1), "low": low, "high": high},
        "pictures": len(annotations),
        "pictures_of_published_test_split": sum(r.get("split") == "test" for r in annotations),
    }


def _tables(raw: Path) -> dict[str, str]:
    return {p.name: file_sha256(p) for p in sorted(raw.glob("*.csv"))}
