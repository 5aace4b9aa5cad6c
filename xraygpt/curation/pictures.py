"""The pictures of selected reports: their files and views; each file is read once."""

from __future__ import annotations

import csv
import gzip
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.errors import DataError, ImageError, InputError
from xraygpt.common.logging import progress
from xraygpt.curation.files import LeftOut
from xraygpt.curation.select import Filters, Picture, Selection
from xraygpt.curation.sources import SourceReport, read_projections
from xraygpt.media.pixels import read_image

MIMIC_METADATA = "mimic-cxr-2.0.0-metadata.csv"
_EXTENSIONS = (".png", ".jpg", ".jpeg", ".dcm")
_FRONTAL = ("", "frontal", "pa", "ap")
# The same picture in OpenI and on Kaggle: CXR1_1_IM-0001-4001.png, 1_IM-0001-4001.dcm.png.
_OPENI_NAME = re.compile(r"^(?:CXR)?(\d+)_(?:\d+_)?(IM-\d+(?:-\d+)*)")


def select_pictures(
    selection: Selection,
    folder: Path,
    filters: Filters,
    known: MutableMapping[str, tuple[str, str]] | None = None,
    views: Mapping[Any, str] | None = None,
) -> None:
    """Find and read the pictures of each report, and remove reports without a picture.

    Args:
        selection: The selected reports; their pictures are added to it.
        folder: The folder that contains the pictures.
        filters: Which views to select.
        known: Stamp of a file -> (SHA-256, why it cannot be used), from earlier runs; the results
            for new files are added to it.
        views: Key of a picture's name -> view, from `find_view_table`, for pictures whose report
            does not name the view.

    Raises:
        DataError: The folder is missing or contains no picture.
    """
    candidates = _find_pictures(selection, folder, filters, views or {})
    paths = list(dict.fromkeys(path for _, path, _ in candidates))
    results = _read_pictures(paths, {} if known is None else known)
    for report, path, view in candidates:
        sha256, reason = results[path]
        if reason:
            where = str(path.relative_to(folder))
            selection.left_out.append(LeftOut(report.source_id, where, "picture", reason))
        else:
            selection.pictures.setdefault(report.source_id, []).append(Picture(path, view, sha256))
    kind = "frontal picture" if filters.views == "frontal" else "picture"
    reason = f"no {kind} in the folder"
    remaining = []
    for report in selection.reports:
        if report.source_id in selection.pictures:
            remaining.append(report)
        else:
            left_out = LeftOut(report.source_id, report.where, "no_picture", reason)
            selection.left_out.append(left_out)
    selection.reports = remaining
    selection.steps.append(("with a picture", len(remaining)))


def _find_pictures(
    selection: Selection, folder: Path, filters: Filters, listed_views: Mapping[Any, str]
) -> list[tuple[SourceReport, Path, str]]:
    """Return the report, file and view of each picture that has a selected view."""
    index = _FolderIndex.build(folder)
    views = _mimic_views(folder, filters) if selection.corpus.name == "mimic" else {}
    return [
        (report, path, view)
        for report in selection.reports
        for path, named_view in _pictures_of(report, index, views, selection.left_out)
        for view in [named_view or listed_views.get(_name_key(path.name), "")]
        if filters.views == "all" or view.lower() in _FRONTAL
    ]


def _read_pictures(
    paths: Sequence[Path], known: MutableMapping[str, tuple[str, str]]
) -> dict[Path, tuple[str, str]]:
    """Return (SHA-256, why it cannot be used) for each file; files in `known` are not read."""
    stamps = {path: _stamp(path) for path in paths}
    new = [path for path in paths if stamps[path] not in known]
    with ThreadPoolExecutor() as pool:
        results = progress(
            pool.map(_read_picture, new), total=len(new), desc="pictures", unit="picture"
        )
        known.update({stamps[path]: result for path, result in zip(new, results, strict=True)})
    return {path: known[stamps[path]] for path in paths}


