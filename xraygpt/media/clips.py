"""Choosing the frames of a clip while its file is read, and clips given as lists of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from xraygpt.common.errors import DataError
from xraygpt.media.frame_sampling import (
    ClipSource,
    FrameSampling,
    clip_duration,
    has_constant_rate,
)
from xraygpt.media.picture import PixelImage, ReadLimits, check_clip_size
from xraygpt.media.pixels import read_image

if TYPE_CHECKING:
    from xraygpt.media.base import MediaRef


class FrameSelector:
    """Selects the frames to read of one file, and keeps what it knows about them.

    A reader calls it once the number and the times of the frames are known, before it decodes
    the pixels, and then reads only the frames that it returns.

    Args:
        file: The file, for messages.
        frames: (start, stop, step) of the frames to choose from; None means all.
        sampling: Which of these to read; None means all.
        fps: Frames per second, which replace the times in the file.

    Attributes:
        times: Times of the selected frames, in seconds after the file's first frame; None if
            unknown.
        source: The file's frames, and which of them were selected.
    """

    def __init__(
        self,
        file: str,
        frames: tuple[int, int, int] | None = None,
        sampling: FrameSampling | None = None,
        fps: float | None = None,
    ) -> None:
        self.file, self.frames, self.sampling, self.fps = file, frames, sampling, fps
        self.times: tuple[float, ...] | None = None
        self.source: ClipSource | None = None

    @classmethod
    def of(cls, ref: MediaRef) -> FrameSelector:
        """Return the selector for a reference to a clip or volume."""
        return cls(ref.file, ref.frames, ref.sampling, ref.fps)

    def __call__(
        self,
        count: int,
        times: Sequence[float] | None = None,
        duration: float | None = None,
    ) -> list[int]:
        """Return the frames to read, counted from 0.

        Args:
            count: Number of frames in the file.
            times: Their times, in seconds after the first; None if unknown.
            duration: Duration of the file in seconds; None derives it from the times.

        Raises:
            DataError: The file does not contain the requested frames.
        """
        if self.fps:
            times, duration = [i / self.fps for i in range(count)], count / self.fps
        duration = duration or clip_duration(times)
        candidates = range(count)[frame_slice(self.file, self.frames, count)]
        indices = list(candidates)
        if self.sampling is not None:
            part_of_times = None if times is None else [times[i] for i in candidates]
            whole = duration if len(candidates) == count else None
            try:
                chosen = self.sampling.indices(part_of_times, len(candidates), whole)
            except DataError as error:
                raise DataError(f"{self.file}: {error}") from None
            indices = [candidates[i] for i in chosen]
        self.times = None if times is None else tuple(times[i] for i in indices)
        rate = self.fps or (count / duration if duration else None)
        if not self.fps and times is not None and count > 1 and times[-1] > times[0]:
            rate = (count - 1) / (times[-1] - times[0])
        regular = times is None or has_constant_rate(times)
        rate = None if rate is None else round(rate, 6)
        self.source = ClipSource(count, rate, duration, tuple(indices), regular)
        return indices


def frame_slice(
    file: str, frames: tuple[int, int, int] | None, count: int, unit: str = "frames"
) -> slice:
    """Return the slice that selects (start, stop, step) from a file with `count` frames or rows.

    Raises:
        DataError: The file does not contain all requested frames.
    """
    if frames is None:
        return slice(None)
    start, stop, step = frames
    if not 0 <= start < stop <= count or step < 1:
        raise DataError(
            f"{file}: {unit} {start} to {stop} in steps of {step} were requested, but the file "
            f"has {count} {unit}, counted from 0"
        )
    return slice(start, stop, step)


def read_frame_files(
    ref: MediaRef, limits: ReadLimits, min_side: int | None = None
) -> tuple[np.ndarray, FrameSelector, PixelImage]:
    """Read a clip that consists of one image file for each frame.

    Without `MediaRef.fps`, the images are assumed to follow each other at `sampling.fps`, as in
    LLaMA-Factory, so that all of them are used up to `max_frames`.

    Args:
        ref: The reference, with `frame_files`.
        limits: Size limits.
        min_side: See `pixels.read_image`.

    Returns:
        float32 display values in [0, 1] of shape (F, H, W) or (F, H, W, 3), the selector, and the
        first image that was read.

    Raises:
        DataError: An image cannot be read or differs in size from the others.
    """
    select = frame_files_selector(ref)
    images: dict[int, PixelImage] = {}
    indices = select(len(ref.frame_files))
    first = indices[0]
    for i in dict.fromkeys(indices):
        image = images[i] = read_image(ref.frame_files[i], limits=limits, min_side=min_side)
        shape, expected = image.pixels.shape[:2], images[first].pixels.shape[:2]
        if i == first:
            check_clip_size(ref.file, (*shape, 3), len(indices), limits)
        if shape != expected:
            raise DataError(
                f"{ref.frame_files[i]}: this frame is {shape[1]} x {shape[0]} pixels, but "
                f"{ref.frame_files[first]} is {expected[1]} x {expected[0]}; all frames of a clip "
                "must have the same size"
            )
    in_colour = any(image.pixels.ndim == 3 for image in images.values())
    pixels = {i: _in_colour(im.pixels) if in_colour else im.pixels for i, im in images.items()}
    return np.stack([pixels[i] for i in indices]), select, images[first]


def frame_files_selector(ref: MediaRef) -> FrameSelector:
    """Return the selector for a clip that consists of image files; see `read_frame_files`."""
    sampling, fps = ref.sampling, ref.fps
    if sampling is not None and sampling.fps and not fps:
        fps, sampling = sampling.fps, dataclasses.replace(sampling, fps=None)
    return FrameSelector(ref.file, ref.frames, sampling, fps)


def _in_colour(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
