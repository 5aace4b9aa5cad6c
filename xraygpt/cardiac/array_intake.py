"""HDF5 files and PNG slices, which say neither how large pixels are nor where they lie.

Volumes in HDF5 lie (slice, row, column), or (phase, slice, row, column). That is how the HDF5
version of ACDC lies: slice z of its `image` is the transposed slice z of the NIfTI file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from xraygpt.cardiac.file_names import FileName, parse_name, parse_slice_name
from xraygpt.cardiac.volume import Volume
from xraygpt.common.errors import DataError, InputError
from xraygpt.common.requirements import INSTALL_CMR
from xraygpt.media.picture import suppress_library_output

_IMAGES, _MASKS = ("image", "images", "data"), ("label", "labels", "mask")
_MAX_CHANNELS = 3


class Slice(NamedTuple):
    """A file with one slice of one phase.

    Attributes:
        file: The file.
        name: What its name says.
        size: Rows and columns.
        read: Reads (H, W) values.
    """

    file: Path
    name: FileName
    size: tuple[int, int]
    read: Callable[[], np.ndarray]


def read_hdf5(files: Sequence[Path]) -> tuple[list[Volume], list[Volume]]:
    """Read HDF5 files with a data set `image` and perhaps `label`.

    Returns:
        Volumes with images and with label maps.

    Raises:
        DataError: A file cannot be read, has no such data set, or one of another shape.
        InputError: h5py is not installed.
    """
    volumes: tuple[list[Volume], list[Volume]] = ([], [])
    slices: tuple[list[Slice], list[Slice]] = ([], [])
    for file in files:
        found = _shapes(file)
        for kind, is_mask in ((_IMAGES, False), (_MASKS, True)):
            key = next((name for name in kind if name in found), None)
            if key is None:
                continue
            shape, read = found[key], partial(_read_data_set, file, key)
            name = parse_name(file)
            if len(shape) == 2:
                one = Slice(file, name, (shape[0], shape[1]), read)
                slices[is_mask].append(one)
            else:
                full = (shape[0] if len(shape) == 4 else 1, *shape[-3:])
                by_phase = lru_cache(maxsize=2)(partial(_read_phase, read, len(shape) == 4))
                volumes[is_mask].append(
                    Volume(file, name, (full[0], full[1], full[2], full[3]), by_phase)
                )
        if not any(name in found for name in (*_IMAGES, *_MASKS)):
            names = ", ".join(found) or "nothing"
            raise DataError(f"{file}: there is no data set called image or label, but {names}")
    return volumes[0] + join_slices(slices[0]), volumes[1] + join_slices(slices[1])


def _h5py() -> ModuleType:
    try:
        import h5py
    except ImportError:
        raise InputError(f"HDF5 files need h5py: {INSTALL_CMR}") from None
    return h5py


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the data sets with numbers in a file."""
    h5py = _h5py()
    try:
        with h5py.File(file) as content:
            sets = {k: v for k, v in content.items() if isinstance(v, h5py.Dataset)}
            shapes = {
                k: tuple(map(int, v.shape)) for k, v in sets.items() if v.dtype.kind in "biuf"
            }
    except OSError as error:
        raise DataError(f"{file}: it cannot be read ({error}); copy or download it again") from None
    for key, shape in shapes.items():
        if key in (*_IMAGES, *_MASKS) and not (2 <= len(shape) <= 4 and min(shape) > 0):
            raise DataError(
                f"{file}: {key} has the shape {shape}; save it as slices × rows × columns, or "
                "phases × slices × rows × columns"
            )
    return shapes


def _read_data_set(file: Path, key: str, phase: int | None = None) -> np.ndarray:
    try:
        with _h5py().File(file) as content:
            values: np.ndarray = content[key][() if phase is None else phase]
    except (OSError, KeyError) as error:
        raise DataError(f"{file}: {key} cannot be read ({error})") from None
    return values


def _read_phase(read: Callable[..., np.ndarray], has_phases: bool, phase: int) -> np.ndarray:
    return read(phase=phase) if has_phases else read()


