"""Geometry and time of a NIfTI header, in DICOM's patient coordinates, mm and seconds.

NIfTI's coordinates point to the right, front and head, DICOM's to the left, back and head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from xraygpt.cardiac.volume import Grid

_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # lower three bits of xyzt_units
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # upper bits of xyzt_units
_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SAME_MATRIX = 0.1  # mm at the corners of the volume
_SAME_LENGTH = 0.01  # relative difference of two distances that is reported
_RIGHT_ANGLE = 0.01  # largest cosine between rows and columns
_DIGITS = 6  # of distances in mm, which files store in single precision
_SHEAR = 0.02  # sideways shift of slices relative to their distance that is reported
_PIXEL_SIZES, _SLICE_DISTANCES = (0.1, 20.0), (0.1, 60.0)  # mm; plausible
_MIN_CURVE = 5  # phases
_HEARTBEAT = (0.3, 3.0)  # s; plausible


class Located(NamedTuple):
    """The grid of a volume.

    Attributes:
        grid: Where the pixels lie.
        is_reversed: Whether the file's slices are in descending order of their positions.
    """

    grid: Grid
    is_reversed: bool = False


def read_grid(header: Any, fixed: Any, shape: Sequence[int], warnings: list[str]) -> Located:
    """Return where the pixels of a file lie.

    Args:
        header: The header as it is in the file.
        fixed: The header as nibabel returns it: it takes the absolute value of negative distances,
            and replaces a distance of 0 by 1 mm.
        shape: Numbers of columns, rows and slices.
        warnings: What is missing or unusual is appended to it.
    """
    scale = _MM.get(int(header["xyzt_units"]) & 7)
    if scale is None:
        warnings.append("the header's unit of length is unknown, so there are no volumes in mL")
        return Located(Grid())
    steps = np.asarray(header["pixdim"][1:4], dtype=np.float64) * scale
    if (steps < 0).any():
        warnings.append("the header has negative distances between pixels; their sign is ignored")
    steps = np.abs(steps)
    matrix = _choose_matrix(header, fixed, shape, warnings)
    if matrix is not None:
        matrix = _RAS_TO_LPS @ matrix
        matrix[:3] *= scale
        located = _from_matrix(matrix, shape, warnings)
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if located and not np.allclose(lengths, steps, rtol=_SAME_LENGTH):
            warnings.append(
                f"the header's pixdim says pixels of {_sizes(steps)} mm, its affine "
                f"{_sizes(lengths)} mm; the affine is used"
            )
        if located:
            return _plausible(located, warnings)
    return _plausible(_from_steps(steps, shape[2], warnings), warnings)


def _choose_matrix(
    header: Any, fixed: Any, shape: Sequence[int], warnings: list[str]
) -> np.ndarray | None:
    """Return the sform, or else the qform, in the file's unit; None if neither is valid."""
    sform = header.get_sform(coded=True)[0]
    try:
        is_usable = (np.abs(header["pixdim"][1:4]) > 0).all()
        qform = fixed.get_qform(coded=True)[0] if is_usable else None
    except ValueError:
        warnings.append("the header's qform is damaged and ignored")
        qform = None
    found = [m for m in (sform, qform) if m is not None and _is_valid(m)]
    if not found:
        warnings.append(
            "the header does not say where the images lie (its sform and qform codes are 0, or "
            "both are damaged)"
        )
        return None
    if len(found) == 2:
        corners = np.array(np.meshgrid(*([0, n - 1] for n in shape))).reshape(3, -1)
        differences = (found[0] - found[1])[:3] @ np.vstack([corners, np.ones(corners.shape[1])])
        if (apart := np.linalg.norm(differences, axis=0).max()) > _SAME_MATRIX:
            warnings.append(
                f"the header's sform and qform differ by up to {apart:.1f} mm; the sform is used"
            )
    return found[0]


def _is_valid(matrix: np.ndarray) -> bool:
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(matrix).all() or not (lengths > 0).all():
        return False
    return abs(float(np.linalg.det(matrix[:3, :3] / lengths))) > _RIGHT_ANGLE


