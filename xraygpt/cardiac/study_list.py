"""The studies in a folder, and the files that belong to each."""

from __future__ import annotations

from pathlib import Path

from xraygpt.cardiac.dicom_frames import study_uid
from xraygpt.cardiac.file_names import parse_name, parse_slice_name, starts_with
from xraygpt.cardiac.intake import file_kind


def list_studies(source: Path) -> list[Path]:
    """Return the studies in a folder, each as a path for `intake.read_study`.

    A file, a folder with files of one patient, and a folder of DICOM files of one study are studies
    themselves. In other folders, each patient's files and each subfolder are a study.

    Raises:
        DataError: A file cannot be read.
    """
    if not source.is_dir():
        return [source]
    kinds = {file: file_kind(file) for file in _visible(source) if file.is_file()}
    files = [file for file, kind in kinds.items() if kind]
    if any(kinds[file] in ("DICOM", "NIfTI") for file in files):
        return [source]
    if files:
        pngs = kinds[files[0]] == "PNG"
        parse = parse_slice_name if pngs else parse_name
        names = sorted({parse(file).series for file in files})
        return [source] if len(names) < 2 else [source / name for name in names]
    parts = [part for part in _visible(source) if part.is_dir() and _first_file(part)]
    uids = {_uid_of(part) for part in parts}
    if not parts or (len(uids) == 1 and None not in uids):
        return [source]
    return [study for part in parts for study in list_studies(part)]


def study_files(study: Path) -> list[Path]:
    """Return all files of a study, which show whether something has changed."""
    if study.is_file():
        return [study]
    if study.is_dir():
        return sorted(file for file in study.rglob("*") if file.is_file())
    return sorted(file for file in study.parent.iterdir() if starts_with(file, study.name))


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _first_file(folder: Path) -> Path | None:
    """Return the first file that can be read in a folder or below it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return next((f for f in files if not f.name.startswith(".") and file_kind(f)), None)


def _uid_of(folder: Path) -> str | None:
    """Return the Study Instance UID of a folder's first file; None if it is not DICOM."""
    file = _first_file(folder)
    return study_uid(file) if file is not None and file_kind(file) == "DICOM" else None
