"""The training folder: pictures, captions or conversations, held-back items, and the manifest."""

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
from xraygpt.curation.checks import count_reasons, wilson_interval
from xraygpt.curation.files import LeftOut, write_left_out
from xraygpt.curation.llm.ledger import LEDGER_FILE
from xraygpt.curation.select import Filters, Picture, Selection
from xraygpt.curation.sources import SourceReport
from xraygpt.version import __version__
from xraygpt.vocabulary.openi import reserved_split

CAPTIONS_FILE, TURNS_FILE = "filter_cap.json", "vqa.jsonl"
MANIFEST_FILE, HELD_BACK_FILE = "manifest.json", "held_back.csv"
UNFINISHED_MARKER = ".unfinished"
"""A file that exists while the folder is being written."""
FAILURE_STAGES = (
    "unreadable", "picture", "no_picture", "refused", "invalid", "failed", "todo",
)  # fmt: skip
"""Stages of `LeftOut` caused by a file or an endpoint; any of them changes the exit code."""


class NothingLeft(DataError):
    """No report has a usable text; `held_back.csv` lists the reasons."""

    exit_code = 1


@dataclass
class RewrittenTexts:
    """The rewritten texts for a selection.

    Attributes:
        by_item: `item_name` -> text, or a list of turns with question and answer.
        left_out: The items without a text.
        facts: How the texts were made, for the manifest.
        attempted: Number of items that were to be rewritten.
    """

    by_item: dict[str, Any] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    attempted: int = 0


@dataclass(frozen=True)
class _TrainingRow:
    """A picture with its text, or with its turns of question and answer."""

    report: SourceReport
    picture: Picture
    text: Any


def item_name(report: SourceReport, picture: Picture | None) -> str:
    """Return the name of an item to rewrite: a report, or one of its pictures."""
    return report.source_id if picture is None else f"{report.source_id}/{picture.path.name}"