def _from_matrix(matrix: np.ndarray, shape: Sequence[int], warnings: list[str]) -> Located | None:
    """Return the grid of a matrix from (column, row, slice) to mm; None if pixels are skewed."""
    columns, rows, step = matrix[:3, 0], matrix[:3, 1], matrix[:3, 2]
    lengths = (float(np.linalg.norm(rows)), float(np.linalg.norm(columns)))
    axes = np.stack([columns / lengths[1], rows / lengths[0]])
    spacing = (round(lengths[0], _DIGITS), round(lengths[1], _DIGITS))
    if abs(float(axes[0] @ axes[1])) > _RIGHT_ANGLE:
        warnings.append("rows and columns are not at right angles, so there are no volumes in mL")
        return Located(Grid())
    normal = np.cross(axes[0], axes[1])
    along = float(step @ normal)
    sideways = float(np.linalg.norm(step - along * normal))
    if shape[2] > 1 and sideways > _SHEAR * abs(along):
        warnings.append(
            f"each slice is shifted sideways by {sideways:.1f} mm against the one before (a "
            "sheared affine)"
        )
    order = np.arange(shape[2])[:: -1 if along < 0 else 1]
    origins = matrix[:3, 3] + order[:, None] * step
    return Located(Grid(spacing, origins, axes, abs(along)), along < 0)


def _from_steps(steps: np.ndarray, slices: int, warnings: list[str]) -> Located:
    known = np.isfinite(steps) & (steps > 0)
    if not known[:2].all():
        warnings.append("there is no pixel spacing (pixdim is 0), so there are no volumes in mL")
        return Located(Grid())
    gap = float(steps[2]) if known[2] else None
    if slices > 1 and gap is None:
        warnings.append(
            "the distance between slices is unknown (pixdim is 0), so there are no volumes in mL"
        )
    spacing = (round(float(steps[1]), _DIGITS), round(float(steps[0]), _DIGITS))
    return Located(Grid(spacing, gap=gap))


def _plausible(located: Located, warnings: list[str]) -> Located:
    grid = located.grid
    low, high = _PIXEL_SIZES
    pixels = [] if grid.spacing is None else list(grid.spacing)
    wrong = [size for size in pixels if not low <= size <= high]
    if grid.gap is not None and not _SLICE_DISTANCES[0] <= grid.gap <= _SLICE_DISTANCES[1]:
        wrong.append(grid.gap)
    if not wrong:
        return located
    warnings.append(
        f"pixels of {_sizes(grid.steps)} mm are implausible: is the header's unit of length right? "
        "there are no volumes in mL"
    )
    return Located(Grid())


def _sizes(steps: Sequence[float] | np.ndarray) -> str:
    return " × ".join(f"{step:.4g}" for step in steps)


def read_times(
    header: Any, phases: int, warnings: list[str]
) -> tuple[np.ndarray | None, float | None]:
    """Return the times of the phases and the duration of the heartbeat in s; None if unknown."""
    if phases < _MIN_CURVE:  # such as end diastole and end systole, whose distance says nothing
        return None, None
    step, unit = float(header["pixdim"][4]), _SECONDS.get(int(header["xyzt_units"]) & 0x38)
    if not np.isfinite(step) or step <= 0:
        warnings.append("the header has no time between phases, so there is no heart rate")
        return None, None
    if unit is None:
        warnings.append(
            f"the header does not say the unit of the time between phases ({step:g}), so there is "
            "no heart rate"
        )
        return None, None
    heartbeat = phases * step * unit
    if not _HEARTBEAT[0] <= heartbeat <= _HEARTBEAT[1]:
        warnings.append(
            f"{phases} phases of {step * unit:g} s do not add up to a heartbeat, so there is no "
            "heart rate: is the header's unit of time right?"
        )
        return None, None
    offset = float(header["toffset"]) * unit
    start = offset if 0 <= offset < heartbeat else 0.0
    return start + np.arange(phases) * step * unit, heartbeat
