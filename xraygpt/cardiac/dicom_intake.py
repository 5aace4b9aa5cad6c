"""From a folder of DICOM files to stacks, by geometry and time.

File names, instance numbers and the order of files say nothing reliable about a cine: phases are
ordered by trigger time, slices by their position along the normal of the stack.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xraygpt.cardiac.dicom_frames import Frame, Patient, read_frames
from xraygpt.cardiac.stack import Role, Stack, describe_gaps
from xraygpt.common.errors import DataError

_ROLES: dict[Role, str] = {  # the first that matches counts
    "LGE": r"\blge\b|psir|late[ -]?gad|delayed|\bde[ -]?(?:sax|2ch|3ch|4ch|fl)|viab",
    "perfusion": r"perf|first[ -]?pass",
    "T2": r"\bt2|stir|tirm",
    "2CH": r"\b2[ -]?ch|two[ -]?chamber|\bvla\b",
    "3CH": r"\b3[ -]?ch|three[ -]?chamber|\blvot\b",
    "4CH": r"\b4[ -]?ch|four[ -]?chamber|\bhla\b",
    "SAX": r"\bsax\b|short[ -]?ax|\bsa\b",
}
_SAME_PLACE = 0.1  # mm; slices closer than this are the same slice
_SAME_DIRECTION = 0.01  # largest difference between direction cosines of parallel slices
_MIN_STACK = 3  # parallel cine slices without a name that count as a short-axis stack
_MAX_RATE_SPREAD = 0.1  # relative spread of heartbeats above which it is reported


@dataclass(frozen=True)
class Study:
    """The stacks of a cardiac study.

    Attributes:
        stacks: All stacks, short axis first.
        patient: Sex, height and weight.
        warnings: What is missing or unusual, one sentence each.
    """

    stacks: list[Stack]
    patient: Patient
    warnings: list[str]

    def with_role(self, role: Role) -> list[Stack]:
        """Return the stacks with a role, the one with most slices first."""
        found = [stack for stack in self.stacks if stack.role == role]
        return sorted(found, key=lambda stack: -stack.slices * stack.phases)


def read_dicom_study(folder: Path) -> Study:
    """Read a folder of DICOM files; pixels are decoded later.

    Raises:
        DataError: The folder has no usable image, or images of several studies.
    """
    frames, patient, skipped = read_frames(folder)
    studies = {frame.study for frame in frames}
    if len(studies) > 1:
        raise DataError(
            f"{folder}: there are images of {len(studies)} studies; give the folder of one study"
        )
    warnings = [f"left out {text}" for text in skipped]
    stacks = []
    for group in _group(frames):
        try:
            stacks.append(_build_stack(group))
        except DataError as error:
            warnings.append(f"left out {error}")
    if not stacks:
        raise DataError(f"{folder}: {'; '.join(warnings)}")
    order = list(reversed(_ROLES))
    stacks.sort(key=lambda s: (order.index(s.role) if s.role else len(order), s.name))
    return Study(stacks, patient, warnings)


def _group(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group frames into stacks: the same name, size, spacing and direction."""
    groups: dict[Hashable, list[list[Frame]]] = defaultdict(list)
    for frame in frames:
        parts = groups[frame.name, frame.size, frame.spacing, frame.axes is None]
        for part in parts:
            if _is_parallel(frame, part[0]):
                part.append(frame)
                break
        else:
            parts.append([frame])
    return [part for parts in groups.values() for part in parts]


def _is_parallel(a: Frame, b: Frame) -> bool:
    if a.axes is None or b.axes is None:
        return a.series == b.series
    return bool(np.abs(a.axes - b.axes).max() <= _SAME_DIRECTION)


