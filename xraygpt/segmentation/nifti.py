"""NIfTI files of a single volume, as nnU-Net reads and writes them.

Arrays have the shape (N, H, W). In the file, the first axis runs along the columns W, the second
along the rows H and the third along the slices N. The scanner's coordinates are not stored: nnU-Net
ignores them, and its reader refuses files whose direction cosines are not orthogonal.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.requirements import INSTALL_CMR

_MILLIMETRES = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}


def write_volume(file: Path, volume: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Write a (N, H, W) array.

    Args:
        file: A name that ends with ``.nii`` or ``.nii.gz``.
        volume: float32 values, or uint8 labels.
        spacing: Distances in mm between slices, rows and columns.
    """
    nibabel = load_nibabel()
    affine = np.diag([*spacing[::-1], 1.0])
    image = nibabel.Nifti1Image(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    image.set_qform(affine, code="scanner")
    nibabel.save(image, file)


def read_volume(file: Path, frame: int | None = None) -> np.ndarray:
    """Read a (N, H, W) array.

    Args:
        file: A volume, or volumes at several times.
        frame: Which of the times, starting with 0; None if there is only one.

    Raises:
        DataError: The file cannot be read, or does not contain such a volume.
    """
    image = open_nifti(file)
    shape = tuple(image.shape)
    with _report(file):
        if frame is None:
            if len(shape) != 3:
                raise DataError(f"{file}: expected one volume, but its shape is {image.shape}")
            return np.asarray(image.dataobj).transpose(2, 1, 0)
        if len(shape) != 4:
            raise DataError(
                f"{file}: expected volumes at several times, but its shape is {image.shape}"
            )
        if not 0 <= frame < shape[3]:
            raise DataError(f"{file}: there is no frame {frame}, only 0 to {shape[3] - 1}")
        return np.asarray(image.dataobj[..., frame]).transpose(2, 1, 0)


def read_spacing(file: Path) -> tuple[float, float, float]:
    """Return the distances in mm between slices, rows and columns from a file's header.

    Raises:
        DataError: The file cannot be read, or a distance is not above 0.
    """
    kind = type(open_nifti(file).header)
    with _report(file), load_nibabel().openers.ImageOpener(file) as stream:
        header = kind.from_fileobj(stream, check=False)  # otherwise, nibabel replaces 0 by 1
    scale = _MILLIMETRES[header.get_xyzt_units()[0]]
    columns, rows, slices = (float(value) * scale for value in header.get_zooms()[:3])
    if not (np.isfinite([columns, rows, slices]).all() and min(columns, rows, slices) > 0):
        raise DataError(
            f"{file}: the header has no usable spacing ({columns:g} × {rows:g} × {slices:g} mm); "
            "correct pixdim in the header"
        )
    return slices, rows, columns


def open_nifti(file: Path) -> Any:
    """Open a NIfTI file without reading its pixels.

    Raises:
        DataError: It is missing or damaged.
        InputError: nibabel is not installed.
    """
    nibabel = load_nibabel()
    with _report(file):
        return nibabel.load(file)


@contextmanager
def _report(file: Path) -> Iterator[None]:
    """Turn the many kinds of errors that reading may raise into a `DataError`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # nibabel, gzip and zlib share no base class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{file} cannot be read as NIfTI: {reason}") from None


def load_nibabel() -> Any:
    """Import nibabel.

    Raises:
        InputError: It is not installed.
    """
    try:
        import nibabel
    except ImportError:
        raise InputError(f"NIfTI files need nibabel: {INSTALL_CMR}") from None
    return nibabel
