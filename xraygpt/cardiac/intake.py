"""Reading a cardiac study from whatever a path holds: DICOM, NIfTI, HDF5 or PNG files."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from xraygpt.cardiac.array_intake import read_hdf5, read_pngs
from xraygpt.cardiac.dicom_intake import read_dicom_study
from xraygpt.cardiac.dicom_segmentation_reader import read_segmentation
from xraygpt.cardiac.file_names import convention_of, parse_slice_name, starts_with
from xraygpt.cardiac.join_files import add_masks, is_curve, join_images, prefer_frames
from xraygpt.cardiac.nifti_intake import read_nifti
from xraygpt.cardiac.patient_tables import PatientRecord, check_record, find_record
from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.study import Patient, Study, sort_stacks
from xraygpt.cardiac.volume import Volume
from xraygpt.common.errors import DataError
from xraygpt.segmentation.labels import CONVENTIONS

Kind = Literal["DICOM", "NIfTI", "HDF5", "PNG", ""]
FORMATS = (
    "a folder of DICOM files of one study, a NIfTI file or a folder of them (also a patient's "
    "folder of ACDC or M&Ms), HDF5 files with image and label, or PNG slices"
)
"""What `read_study` can read, in words."""
_HEAD = 352  # bytes that tell the formats apart
_NIFTI_MAGIC = {344: (b"n+1\0", b"ni1\0"), 4: (b"n+2\0", b"ni2\0")}
_MNMS_SERIES = re.compile(r"^[A-Z0-9]{6}_sa$", re.IGNORECASE)
_MAX_NAMES = 4  # names in a message


def read_study(source: Path, masks: Path | None = None, convention: str = "") -> Study:
    """Read the images of one patient, and label maps that came with them.

    Args:
        source: A file or a folder. If a folder has files of several patients, the path of one
            patient's files up to where their names differ, such as `acdc/patient001` for
            `acdc/patient001_frame01.h5` and `acdc/patient001_frame12.h5`.
        masks: A file or folder with label maps, for DICOM images also DICOM segmentations; by
            default, files with `_gt`, `_mask` or `_seg` in
            their names and data sets named `label` are used.
        convention: Meaning of the values in label maps, a key of `CONVENTIONS`; by default, that of
            the collection if names tell it (ACDC, M&Ms, Sunnybrook).

    Raises:
        DataError: There is nothing that can be read, files are damaged or do not fit together, or
            there are several patients; the message says which file and what to do.
        InputError: A package is not installed.
    """
    if convention and convention not in CONVENTIONS:
        raise DataError(f"unknown label convention {convention!r}: use {', '.join(CONVENTIONS)}")
    kind, files, left_out = _list_files(source)
    if kind == "DICOM":
        study = read_dicom_study(source)
        stacks = study.stacks
        if masks is not None and _list_files(masks)[0] == "DICOM":
            stacks = _add_segmentations(stacks, masks)
        elif masks is not None:
            stacks = _add_masks_by_place(stacks, _read_masks(masks), convention)
        return replace(study, stacks=stacks, warnings=study.warnings + left_out)
    images, found = _read_volumes(kind, files)
    if masks is not None:
        found = _read_masks(masks)
    images = prefer_frames(images, found)
    if not images:
        raise DataError(f"{source}: there are masks, but no images")
    _check_one_patient(source, kind, images)
    record = _find_record(files[0].parent, images)
    known = convention_of(files) or (record.convention if record else "")
    joined = join_images(images, "SAX" if known else "")
    stacks, warnings = _attach(joined, found, convention or known, record)
    short_axis = [stack.name for stack in stacks if stack.role == "SAX"]
    if len(short_axis) > 1:
        raise DataError(
            f"{source}: there are {len(short_axis)} short-axis series ({', '.join(short_axis)}); "
            "give the files of one patient and series, or put each into a folder of its own"
        )
    patient = record.patient if record else Patient()
    return Study(sort_stacks(stacks), patient, [*left_out, *warnings])


def _attach(
    joined: Sequence[tuple[Stack, list[str]]],
    masks: Sequence[Volume],
    convention: str,
    record: PatientRecord | None,
) -> tuple[list[Stack], list[str]]:
    """Put masks with their images, and compare both with the collection's record."""
    warnings = list(record.warnings) if record else []
    stacks, used = list[Stack](), set[int]()
    for stack, phases in joined:
        own = [m for m in masks if len(joined) == 1 or m.name.series.lower() == stack.name.lower()]
        used.update(map(id, own))
        stack = add_masks(stack, phases, own, convention, record.phases if record else None)
        if record:
            warnings += check_record(record, stack, is_curve(phases))
        stacks.append(stack)
    lost = [mask.file for mask in masks if id(mask) not in used]
    if lost:
        raise DataError(
            f"{lost[0]}: no images have this name; name the masks as the images, with _gt at the "
            f"end, or give one of {', '.join(stack.name for stack in stacks)} alone"
        )
    return stacks, warnings


def _add_segmentations(stacks: Sequence[Stack], masks: Path) -> list[Stack]:
    """Put DICOM segmentations with the stack whose images they refer to."""
    results, reasons = list(stacks), list[str]()
    for i, stack in enumerate(stacks):
        try:
            labels = read_segmentation(masks, stack)
        except DataError as error:
            reasons.append(str(error))
            continue
        results[i] = replace(
            stack, read_labels=labels.__getitem__, labelled_phases=tuple(sorted(labels))
        )
    if len(reasons) == len(stacks):
        raise DataError(reasons[0])
    return results


