"""Stacks of cardiac images: slices at known positions, each with the phases of a heartbeat."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from xraygpt.common.errors import DataError

Role = Literal["SAX", "2CH", "3CH", "4CH", "LGE", "T2", "perfusion", ""]
"""What a series shows; empty if neither its name nor its geometry tells."""
_PARALLEL = 0.94  # cosine of 20°
_IRREGULAR = 0.05  # relative deviation of a distance between slices that is reported


@dataclass(frozen=True)
class Stack:
    """Parallel slices, each with the same number of phases; pixels are read when they are needed.

    Notation: S slices, T phases, H rows, W columns.

    Attributes:
        name: Name of the series.
        role: What the images show.
        shape: (T, S, H, W).
        read: Maps a phase and a slice to (H, W) float32 values.
        spacing: Distances between rows and between columns in mm; None if unknown.
        origins: (S, 3) positions of each slice's first pixel in mm, in DICOM's patient coordinates
            (x to the left, y to the back, z to the head); None if unknown.
        axes: (2, 3) unit vectors in patient coordinates along a row and along a column; None if
            unknown.
        gap: Distance between the centres of neighbouring slices in mm if there are no positions.
        times: (T,) seconds after the R wave, averaged over slices; None if unknown.
        rr_intervals: (S,) duration of the heartbeat in seconds for each slice; None if unknown.
        warnings: What is missing or unusual, one sentence each.
        read_labels: Maps a phase to (S, H, W) uint8 label maps that came with the images, values as
            in `segmentation.labels`; None without them.
        labelled_phases: The phases that have label maps, ascending.
        extremes: The phases that the files call ED and ES, by these names.
        source: Maps a phase and a slice to the DICOM file of the image and its frame in the file,
            counted from 0; None if the images come from other files.
    """

    name: str
    role: Role
    shape: tuple[int, int, int, int]
    read: Callable[[int, int], np.ndarray]
    spacing: tuple[float, float] | None = None
    origins: np.ndarray | None = None
    axes: np.ndarray | None = None
    gap: float | None = None
    times: np.ndarray | None = None
    rr_intervals: np.ndarray | None = None
    warnings: tuple[str, ...] = ()
    read_labels: Callable[[int], np.ndarray] | None = None
    labelled_phases: tuple[int, ...] = ()
    extremes: Mapping[str, int] = field(default_factory=dict)
    source: Callable[[int, int], tuple[Path, int]] | None = None

    @property
    def phases(self) -> int:
        """T, the number of phases."""
        return self.shape[0]

    @property
    def slices(self) -> int:
        """S, the number of slices."""
        return self.shape[1]

    @property
    def normal(self) -> np.ndarray | None:
        """(3,) unit vector in patient coordinates, perpendicular to the slices."""
        if self.axes is None:
            return None
        normal: np.ndarray = np.cross(self.axes[0], self.axes[1])
        return normal

    @property
    def positions(self) -> np.ndarray | None:
        """(S,) positions along the normal in mm, ascending; None if unknown."""
        if self.origins is not None and self.normal is not None:
            positions: np.ndarray = self.origins @ self.normal
            return positions
        return None if self.gap is None else np.arange(self.slices) * self.gap

    @property
    def slice_widths(self) -> np.ndarray | None:
        """(S,) extent in mm along the normal that each slice stands for; None if unknown.

        It reaches halfway to both neighbours, so that a missing slice is shared between them.
        """
        positions = self.positions
        if positions is None or self.slices < 2:
            return None
        gaps = np.diff(positions)
        widths = np.empty(self.slices)
        widths[1:-1] = (gaps[:-1] + gaps[1:]) / 2
        widths[0], widths[-1] = gaps[0], gaps[-1]
        return widths

    @property
    def distance(self) -> float | None:
        """Median distance between the centres of neighbouring slices in mm; None if unknown."""
        positions = self.positions
        if positions is None or self.slices < 2:
            return None
        return float(np.median(np.diff(positions)))

    @property
    def heart_rate(self) -> float | None:
        """Mean heart rate in beats per minute; None if unknown."""
        return None if self.rr_intervals is None else float(60 / self.rr_intervals.mean())

    def image(self, phase: int, slice_: int) -> np.ndarray:
        """Read one image as (H, W) float32.

        Raises:
            DataError: It cannot be read.
            IndexError: There is no such phase or slice.
        """
        if not (0 <= phase < self.phases and 0 <= slice_ < self.slices):
            raise IndexError(f"{self.name} has {self.phases} phases of {self.slices} slices")
        return self.read(phase, slice_)

    def labels(self, phase: int) -> np.ndarray:
        """Read the (S, H, W) uint8 label maps that came with a phase.

        Raises:
            DataError: There are none, or they cannot be read.
        """
        if self.read_labels is None or phase not in self.labelled_phases:
            raise DataError(f"{self.name}: phase {phase} has no masks")
        return self.read_labels(phase)

    def to_patient(self, slice_: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Return (N, 3) patient coordinates in mm of (N,) pixel positions, which may be fractional.

        Raises:
            DataError: The positions of the images are unknown.
        """
        if self.origins is None or self.axes is None or self.spacing is None:
            raise DataError(f"{self.name} has no position in the patient")
        along_row = np.outer(columns * self.spacing[1], self.axes[0])
        along_column = np.outer(rows * self.spacing[0], self.axes[1])
        points: np.ndarray = self.origins[slice_] + along_row + along_column
        return points


def is_parallel(a: Stack, b: Stack) -> bool:
    """Check whether the slices of two stacks are parallel to within 20°."""
    if a.normal is None or b.normal is None:
        return False
    return bool(abs(float(a.normal @ b.normal)) >= _PARALLEL)


def describe_gaps(positions: Sequence[float]) -> list[str]:
    """Describe distances between slices that are not all equal, as missing slices if they fit.

    Args:
        positions: (S,) positions along the normal in mm, ascending.
    """
    gaps = np.diff(np.asarray(positions))
    if len(gaps) < 2:
        return []
    usual = float(np.sort(gaps)[(len(gaps) - 1) // 2])  # of two middle ones, the smaller
    messages = []
    for i, gap in enumerate(gaps):
        count = round(gap / usual)
        if abs(gap - usual) <= _IRREGULAR * usual:
            continue
        if count > 1 and abs(gap - count * usual) <= _IRREGULAR * gap:
            missing = "a slice is" if count == 2 else f"{count - 1} slices are"
            messages.append(f"{missing} missing between slices {i + 1} and {i + 2}")
        else:
            messages.append(
                f"slices {i + 1} and {i + 2} are {gap:.1f} mm apart, the others {usual:.1f} mm"
            )
    return messages
