"""Which frames of a clip to read: by number, by rate, or by phases of the heartbeat."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError

_JITTER = 0.25  # of the mean interval; containers round times to 1 ms or 0.01 s
_SAME_TIME = 1e-6  # seconds


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    """Settings that select frames of a clip; without any, all frames are read."""

    num_frames: int | None = None
    """Read exactly this many frames, evenly spaced from the first to the last. If the clip is
    shorter, frames are repeated."""
    fps: float | None = None
    """Read this many frames per second of the clip, but at least one frame and no frame more than
    the clip has. The frames are evenly spaced in time from the first to the last."""
    max_frames: int | None = None
    """Read at most this many frames. Those of a longer clip are spread over its whole duration."""
    min_frames: int | None = None
    """Read at least this many frames, if the clip has them: with `fps`, a short clip is sampled
    more densely."""
    frames_per_slice: int | None = None
    """For a clip that shows one slice after another: number of evenly spaced phases to read of
    each slice. Needs `phases_per_slice`."""
    phases_per_slice: int | None = None
    """Number of phases, and thus of consecutive frames, that the clip shows of each slice."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.above(0, "fps")
            counts = [f.name for f in dataclasses.fields(self) if f.name != "fps"]
            check.at_least(1, *counts)
            rate = [name for name in ("fps", "max_frames", "min_frames") if self._has(name)]
            check.refuse(
                self._has("num_frames") and rate,
                "num_frames",
                f"cannot be combined with {' and '.join(rate)}; remove one of them",
                *rate,
            )
            self._check_slices(check, rate)
            low, high = self.min_frames, self.max_frames
            check.refuse(
                low is not None and high is not None and low > high,
                "min_frames",
                f"must be at most max_frames ({high}), got {low}",
                "max_frames",
            )

    def _check_slices(self, check: Checks, rate: list[str]) -> None:
        k, phases = self.frames_per_slice, self.phases_per_slice
        check.refuse(
            (k is None) != (phases is None),
            "phases_per_slice" if phases is None else "frames_per_slice",
            "set both frames_per_slice and phases_per_slice, or neither",
        )
        others = [*rate, *(["num_frames"] if self._has("num_frames") else [])]
        check.refuse(
            k is not None and others,
            "frames_per_slice",
            f"cannot be combined with {' and '.join(others)}; remove one of them",
            *others,
        )
        check.refuse(
            k is not None and phases is not None and k > phases,
            "frames_per_slice",
            f"must be at most phases_per_slice ({phases}), got {k}",
            "phases_per_slice",
        )

    def _has(self, name: str) -> bool:
        return getattr(self, name) is not None

    def __str__(self) -> str:
        """Return the settings that are set, such as "fps 4.0, max_frames 128"."""
        names = [f.name for f in dataclasses.fields(self) if self._has(f.name)]
        return ", ".join(f"{name} {getattr(self, name)}" for name in names) or "all frames"

    def indices(
        self, times: Sequence[float] | None, count: int, duration: float | None = None
    ) -> list[int]:
        """Return the frames to read of a clip, in order, counted from 0.

        With `fps`, n = min(count, max_frames, max(1, floor(duration · fps))). Where the frames
        follow each other at a constant rate, the indices are linspace(0, count - 1, n), truncated,
        as in LLaMA-Factory 0.9.5. Otherwise they are the frames on display at n evenly spaced
        times, and a frame that is displayed for long is repeated.

        Args:
            times: Time of each frame in seconds, increasing; None if unknown.
            count: Number of frames in the clip.
            duration: Duration of the clip in seconds; None derives it from `times`.

        Raises:
            DataError: `fps` is set but neither times nor duration are known, or `count` is not a
                multiple of `phases_per_slice`.
        """
        if count < 1:
            raise DataError("the clip has no frames")
        if self.frames_per_slice and self.phases_per_slice:
            return _phases_of_slices(count, self.frames_per_slice, self.phases_per_slice)
        number = self._number(times, count, duration)
        if self.fps is None or times is None or has_constant_rate(times):
            return evenly_spaced(count, number)
        return displayed_at_even_times(times, number)

    def _number(self, times: Sequence[float] | None, count: int, duration: float | None) -> int:
        if self.num_frames is not None:
            return self.num_frames
        number = count
        if self.fps is not None and count > 1:
            duration = duration or clip_duration(times)
            if duration is None:
                raise DataError(
                    "the file does not say when its frames were taken, so that they cannot be "
                    "sampled by fps; set `fps` of the clip, or sample with num_frames"
                )
            number = max(1, math.floor(duration * self.fps))
        number = max(number, self.min_frames or 1)
        return min(number, self.max_frames or number, count)


@dataclass(frozen=True, slots=True)
class ClipSource:
    """The clip in a file, and which of its frames were read.

    Attributes:
        total_frames: Number of frames in the file.
        fps: Mean frames per second in the file; None if unknown.
        duration: Duration in seconds, including that of the last frame; None if unknown.
        indices: The frames that were read, counted from 0.
        constant_rate: Whether the frames follow each other at a constant rate, so that frame i is
            shown i / fps seconds after the first.
    """

    total_frames: int
    fps: float | None
    duration: float | None
    indices: tuple[int, ...]
    constant_rate: bool = True


def evenly_spaced(count: int, number: int) -> list[int]:
    """Return `number` evenly spaced indices from 0 to `count` - 1, truncated to whole numbers."""
    return [int(i) for i in np.linspace(0, count - 1, number).astype(np.int64)]


def displayed_at_even_times(times: Sequence[float], number: int) -> list[int]:
    """Return the frames on display at evenly spaced times from the first frame to the last.

    Args:
        times: Time of each frame in seconds, increasing.
        number: Number of times.
    """
    even = np.linspace(times[0], times[-1], number) + _SAME_TIME
    return [int(i) for i in np.searchsorted(np.asarray(times), even, side="right") - 1]


def has_constant_rate(times: Sequence[float]) -> bool:
    """Return whether all times are within a quarter of an interval of a regular grid."""
    if len(times) < 3:
        return True
    grid = np.linspace(times[0], times[-1], len(times))
    return bool(np.abs(np.asarray(times) - grid).max() <= _JITTER * (grid[1] - grid[0]))


def clip_duration(times: Sequence[float] | None) -> float | None:
    """Return the duration in seconds, where the last frame lasts as long as the mean frame."""
    if times is None or len(times) < 2 or times[-1] <= times[0]:
        return None
    return (times[-1] - times[0]) * len(times) / (len(times) - 1)


def _phases_of_slices(count: int, kept: int, phases: int) -> list[int]:
    """Return evenly spaced phases of each slice; the phase after the last is the first again."""
    if count % phases:
        raise DataError(
            f"the clip has {count} frames, which is not a whole number of slices of {phases} "
            f"phases ({count % phases} are left over); correct phases_per_slice"
        )
    return [first + i * phases // kept for first in range(0, count, phases) for i in range(kept)]
