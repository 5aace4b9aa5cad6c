"""Cardiac cines with label maps at end diastole and end systole, in the folders of ACDC and M&Ms.

ACDC (Bernard et al. 2018, IEEE TMI) has one file per labelled frame, M&Ms (Campello et al. 2021,
IEEE TMI) one file for all frames. The corpora number the structures differently.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from xraygpt.common.errors import DataError

PHASES = ("ED", "ES")
_COLUMNS = ("External code", *PHASES)
_UNLABELLED = "Unlabeled"  # the folder of M&Ms with images only


class Case(NamedTuple):
    """One labelled volume.

    Attributes:
        phase: ``ED`` or ``ES``.
        image: NIfTI file of the image.
        mask: NIfTI file of the labels.
        frame: Index in both files, starting with 0; None if they contain one volume only.
    """

    phase: str
    image: Path
    mask: Path
    frame: int | None = None


class Patient(NamedTuple):
    """A patient with the volumes at end diastole and end systole.

    Attributes:
        name: Name in the corpus.
        corpus: A key of `labels.CONVENTIONS`, ``acdc`` or ``mnms``.
        folder: Where the files are.
        cases: The two volumes; empty if `fault` is set.
        fault: Why the patient cannot be used; empty otherwise.
    """

    name: str
    corpus: str
    folder: Path
    cases: tuple[Case, ...] = ()
    fault: str = ""


def find_acdc(folders: Sequence[Path]) -> Iterator[Patient]:
    """Find patients of ACDC in folders and their subfolders.

    Raises:
        DataError: A folder has none.
    """
    for folder in folders:
        found = sorted({info.parent for info in folder.rglob("Info.cfg")})
        if not found:
            raise DataError(
                f"{folder}: there are no patients of ACDC, which have an Info.cfg each; give the "
                "folder that contains patient001"
            )
        for patient in found:
            try:
                yield Patient(patient.name, "acdc", patient, tuple(_acdc_cases(patient)))
            except DataError as error:
                yield Patient(patient.name, "acdc", patient, fault=str(error))


def _acdc_cases(folder: Path) -> Iterator[Case]:
    frames = _read_info(folder / "Info.cfg")
    _check_frames(folder / "Info.cfg", frames)
    for phase, frame in zip(PHASES, frames, strict=True):
        image = folder / f"{folder.name}_frame{frame:02d}.nii.gz"
        mask = folder / f"{folder.name}_frame{frame:02d}_gt.nii.gz"
        for file, content in ((image, "image"), (mask, "mask")):
            if not file.is_file():
                raise DataError(f"{file}: there is no such file, which should be the {content}")
        yield Case(phase, image, mask)


def _read_info(file: Path) -> list[int]:
    """Return the numbers of the frames at end diastole and end systole, starting with 1."""
    text = file.read_text(encoding="utf-8", errors="replace")
    values = dict(line.partition(":")[::2] for line in text.splitlines())
    found = {key.strip().upper(): value.strip() for key, value in values.items()}
    frames = []
    for phase in PHASES:
        if not found.get(phase, "").isdecimal():
            raise DataError(f"{file}: there is no frame number in a line {phase}: …")
        frames.append(int(found[phase]))
    return frames


def _check_frames(file: Path, frames: Sequence[int]) -> None:
    if frames[0] == frames[1]:
        raise DataError(f"{file}: ED and ES are the same frame {frames[0]}")


def find_mnms(folders: Sequence[Path], table: Path | None = None) -> Iterator[Patient]:
    """Find patients of M&Ms in folders and their subfolders, except below a folder `Unlabeled`.

    Args:
        folders: Folders with files `<patient>_sa.nii.gz` and `<patient>_sa_gt.nii.gz`.
        table: CSV file with the columns `External code`, `ED` and `ES`; None looks for one in each
            folder and above it.

    Raises:
        DataError: A folder has no patients, or there is no table.
    """
    for folder in folders:
        images = sorted(
            image
            for image in folder.rglob("*_sa.nii.gz")
            if _UNLABELLED not in image.relative_to(folder).parts
        )
        if not images:
            raise DataError(
                f"{folder}: there are no labelled patients of M&Ms, whose images are named "
                "<patient>_sa.nii.gz"
            )
        phases = _read_table(table or _find_table(folder))
        for image in images:
            name = image.name.removesuffix("_sa.nii.gz")
            try:
                yield Patient(name, "mnms", image.parent, tuple(_mnms_cases(name, image, phases)))
            except DataError as error:
                yield Patient(name, "mnms", image.parent, fault=str(error))


def _mnms_cases(name: str, image: Path, phases: dict[str, tuple[str, str]]) -> Iterator[Case]:
    if name not in phases:
        raise DataError(f"{image}: the table has no row with the external code {name}")
    mask = image.with_name(f"{name}_sa_gt.nii.gz")
    if not mask.is_file():
        raise DataError(f"{mask}: there is no such file, which should be the mask")
    frames = []
    for phase, text in zip(PHASES, phases[name], strict=True):
        if not text.isdecimal():
            raise DataError(f"{image}: the table has no frame number in the column {phase}")
        frames.append(int(text))
    _check_frames(image, frames)
    yield from (Case(p, image, mask, f) for p, f in zip(PHASES, frames, strict=True))


def _find_table(folder: Path) -> Path:
    """Return the only CSV file with the columns of M&Ms in a folder, or else above it."""
    for place in (folder, *folder.resolve().parents[:3]):
        tables = [file for file in sorted(place.glob("*.csv")) if _has_columns(file)]
        if len(tables) == 1:
            return tables[0]
        if tables:
            names = ", ".join(file.name for file in tables)
            raise DataError(f"{place} has several tables ({names}); choose one with --mnms-table")
    raise DataError(
        f"{folder}: there is no table with the columns {', '.join(_COLUMNS)} in this folder or "
        "above it; give the CSV file that comes with M&Ms as --mnms-table"
    )


def _has_columns(file: Path) -> bool:
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        return set(_COLUMNS) <= set(next(csv.reader(lines), []))


def _read_table(file: Path) -> dict[str, tuple[str, str]]:
    """Return the frames at end diastole and end systole by patient, as text."""
    if not _has_columns(file):
        raise DataError(f"{file}: the columns {', '.join(_COLUMNS)} are needed")
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        rows = [
            {key: (row[key] or "").strip().removesuffix(".0") for key in _COLUMNS}
            for row in csv.DictReader(lines)
        ]
    return {row["External code"]: (row["ED"], row["ES"]) for row in rows}