def check_output_folder(out: Path, corpus: str, task: str) -> None:
    """Check that a folder is unused or contains an earlier run that can be continued.

    Args:
        out: The folder.
        corpus: Name of the corpus.
        task: Name of the language model's task; empty for rules, which cannot be continued.

    Raises:
        InputError: The folder contains a different curated corpus.
    """
    is_curated = any((out / name).exists() for name in (CAPTIONS_FILE, TURNS_FILE))
    if not is_curated or (out / UNFINISHED_MARKER).exists():
        return
    if not task or not (out / LEDGER_FILE).exists():
        raise InputError(f"{out} already contains a curated corpus; name another folder")
    try:
        manifest = json.loads((out / MANIFEST_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = {}
    for name, expected in (("corpus", corpus), ("task", task)):
        value = manifest.get(name, expected)
        if value != expected:
            raise InputError(
                f"{out} contains the {name} {value}, not {expected}; name another folder"
            )


def write_folder(
    out: Path, selection: Selection, texts: RewrittenTexts, filters: Filters, raw: Path, copy: bool
) -> dict[str, Any]:
    """Write the training folder: each file atomically, and the manifest last.

    Args:
        out: The folder.
        selection: The selected reports with their pictures.
        texts: Their rewritten texts.
        filters: The filters that made the selection, for the manifest.
        raw: The raw corpus, whose hash is written to the manifest.
        copy: Whether to copy pictures instead of hard-linking them.

    Returns:
        The manifest.

    Raises:
        NothingLeft: There is no text to train on.
    """
    rows = _training_rows(selection, texts)
    out.mkdir(parents=True, exist_ok=True)
    left_out = [*selection.left_out, *texts.left_out]
    write_left_out(left_out, out / HELD_BACK_FILE)
    if not rows:
        raise NothingLeft(
            f"nothing to train on: of {selection.steps[0][1]} reports, {selection.steps[-1][1]} "
            "passed the filters and have a picture, but none has a usable text"
            f"{_most_common_reasons(left_out)}\n{out / HELD_BACK_FILE} lists all reasons"
        )
    (out / UNFINISHED_MARKER).touch()
    names = link_pictures([row.picture for row in rows], out / "image", copy)
    annotations = _write_annotations(out, rows, names)
    manifest = _build_manifest(selection, texts, filters, raw, annotations, left_out)
    manifest["pictures_sha256"] = _combined_hash([row.picture.sha256 for row in rows])
    write_text_atomic(out / MANIFEST_FILE, json.dumps(manifest, indent=1))
    (out / UNFINISHED_MARKER).unlink()
    return manifest


def _training_rows(selection: Selection, texts: RewrittenTexts) -> list[_TrainingRow]:
    return [
        _TrainingRow(report, picture, texts.by_item[name])
        for report in selection.reports
        for picture in selection.pictures.get(report.source_id, [])
        for name in (item_name(report, None), item_name(report, picture))
        if name in texts.by_item
    ]


def _most_common_reasons(left_out: Sequence[LeftOut]) -> str:
    """Format the most common stages, each with an example reason."""
    examples = {row.stage: row.reason for row in left_out}
    counts = Counter(row.stage for row in left_out).most_common(4)
    return "".join(f"\n  {count} {stage}, such as: {examples[stage]}" for stage, count in counts)


def _combined_hash(hashes: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(set(hashes))).encode()).hexdigest()


def link_pictures(pictures: Sequence[Picture], folder: Path, copy: bool) -> dict[Path, str]:
    """Hard-link pictures into a folder, or copy them.

    Args:
        pictures: The pictures; repeated ones are linked once.
        folder: The folder, created if needed.
        copy: Whether to copy even if a hard link is possible.

    Returns:
        A map from the path of each picture to its name in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = picture_names(pictures)
    for picture in {p.path: p for p in pictures}.values():
        target = folder / names[picture.path]
        if target.exists() and file_sha256(target) == picture.sha256:
            continue
        partial = folder / f".{target.name}.part"
        partial.unlink(missing_ok=True)
        try:
            if copy:
                raise OSError
            os.link(picture.path.resolve(), partial)  # a link to a symlink may break
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(picture.path, partial)
        partial.replace(target)
    return names


def picture_names(pictures: Sequence[Picture]) -> dict[Path, str]:
    """Choose a name in the folder for each picture.

    Raises:
        DataError: Two pictures would get the same name.
    """
    names: dict[Path, str] = {}
    used: set[str] = set()
    for path in dict.fromkeys(picture.path for picture in pictures):
        name = path.name
        if name in used:  # file names often repeat between patients' folders
            name = f"{path.parent.name}_{name}"
        if name in used:
            raise DataError(f"two pictures would be saved as {name}; one of them is {path}")
        used.add(name)
        names[path] = name
    return names


def _write_annotations(
    out: Path, rows: Sequence[_TrainingRow], names: Mapping[Path, str]
) -> list[dict[str, Any]]:
    """Write the captions or conversations, and return them."""
    if isinstance(rows[0].text, str):
        annotations = [_caption(row, names[row.picture.path]) for row in rows]
        write_text_atomic(out / CAPTIONS_FILE, json.dumps({"annotations": annotations}, indent=1))
    else:
        annotations = [_conversation(row, names[row.picture.path]) for row in rows]
        lines = [json.dumps(annotation, ensure_ascii=False) for annotation in annotations]
        write_text_atomic(out / TURNS_FILE, "".join(f"{line}\n" for line in lines))
    return annotations


def _caption(row: _TrainingRow, name: str) -> dict[str, Any]:
    caption = {"image_id": Path(name).stem, "caption": row.text, "study": row.report.source_id}
    return caption | _patient(row) | _view(row) | _split(row)


def _conversation(row: _TrainingRow, name: str) -> dict[str, Any]:
    turns = [
        {"role": role, "text": turn[key]}
        for turn in row.text
        for role, key in (("user", "question"), ("assistant", "answer"))
    ]
    conversation = {"id": Path(name).stem, "study": row.report.source_id}
    image = {"path": name, "view": row.picture.view}
    return conversation | _patient(row) | _split(row) | {"images": [image], "turns": turns}


def _patient(row: _TrainingRow) -> dict[str, str]:
    return {"patient": row.report.patient_id} if row.report.patient_id else {}


def _view(row: _TrainingRow) -> dict[str, str]:
    return {"view": row.picture.view} if row.picture.view else {}


def _split(row: _TrainingRow) -> dict[str, str]:
    split = reserved_split(row.report.source_id)
    return {"split": split} if split else {}


def _build_manifest(
    selection: Selection,
    texts: RewrittenTexts,
    filters: Filters,
    raw: Path,
    annotations: Sequence[Mapping[str, Any]],
    left_out: Sequence[LeftOut],
) -> dict[str, Any]:
    """Collect counts, input hashes and settings, but no report text and no local paths."""
    stages = Counter(row.stage for row in left_out)
    accepted = len(texts.by_item)
    judged = accepted + sum(stages[s] for s in ("check", "refused", "invalid"))
    low, high = wilson_interval(accepted, judged) if judged else (0.0, 0.0)
    rejections = [r.reason.split("; ") for r in left_out if r.stage in ("check", "invalid")]
    return {
        **manifest_heading(selection, raw),
        **texts.facts,
        "filters": asdict(filters),
        "left_after": dict(selection.steps),
        "left_out": dict(sorted(stages.items())),
        "held_back_for": count_reasons(rejections),
        "accepted": accepted,
        "acceptance": {"rate": accepted / max(judged, 1), "low": low, "high": high},
        "pictures": len(annotations),
        "pictures_of_published_test_split": sum(r.get("split") == "test" for r in annotations),
        "pictures_of_lockbox": sum(r.get("split") == "lockbox" for r in annotations),
    }


def manifest_heading(selection: Selection, raw: Path) -> dict[str, Any]:
    """Return the entries of a manifest that say what the raw corpus was and what it allows."""
    return {
        "corpus": selection.corpus.name,
        "licence": selection.corpus.licence,
        "terms": selection.corpus.terms,
        "notice": "research use only, not for diagnosis",
        "xraygpt": __version__,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "inputs": {raw.name: file_sha256(raw)} if raw.is_file() else _hash_tables(raw),
        "reports_sha256": selection.sources_sha256,
    }


def _hash_tables(folder: Path) -> dict[str, str]:
    return {path.name: file_sha256(path) for path in sorted(folder.glob("*.csv"))}
