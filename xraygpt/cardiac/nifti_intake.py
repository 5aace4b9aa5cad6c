"""NIfTI files with 2, 3 or 4 dimensions; pixels are read one phase at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.cardiac.file_names import parse_name
from xraygpt.cardiac.nifti_header import read_grid, read_times
from xraygpt.cardiac.volume import Volume
from xraygpt.common.errors import DataError
from xraygpt.segmentation.nifti import load_nibabel

_COPY_AGAIN = "copy or download it again"
_CHUNK = 2**20  # bytes


def read_nifti(file: Path) -> Volume:
    """Read the header of a NIfTI file; rows are its second and columns its first dimension.

    Raises:
        DataError: It is damaged, cut short, or has no grey images.
        InputError: nibabel is not installed.
    """
    if not file.name.lower().endswith((".nii", ".nii.gz")):
        raise DataError(f"{file}: it is a NIfTI file; rename it to end in .nii or .nii.gz")
    image, header = _open(file)
    columns, rows, slices, phases = _sizes(file, image)
    _check_length(file, image)
    warnings = list[str]()
    grid, is_reversed = read_grid(header, image.header, (columns, rows, slices), warnings)
    times, heartbeat = read_times(header, phases, warnings)
    return Volume(
        file,
        parse_name(file),
        (phases, slices, rows, columns),
        _reader(file, image, (columns, rows, slices, phases), is_reversed),
        grid,
        times=times,
        rr_interval=heartbeat,
        warnings=tuple(warnings),
        is_reversed=is_reversed,
    )


def _open(file: Path) -> tuple[Any, Any]:
    """Return nibabel's image, and the header as it is in the file.

    nibabel repairs some values of the header and logs that; both must be known here.
    """
    nibabel = load_nibabel()
    try:
        with nibabel.imageglobals.LoggingOutputSuppressor():
            image = nibabel.load(file)
            if not isinstance(image, nibabel.Nifti1Image | nibabel.Nifti2Image):
                raise DataError(f"{file}: it is not a NIfTI file")
            with image.file_map["image"].get_prepare_fileobj("rb") as stream:
                header = type(image.header).from_fileobj(stream, check=False)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise DataError(f"{file}: it is no valid NIfTI file ({error}); {_COPY_AGAIN}") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{file}: it cannot be read ({error}); {_COPY_AGAIN}") from None
    return image, header


def _sizes(file: Path, image: Any) -> tuple[int, int, int, int]:
    """Return the numbers of columns, rows, slices and phases."""
    shape, dtype = tuple(map(int, image.shape)), image.header.get_data_dtype()
    if dtype.names or np.issubdtype(dtype, np.complexfloating):
        kind = "colours" if dtype.names else "complex numbers"
        raise DataError(f"{file}: its pixels are {kind}; save one grey value per pixel")
    if len(shape) > 4 and max(shape[4:]) > 1:
        raise DataError(
            f"{file}: it has {len(shape)} dimensions ({' × '.join(map(str, shape))}); save columns "
            "× rows × slices × phases with one grey value per pixel"
        )
    if len(shape) < 2 or min(shape) < 1:
        raise DataError(f"{file}: it has no images (its shape is {shape})")
    columns, rows, slices, phases = (*shape[:4], 1, 1)[:4]
    return columns, rows, slices, phases


def _check_length(file: Path, image: Any) -> None:
    """Check that no pixels are missing, without decompressing an intact file.

    A gzip file ends with the length of its content modulo 2³². If that does not fit, the file is
    decompressed, since it may have several parts.
    """
    count = int(np.prod(image.shape, dtype=np.int64)) * image.header.get_data_dtype().itemsize
    wanted = int(image.dataobj.offset) + count
    with file.open("rb") as stream:
        is_compressed = stream.read(2) == b"\x1f\x8b"
        size = stream.seek(0, 2)
        stream.seek(max(0, size - 4))
        length = int.from_bytes(stream.read(4), "little")
    if not is_compressed:
        found = size
    elif length == wanted % 2**32:
        return
    else:
        found = _decompressed_size(file)
    if found < wanted:
        raise DataError(
            f"{file}: it is cut short: {found:,} of {wanted:,} bytes are there; {_COPY_AGAIN}"
        )


def _decompressed_size(file: Path) -> int:
    size = 0
    try:
        with gzip.open(file) as stream:
            while chunk := stream.read(_CHUNK):
                size += len(chunk)
    except (OSError, EOFError, zlib.error):
        pass
    return size


def _reader(
    file: Path, image: Any, sizes: tuple[int, int, int, int], is_reversed: bool
) -> Callable[[int], np.ndarray]:
    """Return a function that reads one phase as (S, H, W); the last two phases are kept."""
    columns, rows, slices, _ = sizes
    selected = (slice(None),) * min(3, len(image.shape))

    @lru_cache(maxsize=2)
    def read(phase: int) -> np.ndarray:
        part = selected if len(image.shape) < 4 else (*selected, phase)
        try:
            values = np.asarray(image.dataobj[part])
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise DataError(
                f"{file}: phase {phase + 1} cannot be read ({error}); {_COPY_AGAIN}"
            ) from None
        by_slice = values.reshape(columns, rows, slices).transpose(2, 1, 0)
        return by_slice[::-1] if is_reversed else by_slice

    return read