def _build_stack(frames: Sequence[Frame]) -> Stack:
    first, warnings = frames[0], list[str]()
    slices = _split_by_place(frames, warnings)
    grid, times = _order_phases(slices, first.name, warnings)
    role = _role_of(first.name, grid)
    located = first.axes is not None and all(row[0].position is not None for row in grid)
    if not located:
        warnings.append("the images have no position, so there are no distances between slices")
    elif len(grid) > 1:
        positions = np.array([_place(row[0]) for row in grid])
        warnings += describe_gaps(positions.tolist())
    if first.spacing is None:
        warnings.append("there is no pixel spacing, so there are no volumes in mL")
    intervals = [row[0].rr_interval for row in grid]
    known = [value for value in intervals if value is not None]
    rr_intervals = np.array(known) if len(known) == len(grid) else None
    if known and max(known) - min(known) > _MAX_RATE_SPREAD * float(np.mean(known)):
        warnings.append(
            f"the heart rate differs between slices ({60 / max(known):.0f} to "
            f"{60 / min(known):.0f} beats per minute): phases are matched by their fraction of the "
            "heartbeat"
        )
    return Stack(
        name=first.name or "unnamed",
        role=role,
        shape=(len(grid[0]), len(grid), *first.size),
        read=lambda phase, slice_: grid[slice_][phase].read(),
        spacing=first.spacing,
        origins=np.array([row[0].position for row in grid]) if located else None,
        axes=first.axes if located else None,
        times=times,
        rr_intervals=rr_intervals,
        warnings=tuple(warnings),
    )


def _place(frame: Frame) -> float:
    assert frame.axes is not None and frame.position is not None
    return float(np.cross(frame.axes[0], frame.axes[1]) @ frame.position)


def _split_by_place(frames: Sequence[Frame], warnings: list[str]) -> list[list[Frame]]:
    """Return the frames of each slice, in the order of their position along the normal.

    If several series show the same slice, the last one replaces the others, since an acquisition is
    repeated when the first one failed.
    """
    if any(frame.axes is None or frame.position is None for frame in frames):
        by_series: dict[Hashable, list[Frame]] = defaultdict(list)
        for frame in frames:
            by_series[frame.series].append(frame)
        return list(by_series.values())
    slices: list[list[Frame]] = []
    for frame in sorted(frames, key=_place):
        if slices and _place(frame) - _place(slices[-1][0]) <= _SAME_PLACE:
            slices[-1].append(frame)
        else:
            slices.append([frame])
    for i, row in enumerate(slices):
        series = sorted({(frame.number, frame.series) for frame in row})
        if len(series) > 1:
            slices[i] = [frame for frame in row if frame.series == series[-1][1]]
            warnings.append(f"slice {i + 1} was acquired {len(series)} times; the last one is used")
    return slices


def _order_phases(
    slices: list[list[Frame]], name: str, warnings: list[str]
) -> tuple[list[list[Frame]], np.ndarray | None]:
    """Order each slice's frames by time, and give all slices the same number of phases.

    Returns:
        The frames by slice and phase, and the mean time of each phase in s.

    Raises:
        DataError: A slice has several frames, but no times.
    """
    counts = Counter(len(row) for row in slices)
    if max(counts) == 1:
        return slices, None
    for row in slices:
        if len(row) > 1 and any(frame.time is None for frame in row):
            raise DataError(
                f"{name or 'a series without a name'}: {len(row)} images of one slice have no "
                "TriggerTime, so their order is unknown; export the series with its cardiac timing"
            )
    usual = max(counts, key=lambda count: (counts[count], count))
    ordered = [sorted(row, key=lambda frame: frame.time or 0.0) for row in slices]
    complete = [[_fraction(f) for f in row] for row in ordered if len(row) == usual]
    wanted = np.mean(complete, axis=0)
    for i, row in enumerate(ordered):
        times = [frame.time or 0.0 for frame in row]
        if len(set(times)) < len(times):
            warnings.append(f"slice {i + 1} has several images at the same time in the heartbeat")
        if len(row) != usual:
            warnings.append(
                f"slice {i + 1} has {len(row)} phases, the others {usual}: the nearest phases are "
                "used"
            )
            distances = np.abs(wanted[:, None] - [_fraction(frame) for frame in row])
            ordered[i] = [row[k] for k in distances.argmin(axis=1)]
    all_times = np.array([[frame.time or 0.0 for frame in row] for row in ordered])
    return ordered, all_times.mean(axis=0)


def _fraction(frame: Frame) -> float:
    """Return the time as a fraction of the heartbeat, or in s if its duration is unknown."""
    return (frame.time or 0.0) / (frame.rr_interval or 1.0)


def _role_of(name: str, grid: Sequence[Sequence[Frame]]) -> Role:
    words = name.lower().replace("_", " ")
    for role, pattern in _ROLES.items():
        if re.search(pattern, words):
            return role
    is_cine_stack = len(grid) >= _MIN_STACK and len(grid[0]) > 1
    return "SAX" if is_cine_stack and grid[0][0].axes is not None else ""
