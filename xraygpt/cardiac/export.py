"""Stacks and label maps as NIfTI files for other programs, and frames as PNG."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.cardiac.stack import Stack
from xraygpt.cardiac.volume import index_to_patient
from xraygpt.common.errors import DataError
from xraygpt.segmentation.nifti import load_nibabel
from xraygpt.studies.report import NOTICE

log = logging.getLogger(__name__)

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER = 1  # code of coordinates of the scanner
_INT16_MAX = 2**15 - 1
_UNEVEN = 0.002  # s; a phase that is off the regular times by more is reported
_DISPLAY_RANGE = (0.5, 99.5)  # percentiles of the first phase that become black and white


def write_nifti(stack: Stack, file: Path) -> None:
    """Write all images as (columns, rows, slices, phases), or without phases if there is only one.

    Lengths are in mm and times in s. Whole numbers are stored as int16, others as float32.

    Args:
        stack: The images.
        file: A path that ends in `.nii.gz` or `.nii`.

    Raises:
        DataError: A pixel cannot be read, the distances between pixels or slices are unknown, or
            slices are not at equal distances.
        InputError: nibabel is not installed.
    """
    count, slices, rows, columns = stack.shape
    values = np.empty((columns, rows, slices, count), dtype=np.float32)
    for phase in range(count):
        for slice_ in range(slices):
            values[:, :, slice_, phase] = stack.image(phase, slice_).T
    is_whole = np.abs(values).max() <= _INT16_MAX and np.array_equal(values, np.rint(values))
    _save(stack, values.astype(np.int16) if is_whole else values, file)


def write_label_maps(
    stack: Stack, phases: Sequence[int] | np.ndarray, labels: np.ndarray, file: Path
) -> None:
    """Write label maps with the geometry and the phases of the images, as uint8.

    Phases without label maps are empty, as in M&Ms.

    Args:
        stack: The images.
        phases: (N,) indices of the phases with label maps.
        labels: (N, S, H, W), values as in `segmentation.labels`; the first four are ACDC's.
        file: A path that ends in `.nii.gz` or `.nii`.

    Raises:
        DataError: The distances between pixels or slices are unknown, or slices are not at equal
            distances.
        InputError: nibabel is not installed.
    """
    values = np.zeros(stack.shape, dtype=np.uint8)
    values[np.asarray(phases)] = labels
    _save(stack, values.transpose(3, 2, 1, 0), file)


def _save(stack: Stack, values: np.ndarray, file: Path) -> None:
    """Save (columns, rows, slices, phases)."""
    if not file.name.endswith((".nii", ".nii.gz")):
        raise DataError(f"{file}: the name of a NIfTI file must end in .nii.gz or .nii")
    matrix = _matrix(stack)
    image = load_nibabel().Nifti1Image(values if stack.phases > 1 else values[..., 0], matrix)
    header = image.header
    header.set_xyzt_units("mm", "sec")
    header["descrip"] = NOTICE
    if matrix is None:
        assert stack.spacing is not None and stack.gap is not None
        header["pixdim"][1:4] = stack.spacing[1], stack.spacing[0], stack.gap
    else:
        _set_codes(image, matrix)
    if stack.phases > 1:
        header["pixdim"][4], header["toffset"] = _regular_times(stack)
    file.parent.mkdir(parents=True, exist_ok=True)
    image.to_filename(file)


def _matrix(stack: Stack) -> np.ndarray | None:
    """Return the matrix from (column, row, slice) to NIfTI's coordinates; None without positions.

    Raises:
        DataError: A NIfTI file cannot hold the geometry.
    """
    matrix = index_to_patient(stack)
    if matrix is not None:
        turned: np.ndarray = _LPS_TO_RAS @ matrix[:, [1, 0, 2, 3]]
        return turned
    if stack.spacing is None or (stack.origins is None and stack.gap is None):
        raise DataError(
            f"{stack.name}: the distances between pixels and slices are unknown, and a NIfTI file "
            "needs them; set them with dataclasses.replace(stack, spacing=…, gap=…)"
        )
    if stack.origins is not None:
        raise DataError(
            f"{stack.name}: the slices are not at equal distances along a line, which a NIfTI file "
            "cannot hold; export part of them"
        )
    return None


def _set_codes(image: Any, matrix: np.ndarray) -> None:
    """Set sform and qform; the qform cannot hold slices that are shifted sideways."""
    image.set_sform(matrix, code=_SCANNER)
    image.set_qform(matrix, code=_SCANNER)
    if not np.allclose(image.get_qform(), matrix, atol=1e-2):
        image.set_qform(None, code=0)


def _regular_times(stack: Stack) -> tuple[float, float]:
    """Return the step between phases and the time of the first in s; 0 if unknown."""
    if stack.times is None:
        return 0.0, 0.0
    first, last = float(stack.times[0]), float(stack.times[-1])
    if np.abs(np.linspace(first, last, stack.phases) - stack.times).max() > _UNEVEN:
        log.warning(
            "%s: the phases are not at equal times; the file has their mean step", stack.name
        )
    return (last - first) / (stack.phases - 1), first


def write_pngs(stack: Stack, folder: Path) -> list[Path]:
    """Write each image as an 8-bit PNG, named such as `slice03_frame12.png` and counted from 1.

    One grey scale is used for all images: black and white are the 0.5 and 99.5 percentiles of the
    first phase.

    Raises:
        DataError: A pixel cannot be read.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    first = [stack.image(0, slice_) for slice_ in range(stack.slices)]
    low, high = np.percentile(first, _DISPLAY_RANGE)
    scale = 255 / max(high - low, np.finfo(np.float32).tiny)
    files = list[Path]()
    for slice_ in range(stack.slices):
        for phase in range(stack.phases):
            grey = np.clip((stack.image(phase, slice_) - low) * scale, 0, 255)
            file = folder / f"slice{slice_ + 1:02d}_frame{phase + 1:02d}.png"
            Image.fromarray(np.rint(grey).astype(np.uint8)).save(file)
            files.append(file)
    return files
