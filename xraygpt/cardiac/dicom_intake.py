"""From a folder of DICOM files to stacks, by geometry and time.

File names, instance numbers and the order of files say nothing reliable about a cine: phases are
ordered by trigger time, slices by their position along the normal of the stack.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from xraygpt.cardiac.dicom_frames import Frame, read_frames
from xraygpt.cardiac.stack import Role, Stack, describe_gaps
from xraygpt.cardiac.study import Study, is_other_series, role_from_name, sort_stacks
from xraygpt.common.errors import DataError
from xraygpt.measure.cardiac_function import HEART_RATES

_SAME_PLACE = 0.1  # mm; slices closer than this are the same slice
_SAME_DIRECTION = 0.01  # largest difference between direction cosines of parallel slices
_MIN_STACK = 3  # parallel cine slices without a name that count as a short-axis stack
_NEARLY_PARALLEL = 0.94  # cosine between the normals of stacks that may have been one
_LONGER_THAN_A_HEARTBEAT = 1.05  # span of trigger times, relative to the heartbeat
_NUMBER = re.compile(r"[\s_.-]+(?:slice|sl|s|b)?[\s_.-]*\d+(?=\s|$)", re.IGNORECASE)
_MAX_RATE_SPREAD = 0.1  # relative spread of heartbeats above which it is reported


def read_dicom_study(folder: Path) -> Study:
    """Read a folder of DICOM files, or one file; pixels are decoded later.

    Raises:
        DataError: The folder has no usable image, or images of several studies.
    """
    frames, patient, remarks = read_frames(folder)
    studies = {frame.study for frame in frames}
    if len(studies) > 1:
        raise DataError(
            f"{folder}: there are images of {len(studies)} studies; give the folder of one study"
        )
    patients = sorted({frame.patient for frame in frames if frame.patient})
    if len(patients) > 1:
        raise DataError(
            f"{folder}: there are images of {len(patients)} patients (Patient ID); give the folder "
            "of one patient"
        )
    warnings = list(remarks)
    stacks = []
    for group in _group(frames):
        try:
            stacks.append(_build_stack(group))
        except DataError as error:
            warnings.append(f"left out {error}")
    if not stacks:
        raise DataError(f"{folder}: {'; '.join(warnings)}")
    warnings += _describe_split(stacks)
    return Study(sort_stacks(stacks), patient, warnings)


def _group(frames: Iterable[Frame]) -> list[list[Frame]]:
    """Group frames into stacks: the same name, size, spacing and direction.

    A number at the end of a name is ignored, since some scanners number the slices there.
    """
    groups: dict[Hashable, list[list[Frame]]] = defaultdict(list)
    for frame in frames:
        parts = groups[_key(frame.name), frame.size, frame.spacing, frame.axes is None]
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
    names = sorted({frame.name for frame in frames})
    name = names[0] if len(names) == 1 else _NUMBER.sub("", names[0])
    frames = _without_implausible_rates(frames, warnings)
    slices = _split_by_place(frames, warnings)
    grid, times = _order_phases(slices, name, warnings)
    role = _role_of(name, grid)
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
        name=name or "unnamed",
        role=role,
        shape=(len(grid[0]), len(grid), *first.size),
        read=lambda phase, slice_: grid[slice_][phase].read(),
        spacing=first.spacing,
        origins=np.array([row[0].position for row in grid]) if located else None,
        axes=first.axes if located else None,
        times=times,
        rr_intervals=rr_intervals,
        warnings=tuple(warnings),
        source=lambda phase, slice_: (grid[slice_][phase].file, grid[slice_][phase].index),
    )


def _describe_split(stacks: Sequence[Stack]) -> list[str]:
    """Describe slices that were kept apart from others of the same name and a similar direction."""
    found = list[str]()
    ordered = sorted(stacks, key=lambda stack: -stack.slices)
    for i, small in enumerate(ordered):
        for large in ordered[:i]:
            is_stack = large.slices >= _MIN_STACK  # not a long-axis view
            same = _key(small.name) == _key(large.name)
            if is_stack and same and _is_nearly_parallel(small, large):
                count = "1 slice is" if small.slices == 1 else f"{small.slices} slices are"
                found.append(
                    f"{small.name}: {count} not joined with the other {large.slices}, because "
                    f"{_describe_difference(small, large)}"
                )
                break
    return found


def _key(name: str) -> str:
    return _NUMBER.sub("", name).lower()


def _is_nearly_parallel(a: Stack, b: Stack) -> bool:
    if a.normal is None or b.normal is None:
        return True
    return abs(float(a.normal @ b.normal)) >= _NEARLY_PARALLEL


def _describe_difference(a: Stack, b: Stack) -> str:
    if a.shape[2:] != b.shape[2:]:
        sizes = " and ".join(f"{s.shape[2]} × {s.shape[3]}" for s in (a, b))
        return f"the images have {sizes} pixels"
    if a.spacing != b.spacing:
        spacings = ("unknown" if s.spacing is None else f"{s.spacing[0]:.3g} mm" for s in (a, b))
        return f"the pixel spacings differ ({' and '.join(spacings)})"
    return "their directions differ"


def _without_implausible_rates(frames: Sequence[Frame], warnings: list[str]) -> list[Frame]:
    """Return the frames without heartbeats of implausible duration."""
    results = list(frames)
    for i, frame in enumerate(frames):
        if frame.rr_interval is None:
            continue
        rate = 60 / frame.rr_interval
        if not HEART_RATES[0] <= rate <= HEART_RATES[1]:
            results[i] = replace(frame, rr_interval=None)
            text = f"a heart rate of {rate:.0f} beats per minute is implausible and ignored"
            warnings += [text] * (text not in warnings)
    return results


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
        DataError: A slice has several frames, but no times, or the same time for most of them.
    """
    counts = Counter(len(row) for row in slices)
    if max(counts) == 1:
        return slices, None
    for i, row in enumerate(slices):
        if len(row) > 1 and any(frame.time is None for frame in row):
            place = "without position" if row[0].position is None else "of one slice"
            raise DataError(
                f"{name or 'a series without a name'}: {len(row)} images {place} have no "
                "TriggerTime, so their order is unknown; export the series with its cardiac timing"
            )
        different = len({frame.time for frame in row})
        if 1 < len(row) >= 2 * different:
            unit = "trigger time" if different == 1 else "different trigger times"
            raise DataError(
                f"{name or 'a series without a name'}: slice {i + 1} has {len(row)} images, but "
                f"only {different} {unit}: their order is unknown, or slices share one position; "
                "export the series with its cardiac timing and positions"
            )
    usual = max(counts, key=lambda count: (counts[count], count))
    ordered = [sorted(row, key=lambda frame: frame.time or 0.0) for row in slices]
    ordered = _from_r_wave(ordered, warnings)
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


