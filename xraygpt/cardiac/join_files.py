"""From volumes in files to stacks: files of one series are joined, masks are put with their images.

Phases in file names are counted from 1, as in ACDC.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from xraygpt.cardiac.stack import Role, Stack
from xraygpt.cardiac.study import role_from_name
from xraygpt.cardiac.volume import Volume, reorder
from xraygpt.common.errors import DataError
from xraygpt.segmentation.labels import CONVENTIONS, LV, MYOCARDIUM, RV, to_structures

_MIN_STACK = 3  # slices of a cine without a name that count as a short-axis stack
_WHITE = 255  # value of the cavity in Sunnybrook's masks
_MIN_CURVE = 5  # phases
_SAME_STEP = 0.01  # relative; distances between pixels in the files of one series


def join_images(volumes: Sequence[Volume], role: Role = "") -> list[tuple[Stack, list[str]]]:
    """Join the volumes of each series to a stack.

    Args:
        volumes: Volumes with images.
        role: What the images show if neither their names nor their number tells.

    Returns:
        Stacks, and for each the names of its phases, which are empty for a file with all phases.

    Raises:
        DataError: The files of a series do not fit together.
    """
    series = defaultdict[str, list[Volume]](list)
    for volume in volumes:
        series[volume.name.series.lower()].append(volume)
    return [_join(parts, role) for parts in series.values()]


def prefer_frames(volumes: Sequence[Volume], masks: Sequence[Volume]) -> list[Volume]:
    """Leave out volumes of which the same series has a second version.

    A file with all phases is used rather than files with one phase each, unless the masks are of
    the phases ED and ES, whose numbers are unknown.
    """
    by_extreme = {mask.name.series for mask in masks if mask.name.phase in ("ED", "ES")}
    chosen = []
    for volume in volumes:
        same = [v for v in volumes if v.name.series.lower() == volume.name.series.lower()]
        kinds = {bool(v.name.phase) for v in same}
        use_frames = volume.name.series in by_extreme
        if len(kinds) == 1 or bool(volume.name.phase) == use_frames:
            chosen.append(volume)
    return chosen


def is_curve(phases: Sequence[str]) -> bool:
    """Check whether phases are a whole heartbeat: a file with all phases, or consecutive numbers.

    Args:
        phases: Names of the phases as `join_images` returns them.
    """
    if not phases:
        return True
    numbers = [int(phase) for phase in phases if phase.isdigit()]
    consecutive = list(range(numbers[0], numbers[0] + len(phases))) if numbers else []
    return len(phases) >= _MIN_CURVE and numbers == consecutive


def _join(parts: list[Volume], role: Role) -> tuple[Stack, list[str]]:
    parts = sorted(parts, key=lambda volume: volume.name.phase_order)
    first, warnings = parts[0], list(parts[0].warnings)
    for one, other in itertools.pairwise(parts):
        _check_same_series(one, other)
    phases = [part.name.phase for part in parts] if len(parts) > 1 else list(first.phases)
    if not phases and first.name.phase:
        phases = [first.name.phase]
    count = len(parts) if len(parts) > 1 else first.shape[0]
    if count > 1 and not is_curve(phases):
        named = phases if len(phases) < 4 else [phases[0], "…", phases[-1]]
        warnings.append(f"there are only the phases {', '.join(named)}, so there is no curve")
    shape = (count, *first.shape[1:])
    grid, name = first.grid, first.name.series or first.file.parent.name
    known = role_from_name(name)
    if not known and not role and first.shape[1] >= _MIN_STACK and count > 1:
        role = "SAX"
        warnings.append("the name does not say what the images show: they are taken as short axis")
    if grid.spacing is None and not any("no volumes in mL" in text for text in warnings):
        warnings.append("the files have no pixel spacing, so there are no volumes in mL")

    def read(phase: int, slice_: int) -> np.ndarray:
        return parts[phase].image(0, slice_) if len(parts) > 1 else first.image(phase, slice_)

    stack = Stack(
        name=name,
        role=known or role,
        shape=shape,
        read=read,
        spacing=grid.spacing,
        origins=grid.origins,
        axes=grid.axes,
        gap=grid.gap if first.shape[1] > 1 else None,
        times=first.times,
        rr_intervals=None if first.rr_interval is None else np.full(shape[1], first.rr_interval),
        warnings=tuple(dict.fromkeys(warnings)),
        extremes={phase: i for i, phase in enumerate(phases) if phase in ("ED", "ES")},
    )
    return stack, phases


def _check_same_series(one: Volume, other: Volume) -> None:
    pair = f"{one.file.parent}: {one.file.name} and {other.file.name}"
    if one.name.phase == other.name.phase or max(one.shape[0], other.shape[0]) > 1:
        raise DataError(
            f"{pair} have the same series and phase in their names; rename one, for example as "
            "…_frame02, or remove it"
        )
    if one.shape != other.shape:
        sizes = " and ".join(" × ".join(map(str, v.shape[1:])) for v in (one, other))
        raise DataError(f"{pair} are of one series, but have {sizes} pixels; give them other names")
    a, b = np.array(one.grid.steps), np.array(other.grid.steps)
    if a.shape != b.shape or not np.allclose(a, b, rtol=_SAME_STEP):
        sizes = " and ".join(" × ".join(f"{s:.4g}" for s in v.grid.steps) for v in (one, other))
        raise DataError(f"{pair} are of one series, but have pixels of {sizes} mm")
    if one.grid.origins is not None and other.grid.origins is not None:
        apart = float(np.abs(one.grid.origins - other.grid.origins).max())
        if apart > one.grid.steps[0]:
            raise DataError(f"{pair} are of one series, but lie {apart:.1f} mm apart")


def add_masks(
    stack: Stack,
    phases: Sequence[str],
    masks: Sequence[Volume],
    convention: str,
    known: Mapping[str, int] | None = None,
) -> Stack:
    """Return the stack with label maps.

    Args:
        stack: The images.
        phases: Names of the phases of `stack`; empty for a file with all phases.
        masks: Volumes with label maps.
        convention: Meaning of their values, a key of `CONVENTIONS`.
        known: Indices of the phases that are called ED and ES.

    Raises:
        DataError: A mask does not fit the images, its values have no meaning, or the convention is
            missing.
    """
    if not masks:
        return stack
    if not convention:
        raise DataError(
            f"{masks[0].file}: which structures do the values of the mask stand for? give the "
            f"convention: {', '.join(CONVENTIONS)}"
        )
    labels: dict[int, np.ndarray] = {}
    empty = list[str]()
    for mask in masks:
        arrange = reorder(mask, stack)
        for index, phase in _phases_of(mask, stack, phases, known or {}):
            if phase in labels:
                raise DataError(f"{mask.file}: there is another mask of the same phase; remove one")
            labels[phase] = _read_labels(mask, index, convention, arrange)
            if mask.shape[0] > 1 and not labels[phase].any():
                del labels[phase]  # in M&Ms, all phases but two are empty
                empty.append(str(phase + 1))
    warnings = list(stack.warnings)
    if empty and len(labels) > len(("ED", "ES")):
        which = f"phase {empty[0]} is" if len(empty) == 1 else f"phases {', '.join(empty)} are"
        warnings.append(f"{which} not measured: the mask is empty")
    extremes = stack.extremes or (known if known and not phases else {})
    if not any(found.any() for found in labels.values()):
        warnings.append("the masks are empty")
    elif _is_exchanged(labels.values()):
        warnings.append(
            f"in the masks, the myocardium surrounds the right ventricle, not the left: is the "
            f"convention {convention} right?"
        )
    return replace(
        stack,
        read_labels=lambda phase: labels[phase],
        labelled_phases=tuple(sorted(labels)),
        extremes=extremes,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _phases_of(
    mask: Volume, stack: Stack, phases: Sequence[str], known: Mapping[str, int]
) -> list[tuple[int, int]]:
    """Return pairs of phases, in the mask and in the stack."""
    names = list(mask.phases) or [mask.name.phase] * bool(mask.name.phase)
    if not names and mask.shape[0] == stack.phases:
        return [(i, i) for i in range(stack.phases)]
    if not names:
        raise DataError(
            f"{mask.file}: the mask has {mask.shape[0]} phases, the images {stack.phases}; put its "
            "phase into its name, counted from 1, for example …_frame12_gt.nii.gz"
        )
    return [(i, _place(name, mask, stack, phases, known)) for i, name in enumerate(names)]


def _place(
    name: str, mask: Volume, stack: Stack, phases: Sequence[str], known: Mapping[str, int]
) -> int:
    if name in phases:
        return list(phases).index(name)
    if not phases and name in known:
        return known[name]
    if not phases and name.isdigit() and 1 <= int(name) <= stack.phases:
        return int(name) - 1
    has = f"phases {', '.join(phases)}" if phases else f"phases 1 to {stack.phases}"
    raise DataError(
        f"{mask.file}: the mask is of phase {name}, but {stack.name} has {has}; rename the mask"
    )


def _read_labels(
    mask: Volume, index: int, convention: str, arrange: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    values = mask.read(index)
    if not np.isfinite(values).all():
        raise DataError(f"{mask.file}: the mask has values that are not numbers (NaN or infinite)")
    if convention == "sunnybrook" and set(np.unique(values).tolist()) <= {0, _WHITE}:
        values = values // _WHITE
    try:
        found: np.ndarray = np.ascontiguousarray(arrange(to_structures(values, convention)))
    except DataError as error:
        raise DataError(f"{mask.file}: {error}") from None
    return found


def _is_exchanged(maps: Iterable[np.ndarray]) -> bool:
    """Check whether myocardium surrounds what is called the right ventricle."""
    shares = {LV: [0, 0], RV: [0, 0]}
    for labels in maps:
        for value, counts in shares.items():
            for axis in (1, 2):
                for shift in (-1, 1):
                    beside = np.roll(labels, shift, axis=axis)[labels == value]
                    counts[0] += int((beside == MYOCARDIUM).sum())
                    counts[1] += int((beside != value).sum())
    left, right = (inside / all_ if all_ else None for inside, all_ in shares.values())
    return left is not None and right is not None and right > left
