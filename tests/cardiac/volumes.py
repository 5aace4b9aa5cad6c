"""Small NIfTI and HDF5 files for tests of the intake."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np

RIGHT_FRONT_HEAD = np.array(
    [[-1.5, 0, 0, 30], [0, -1.25, 0, 40], [0, 0, 8, -20], [0, 0, 0, 1]], dtype=float
)
"""Columns 1.5 mm apart to the left, rows 1.25 mm apart to the back, slices 8 mm apart to the head,
in NIfTI's coordinates (right, front, head)."""
PIXDIM, UNITS, QFORM_CODE, SFORM_CODE = 76, 123, 252, 254  # offsets in the header


def values(columns=4, rows=5, slices=3, phases=6) -> np.ndarray:
    """(x, y, z, t) int16; each value says where it is: 1000 t + 100 z + 10 y + x."""
    x, y, z, t = np.ogrid[:columns, :rows, :slices, :phases]
    return (1000 * t + 100 * z + 10 * y + x).astype(np.int16)


def write_volume(
    file: Path,
    data: np.ndarray | None = None,
    affine: np.ndarray | None = RIGHT_FRONT_HEAD,
    step: float = 0.15,
    units: tuple[str, str] = ("mm", "sec"),
    qform: np.ndarray | None = None,
    code: int = 1,
) -> Path:
    """Write a NIfTI file with sform and qform; 6 phases 0.15 s apart are a heartbeat of 0.9 s."""
    data = values() if data is None else data
    image = nib.Nifti1Image(data, affine)
    image.set_sform(affine, code=code)
    image.set_qform(affine if qform is None else qform, code=code)
    image.header.set_xyzt_units(*units)
    if data.ndim > 3:
        image.header["pixdim"][4] = step
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, file)
    return file


def patch(file: Path, offset: int, form: str, *numbers: float) -> Path:
    """Overwrite a part of an uncompressed file."""
    content = bytearray(file.read_bytes())
    content[offset : offset + struct.calcsize(form)] = struct.pack(form, *numbers)
    file.write_bytes(content)
    return file


def heart_labels(slices: int = 3, rows: int = 12, columns: int = 10) -> np.ndarray:
    """(z, y, x) ACDC labels: LV 2 × 2 (3) inside myocardium 4 × 4 (2), RV 2 × 4 (1) beside it."""
    labels = np.zeros((slices, rows, columns), np.uint8)
    labels[:, 2:6, 1:5] = 2
    labels[:, 3:5, 2:4] = 3
    labels[:, 2:6, 5:7] = 1
    return labels


def write_mask(file: Path, labels: np.ndarray, **settings) -> Path:
    """Write (z, y, x) or (t, z, y, x) labels as NIfTI."""
    return write_volume(file, labels.transpose(), **settings)


def write_acdc(folder: Path, info: str | None = None, phases: int = 6) -> Path:
    """Write an ACDC patient with frames 1 and 3: the cavity has 4 pixels per slice, then 1."""
    name = folder.name
    images = values(10, 12, 3, phases)
    write_volume(folder / f"{name}_4d.nii.gz", images)
    for number in (1, 3):
        labels = heart_labels()
        if number == 3:
            labels[:, 3:5, 2:4] = 2
            labels[:, 3, 2] = 3
        frame = f"{name}_frame{number:02d}"
        write_volume(folder / f"{frame}.nii.gz", images[..., number - 1])
        write_mask(folder / f"{frame}_gt.nii.gz", labels)
    default = f"ED: 1\nES: 3\nGroup: DCM\nHeight: 184.0\nNbFrame: {phases}\nWeight: 95.0\n"
    (folder / "Info.cfg").write_text(default if info is None else info)
    return folder


def write_hdf5(file: Path, **sets: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as content:
        for key, data in sets.items():
            content[key] = data
    return file