def _from_r_wave(slices: list[list[Frame]], warnings: list[str]) -> list[list[Frame]]:
    """Count the times of slices that were recorded in a later heartbeat from its own R wave.

    Args:
        slices: The frames by slice, ascending in time.
        warnings: What is unusual is appended to it.
    """
    results, later, longest = list[list[Frame]](), list[int](), 0.0
    for i, row in enumerate(slices):
        first, last = (_fraction(frame) for frame in (row[0], row[-1]))
        known = all(frame.rr_interval for frame in row)
        beats = int(first) if known else 0
        longest = max(longest, last - first if known else 0.0)
        later += [i + 1] * (beats > 0)
        results.append(
            [replace(f, time=(f.time or 0.0) - beats * (f.rr_interval or 0.0)) for f in row]
        )
    if later:
        named = ", ".join(map(str, later))
        subject = f"slice {named} has" if len(later) == 1 else f"slices {named} have"
        warnings.append(
            f"{subject} trigger times after the next R wave: they are counted from that one"
        )
    if longest > _LONGER_THAN_A_HEARTBEAT:
        warnings.append(
            f"the phases span {longest:.1f} heartbeats, so that end diastole and end systole may "
            "be of different ones"
        )
    return results


def _fraction(frame: Frame) -> float:
    """Return the time as a fraction of the heartbeat, or in s if its duration is unknown."""
    return (frame.time or 0.0) / (frame.rr_interval or 1.0)


def _role_of(name: str, grid: Sequence[Sequence[Frame]]) -> Role:
    role = role_from_name(name)
    is_cine_stack = len(grid) >= _MIN_STACK and len(grid[0]) > 1
    if not role and not is_other_series(name) and is_cine_stack and grid[0][0].axes is not None:
        return "SAX"
    return role
