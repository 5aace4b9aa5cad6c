"""A volume from a file that is not DICOM, and where its pixels lie in the patient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from xraygpt.cardiac.file_names import FileName
from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError

_SAME_PLACE = 0.1  # pixels; grids that differ by less at every corner are the same
_SAME_LENGTH = 0.01  # relative difference of distances between pixels


@dataclass(frozen=True)
class Grid:
    """Where the pixels of a volume lie; the attributes have the meaning that they have in `Stack`.

    Slices are in the order of ascending positions along the normal.
    """

    spacing: tuple[float, float] | None = None
    origins: np.ndarray | None = None
    axes: np.ndarray | None = None
    gap: float | None = None

    @property
    def steps(self) -> list[float]:
        """Distances between rows, columns and slices in mm, those that are known."""
        return [*(self.spacing or ()), *([self.gap] if self.gap else [])]


@dataclass(frozen=True)
class Volume:
    """A file with images or label maps.

    Notation: S slices, T phases, H rows, W columns.

    Attributes:
        file: The file, or the first of several.
        name: What its name says.
        shape: (T, S, H, W).
        read: Maps a phase to (S, H, W) values of the file, rescaled.
        grid: Where the pixels lie.
        phases: (T,) what the file names call the phases; empty if the file has all of them.
        times: (T,) seconds after the first phase; None if unknown.
        rr_interval: Duration of the heartbeat in seconds; None if unknown.
        warnings: What is missing or unusual, one sentence each.
        is_reversed: Whether `read` returns the slices of the file in reverse order.
    """

    file: Path
    name: FileName
    shape: tuple[int, int, int, int]
    read: Callable[[int], np.ndarray]
    grid: Grid = field(default_factory=Grid)
    phases: tuple[str, ...] = ()
    times: np.ndarray | None = None
    rr_interval: float | None = None
    warnings: tuple[str, ...] = ()
    is_reversed: bool = False

    def image(self, phase: int, slice_: int) -> np.ndarray:
        """Read one image as (H, W) float32.

        Raises:
            DataError: It cannot be read, or has values that are not numbers.
        """
        image = np.asarray(self.read(phase)[slice_], dtype=np.float32)
        if not np.isfinite(image).all():
            raise DataError(
                f"{self.file}: slice {slice_ + 1} of phase {phase + 1} has pixels that are not "
                "numbers (NaN or infinite); replace them by 0 and save the file again"
            )
        return image


def index_to_patient(grid: Grid | Stack) -> np.ndarray | None:
    """Return the (4, 4) matrix from (row, column, slice) to patient coordinates in mm.

    None if positions are unknown or if the slices do not lie on a line at equal distances.
    """
    if grid.origins is None or grid.axes is None or grid.spacing is None:
        return None
    origins, count = grid.origins, len(grid.origins)
    step = np.cross(grid.axes[0], grid.axes[1])
    if count > 1:
        step = (origins[-1] - origins[0]) / (count - 1)
    line = origins[0] + np.arange(count)[:, None] * step
    if np.abs(line - origins).max() > _SAME_PLACE * min(grid.spacing):
        return None
    matrix = np.eye(4)
    matrix[:3, 0] = grid.axes[1] * grid.spacing[0]
    matrix[:3, 1] = grid.axes[0] * grid.spacing[1]
    matrix[:3, 2], matrix[:3, 3] = step, origins[0]
    return matrix


def reorder(mask: Volume, stack: Stack) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that brings (S, H, W) label maps into the order of a stack's images.

    The files may store rows, columns and slices in different directions, as converters of DICOM
    files do, but their pixels must lie in the same places.

    Raises:
        DataError: The pixels of the mask and of the images differ in number, size or place.
    """
    to_image, to_mask = index_to_patient(stack), index_to_patient(mask.grid)
    wanted = np.array([stack.shape[2], stack.shape[3], stack.shape[1]])
    own = np.array([mask.shape[2], mask.shape[3], mask.shape[1]])
    if to_image is None or to_mask is None:
        if (own != wanted).any():
            raise DataError(_other_size(mask, stack))
        if to_image is not None and stack.slices > 1:
            raise DataError(
                f"{mask.file}: the images of {stack.name} have positions and the mask has none, so "
                "the order of its slices is unknown; save it as NIfTI with the images' header"
            )
        # Without positions of the images, the slices of both are in the order of their files.
        return (lambda labels: labels[::-1]) if mask.is_reversed else (lambda labels: labels)
    matrix = np.linalg.inv(to_image) @ to_mask
    turn = np.rint(matrix[:3, :3])
    is_turn = (np.abs(turn).sum(axis=0) == 1).all() and (np.abs(turn).sum(axis=1) == 1).all()
    same_size = np.allclose(np.linalg.norm(matrix[:3, :3], axis=0), 1, atol=_SAME_LENGTH)
    if not is_turn or not same_size or (np.abs(turn) @ own != wanted).any():
        raise DataError(_other_size(mask, stack))
    start = np.where(turn.sum(axis=1) < 0, wanted - 1, 0)
    corners = np.array(np.meshgrid(*([0, n - 1] for n in own))).reshape(3, -1)
    missed = matrix[:3, :3] @ corners + matrix[:3, 3:] - (turn @ corners + start[:, None])
    if np.abs(missed).max() > _SAME_PLACE:
        distance = np.linalg.norm(to_image[:3, :3] @ missed, axis=0).max()
        raise DataError(
            f"{mask.file}: the mask lies up to {distance:.1f} mm away from the images of "
            f"{stack.name}; resample it to their grid"
        )
    return lambda labels: _turned(labels, turn)


def _turned(labels: np.ndarray, turn: np.ndarray) -> np.ndarray:
    """Apply a signed permutation of (row, column, slice) to (S, H, W) label maps."""
    by_row = labels.transpose(1, 2, 0)
    by_row = by_row.transpose(np.abs(turn).argmax(axis=1))
    flips = tuple(slice(None, None, -1 if sign < 0 else 1) for sign in turn.sum(axis=1))
    turned: np.ndarray = by_row[flips].transpose(2, 0, 1)
    return turned


def _other_size(mask: Volume, stack: Stack) -> str:
    def describe(count: int, rows: int, columns: int, grid: Grid | Stack) -> str:
        size = f"{count} slices of {rows} × {columns} pixels"
        return size if grid.spacing is None else f"{size} of {grid.spacing[0]:.3g} mm"

    return (
        f"{mask.file}: the mask has {describe(*mask.shape[1:], mask.grid)}, but {stack.name} has "
        f"{describe(*stack.shape[1:], stack)}; give the mask of these images"
    )