def _stamp(path: Path) -> str:
    """Return a file's path, size and modification time, so that any change is noticed."""
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def _read_picture(path: Path) -> tuple[str, str]:
    try:
        read_image(path)
        return file_sha256(path), ""
    except (ImageError, OSError) as error:
        return "", f"unreadable picture: {str(error).replace(str(path), path.name)}"


@dataclass(frozen=True)
class _FolderIndex:
    """The files in a folder, by the key of their name and by the name of their parent folder."""

    by_key: dict[Any, Path]
    by_folder: dict[str, list[Path]]

    @staticmethod
    def build(folder: Path) -> _FolderIndex:
        """Index the pictures in a folder and its subfolders.

        Raises:
            DataError: The folder is missing or contains no picture.
        """
        if not folder.is_dir():
            raise DataError(f"no folder {folder}: --images must name an existing folder")
        paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in _EXTENSIONS]
        if not paths:
            raise DataError(f"no pictures ({', '.join(_EXTENSIONS)}) in {folder}")
        by_key: dict[Any, Path] = {}
        by_folder: dict[str, list[Path]] = defaultdict(list)
        for path in paths:
            by_key.setdefault(_name_key(str(path.relative_to(folder))), path)
            by_key.setdefault(_name_key(path.name), path)
            by_folder[path.parent.name].append(path)
        return _FolderIndex(by_key, by_folder)


def _name_key(name: str) -> Any:
    """Return a key that is the same for all spellings of a picture's name."""
    match = _OPENI_NAME.match(Path(name).name)
    if match:
        return int(match[1]), match[2]
    return strip_suffixes(name)


def strip_suffixes(name: str) -> str:
    """Remove all picture suffixes from a name: ``1_IM-0001-4001.dcm.png``."""
    while Path(name).suffix.lower() in _EXTENSIONS:
        name = name[: -len(Path(name).suffix)]
    return name


def find_view_table(path: Path) -> dict[Any, str]:
    """Read the views in Kaggle's `indiana_projections.csv`, which also fit the XML reports.

    Args:
        path: The table, or the folder that contains it.

    Returns:
        The view of each picture, by the key of its name.

    Raises:
        DataError: The table or a column is missing.
    """
    return {_name_key(image.name): image.view for image in read_projections(path)}


def _pictures_of(
    report: SourceReport, index: _FolderIndex, views: dict[str, str], left_out: list[LeftOut]
) -> Iterator[tuple[Path, str]]:
    """Yield the file and view of each picture named in a report, or of all in its folder."""
    if not report.images:
        for path in index.by_folder.get(report.source_id, []):
            yield path, views.get(path.stem, "unknown" if views else "")
    for image in report.images:
        match = index.by_key.get(_name_key(image.name))
        if match is not None:
            yield match, image.view
        elif image.view.lower() in _FRONTAL:
            reason = f"picture {image.name} is absent"
            left_out.append(LeftOut(report.source_id, report.where, "picture", reason))


def _mimic_views(folder: Path, filters: Filters) -> dict[str, str]:
    """Read the view of each picture from MIMIC-CXR-JPG's metadata in the folder or above it.

    Raises:
        InputError: The table is missing, and only frontal views are to be selected.
        DataError: The table cannot be read.
    """
    names = (f"{MIMIC_METADATA}.gz", MIMIC_METADATA)
    folders = (folder, *folder.resolve().parents[:4])
    tables = [parent / name for parent in folders for name in names if (parent / name).is_file()]
    if tables:
        return _read_views(tables[0])
    if filters.views == "all":
        return {}
    raise InputError(
        f"no {MIMIC_METADATA}(.gz) in {folder} or above: without it, lateral views cannot be told "
        "from frontal views. Put the file there, or pass --views all"
    )


def _read_views(path: Path) -> dict[str, str]:
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if not {"dicom_id", "ViewPosition"} <= set(table.fieldnames or ()):
                raise DataError(f"{path} lacks the column dicom_id or ViewPosition")
            # An empty view would count as frontal.
            return {row["dicom_id"]: row["ViewPosition"] or "unknown" for row in table}
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {type(error).__name__}") from None