def _add_masks_by_place(
    stacks: Sequence[Stack], masks: Sequence[Volume], convention: str
) -> list[Stack]:
    """Put masks of a DICOM study with the stack whose pixels lie in the same places."""
    results, reasons = list(stacks), list[str]()
    for i, stack in enumerate(stacks):
        try:
            results[i] = add_masks(stack, (), masks, convention)
        except DataError as error:
            reasons.append(str(error))
    if len(reasons) == len(stacks):
        raise DataError(reasons[0])
    return results


def _read_masks(path: Path) -> list[Volume]:
    kind, files, _ = _list_files(path)
    if kind == "DICOM":
        raise DataError(f"{path}: DICOM segmentations fit only the DICOM images that they refer to")
    images, masks = _read_volumes(kind, files)
    return masks or images


def _read_volumes(kind: Kind, files: Sequence[Path]) -> tuple[list[Volume], list[Volume]]:
    """Return volumes with images and with label maps."""
    if kind == "HDF5":
        return read_hdf5(files)
    if kind == "PNG":
        is_mask = {file: parse_slice_name(file).is_mask for file in files}
        images, masks = ([f for f in files if is_mask[f] is flag] for flag in (False, True))
        return read_pngs(images), read_pngs(masks)
    volumes = [read_nifti(file) for file in files]
    return [v for v in volumes if not v.name.is_mask], [v for v in volumes if v.name.is_mask]


def _find_record(folder: Path, images: Sequence[Volume]) -> PatientRecord | None:
    series = images[0].name.series
    is_mnms = bool(_MNMS_SERIES.match(series))
    return find_record(folder, series if is_mnms else "")


def _check_one_patient(source: Path, kind: Kind, images: Sequence[Volume]) -> None:
    """Refuse HDF5 and PNG files of several series, whose names are all that is known of them."""
    series = sorted({volume.name.series for volume in images})
    if kind == "NIfTI" or len(series) < 2:
        return
    folder = source if source.is_dir() else source.parent
    names = ", ".join(series[:_MAX_NAMES]) + (" …" if len(series) > _MAX_NAMES else "")
    raise DataError(
        f"{source}: there are files of {len(series)} patients or series ({names}); give one of "
        f"them, such as {folder / series[0]}"
    )


def _list_files(source: Path) -> tuple[Kind, list[Path], list[str]]:
    """Return the kind of a path's files, the files, and a sentence for each kind left out."""
    if source.is_file():
        kind = file_kind(source)
        if not kind:
            raise DataError(f"{source}: it is none of the formats that can be read: {FORMATS}")
        return kind, [source], []
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if file.is_file())
    elif source.parent.is_dir():
        files = sorted(f for f in source.parent.iterdir() if starts_with(f, source.name))
    else:
        files = []
    files = [file for file in files if not file.name.startswith(".")]
    if not files and not source.is_dir():
        raise DataError(f"{source}: there is no such file or folder")
    kinds: dict[Kind, list[Path]] = {"DICOM": [], "NIfTI": [], "HDF5": [], "PNG": [], "": []}
    for file in files:
        kinds[file_kind(file)].append(file)
    if source.is_dir() and not any(kinds[k] for k in ("DICOM", "NIfTI", "HDF5", "PNG")):
        return _look_below(source)
    first = next((kind for kind, found in kinds.items() if kind and found), None)
    if first is None:
        raise DataError(f"{source}: there is nothing that can be read; give {FORMATS}")
    others = [(kind, len(found)) for kind, found in kinds.items() if kind and found]
    return first, kinds[first], [f"left out {n} {k} files" for k, n in others if k != first]


def _look_below(folder: Path) -> tuple[Kind, list[Path], list[str]]:
    """Look for DICOM files below a folder; for other formats, name a folder that has some."""
    known = list[Path]()
    for file in sorted(folder.rglob("*")):
        kind = file_kind(file) if file.is_file() and not file.name.startswith(".") else ""
        if kind == "DICOM":
            return "DICOM", [], []
        if kind:
            known.append(file)
    if known:
        count = len({file.parent for file in known})
        raise DataError(
            f"{folder}: its images lie in {count} folders below it; give one of them, such as "
            f"{known[0].parent}"
        )
    raise DataError(f"{folder}: there is nothing that can be read; give {FORMATS}")


def file_kind(file: Path) -> Kind:
    """Return the format of a file by its first bytes; empty if it is unknown.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        head = _read_head(file)
    except OSError as error:
        raise DataError(f"{file}: it cannot be read ({error})") from None
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "HDF5"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[128:132] == b"DICM" or _is_bare_dicom(head):
        return "DICOM"
    is_nifti = any(head[at : at + 4] in marks for at, marks in _NIFTI_MAGIC.items())
    return "NIfTI" if is_nifti or _is_nifti_name(file) else ""


def _read_head(file: Path) -> bytes:
    with file.open("rb") as stream:
        head = stream.read(_HEAD)
    if head.startswith(b"\x1f\x8b"):
        try:
            with gzip.open(file) as stream:
                return stream.read(_HEAD)
        except (OSError, EOFError, zlib.error):
            return head
    return head


def _is_bare_dicom(head: bytes) -> bool:
    """Check for a DICOM file without preamble: its first element is of group 2 or 8."""
    return head[:4] in (
        b"\x02\0\0\0",
        b"\x08\0\x05\0",
        b"\x08\0\x08\0",
        b"\x08\0\x16\0",
        b"\x08\0\0\0",
    )


def _is_nifti_name(file: Path) -> bool:
    """Check for a damaged NIfTI file, which is to be reported as such."""
    return file.name.lower().endswith((".nii", ".nii.gz"))