def read_pngs(files: Iterable[Path]) -> list[Volume]:
    """Read PNG files, each with a slice of a phase.

    Numbers after `slice` (or `z`, `s`) and `frame` (or `phase`, `t`) in the names order them; a
    number at the end of a name without a slice is the slice's.

    Raises:
        DataError: A picture cannot be read or has colours, sizes differ, or two files have the
            same slice and phase.
    """
    return join_slices([_open_png(file) for file in files])


def _open_png(file: Path) -> Slice:
    from PIL import Image

    try:
        with suppress_library_output("PIL"), Image.open(file) as picture:
            size = (picture.height, picture.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file}: it cannot be read ({error}); copy or export it again") from None
    return Slice(file, parse_slice_name(file), size, partial(_decode_png, file))


def _decode_png(file: Path) -> np.ndarray:
    from PIL import Image

    try:
        with suppress_library_output("PIL"), Image.open(file) as picture:
            image: Any = picture.convert("RGB") if picture.mode in ("P", "RGBA") else picture
            values = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{file}: it cannot be read ({error}); copy or export it again") from None
    if values.ndim == 3:
        grey = values[..., 0]
        if (values[..., :_MAX_CHANNELS] != grey[..., None]).any() and image.mode != "LA":
            raise DataError(f"{file}: the picture has colours; export it in grey")
        return grey
    return values.astype(np.uint8) if values.dtype == bool else values


def join_slices(slices: Sequence[Slice]) -> list[Volume]:
    """Join the slices of each series to a volume.

    An image that is missing is black.

    Raises:
        DataError: Sizes differ, or two files have the same slice and phase.
    """
    series = defaultdict[tuple[str, bool], list[Slice]](list)
    for one in slices:
        series[one.name.series, one.name.is_mask].append(one)
    return [_join_series(parts) for parts in series.values()]


def _join_series(parts: list[Slice]) -> Volume:
    placed = _by_place(parts)
    first, warnings = parts[0], list[str]()
    order = {part.name.phase: part.name.phase_order for part in parts}
    phases = sorted(order, key=lambda phase: order[phase])
    numbers = sorted({part.name.slice or 0 for part in parts})
    holes = sorted(set(range(numbers[0], numbers[-1])) - set(numbers))
    if holes and len(holes) < len(numbers):
        warnings.append(f"slice {holes[0]} is missing, so that distances between slices differ")
    missing = [(p, s) for p in phases for s in numbers if (p, s) not in placed]
    if missing:
        phase, slice_ = missing[0]
        named = f"phase {phase} of slice {slice_}" if phase else f"slice {slice_}"
        count = "an image is" if len(missing) == 1 else f"{len(missing)} images are"
        warnings.append(f"{count} missing (first: {named}) and replaced by black, without a heart")

    @lru_cache(maxsize=2)
    def read(phase: int) -> np.ndarray:
        found = [placed.get((phases[phase], number)) for number in numbers]
        return np.stack([part.read() if part else np.zeros(first.size) for part in found])

    return Volume(
        first.file,
        FileName(first.name.series, phases[0] if len(phases) == 1 else "", None, False),
        (len(phases), len(numbers), *first.size),
        read,
        phases=tuple(phases) if phases != [""] else (),
        warnings=tuple(warnings),
    )


def _by_place(parts: Sequence[Slice]) -> dict[tuple[str, int], Slice]:
    placed: dict[tuple[str, int], Slice] = {}
    for part in parts:
        place = (part.name.phase, part.name.slice or 0)
        if place in placed:
            raise DataError(
                f"{part.file.parent}: {placed[place].file.name} and {part.file.name} have the same "
                "slice and phase in their names; name them such as slice03_frame12.png"
            )
        if part.size != parts[0].size:
            sizes = " and ".join(f"{p.size[0]} × {p.size[1]}" for p in (parts[0], part))
            raise DataError(
                f"{part.file.parent}: {parts[0].file.name} and {part.file.name} have {sizes} "
                "pixels; the slices of a stack must have one size"
            )
        placed[place] = part
    return placed
