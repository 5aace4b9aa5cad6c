"""Read the inputs of a prediction (an image, a folder or a table) as records without answers."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xraygpt.common.annotation_files import read_table
from xraygpt.common.errors import DataError
from xraygpt.datasets.base import Record
from xraygpt.datasets.media_paths import RecordError, parse_media_ref
from xraygpt.media.base import MediaRef
from xraygpt.media.clip_policy import ClipPolicy, has_frames
from xraygpt.media.video_containers import has_video_suffix
from xraygpt.prompting.content import IMAGE, Turn

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".dicom"})
TABLE_SUFFIXES = frozenset({".csv", ".jsonl"})


def find_inputs(
    path: Path,
    question: str = "",
    clips: ClipPolicy = ClipPolicy(),  # noqa: B008 (frozen)
) -> list[Record]:
    """Find the inputs that a command line names.

    Args:
        path: An image or clip; a folder, which is searched recursively; or a table (CSV, JSONL)
            with a column `image` or `video`, or `images` or `videos` for a study as in training,
            and optionally `id`, `study`, `view` and `question`. Paths in a table are relative to
            the table. Videos follow the images.
        question: Question about images without their own; empty means the model's prompt.
        clips: How files with several frames are read. A folder's videos are used if the model reads
            clips.

    Raises:
        DataError: The path does not exist or contains no image.
    """
    if not path.exists():
        raise DataError(f"--input {path}: no such file or folder")
    if path.is_dir():
        records = _folder_records(path, question, clips)
    elif path.suffix.lower() in TABLE_SUFFIXES:
        rows = read_table(path)
        records = [_row_record(path, number, row, question, clips) for number, row in rows]
    else:
        records = [_build_record(path.name, [clips.ref(path)], question=question)]
    if not records:
        kinds = "PNG, JPEG, DICOM or video" if clips.as_clips else "PNG, JPEG or DICOM"
        raise DataError(f"--input {path} contains no {kinds} file")
    _require_unique_ids(records)
    return records


def folder_name(source: Path) -> str:
    """Return a name for the results of an input: its name without suffix, safe in any file system.

    Args:
        source: An image, a folder or a table.
    """
    path = source.resolve()
    name = path.name if path.is_dir() else path.stem
    return re.sub(r"[^\w.-]+", "_", name).strip("._")[:60] or "input"


def _folder_records(folder: Path, question: str, clips: ClipPolicy) -> list[Record]:
    files = sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))
    videos = clips.as_clips
    images = [f for f in files if _may_be_image(f) or (videos and has_video_suffix(f.name))]
    if len(files) > len(images):
        log.info("%s: ignoring %d files that are not images", folder, len(files) - len(images))
    return [
        _build_record(str(f.relative_to(folder)), [clips.ref(f)], question=question) for f in images
    ]


def _may_be_image(file: Path) -> bool:
    """Check the suffix, or the DICOM signature of a file without a suffix."""
    if file.suffix.lower() in IMAGE_SUFFIXES:
        return True
    # Hospitals name DICOM files by UID, so the "suffix" may be a number.
    if file.suffix and not file.suffix[1:].isdigit():
        return False
    try:
        with file.open("rb") as stream:
            return stream.read(132)[128:] == b"DICM"
    except OSError:
        return True  # it will be reported with the unreadable files


def _row_record(
    table: Path, number: int, row: dict[str, Any], question: str, clips: ClipPolicy
) -> Record:
    """Build the record of a table row with one medium in `image` or `video`, or several."""
    where = f"{table}, record {number}"
    if not {"image", "path", "images", "video", "videos"} & set(row):
        columns = ", ".join(map(str, row))
        raise DataError(f"{where} has no column 'image' (its columns: {columns})")
    # A row without an image is reported with the unreadable files.
    items = _row_items(row) or [{"path": f"record {number} (no image named)"}]
    view = str(row.get("view") or "")
    try:
        media = [_parse_item(item, table.parent, view, clips) for item in items]
    except RecordError as error:
        raise DataError(f"{where}: {error}") from None
    first = items[0].get("path") if isinstance(items[0], dict) else ""
    return _build_record(
        str(row.get("id") or first),
        media,
        study=str(row.get("study") or ""),
        question=str(row.get("question") or question),
    )


def _row_items(row: dict[str, Any]) -> list[Any]:
    """Return the descriptions of a row's images, then of its videos; a plain string is a path."""
    images = _as_items(row.get("images") or row.get("image") or row.get("path"))
    videos = _as_items(row.get("videos") or row.get("video"))
    return [*images, *({"kind": "clip"} | v if isinstance(v, dict) else v for v in videos)]


def _as_items(value: Any) -> list[Any]:
    items = value if isinstance(value, list) else [value]
    return [{"path": item} if isinstance(item, str) else item for item in items if item]


def _parse_item(item: Any, folder: Path, view: str, clips: ClipPolicy) -> MediaRef:
    """Return the reference for an entry; a file with several frames may be a clip."""
    ref = parse_media_ref(item, lambda path: folder / str(path), view)
    is_open = not {"kind", "index", "frame", "frames"} & set(item)
    if is_open and ref.kind == "image" and clips.as_clips and has_frames(ref.path):
        ref = parse_media_ref({**item, "kind": "clip"}, lambda path: folder / str(path), view)
    return clips.sampled(ref)


def _build_record(
    name: str, media: Sequence[MediaRef], *, study: str = "", question: str = ""
) -> Record:
    marks = " ".join([IMAGE] * len(media))
    turn = Turn(role="user", text=f"{marks} {question}".strip())
    paths = [ref.file for ref in media]
    versions = [_file_version(ref.path) for ref in media]
    selections = [ref.selection for ref in media]
    single = len(media) == 1
    meta: dict[str, Any] = {
        "path": paths[0] if single else paths,
        "file": versions[0] if single else versions,
    }
    if any(selections):
        meta["part"] = selections[0] if single else selections
    return Record(name, study or name, tuple(media), (turn,), meta)


def _file_version(path: Path) -> str:
    """Return a string that changes when the file does."""
    try:
        stat = path.stat()
    except OSError:
        return "absent"
    return f"{stat.st_size} bytes, {stat.st_mtime_ns} ns"


def _require_unique_ids(records: Sequence[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.sample_id in seen:
            raise DataError(f"two inputs have the id {record.sample_id}; give each its own `id`")
        seen.add(record.sample_id)
