"""Media without their values: what a file's header says about its pixels.

An outline is a `Media` of the shape that `read_media_file` returns, whose values are all 0. They
are views of a single number, so that they occupy no memory, whatever their shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xraygpt.common.errors import DataError
from xraygpt.media.arrays import ARRAY_SUFFIXES
from xraygpt.media.base import Media, MediaRef, is_video_file, read_media_file
from xraygpt.media.clips import FrameSelector, frame_files_selector
from xraygpt.media.geometry import Geometry
from xraygpt.media.picture import DEFAULT_LIMITS, ReadLimits
from xraygpt.media.pixels import read_shape
from xraygpt.media.video import read_frame_size


def zeros(shape: Sequence[int]) -> Tensor:
    """Return float32 zeros of any shape that share the memory of one number."""
    return torch.zeros(()).expand(tuple(shape))


def is_constant(data: Tensor) -> bool:
    """Return whether all values are one number in memory."""
    return all(step == 0 for step, size in zip(data.stride(), data.shape, strict=True) if size > 1)


def outline(
    ref: MediaRef, *, limits: ReadLimits = DEFAULT_LIMITS, min_side: int | None = None
) -> Media:
    """Return a medium without its values, from the header of its file.

    Shape, kind, size, frame times and clip are those of `read_media_file`. Arrays are read, since
    this is fast.

    Args:
        ref: The medium.
        limits: Size limits for images and clips.
        min_side: See `pixels.read_image`.

    Raises:
        DataError: The file is missing, over a limit or of the wrong kind, or its header is damaged.
            Damage in the pixels is not found.
        InputError: The file is a video, and PyAV is not installed.
    """
    if ref.file.endswith(ARRAY_SUFFIXES):
        return read_media_file(ref, limits=limits)
    if ref.kind == "embedding" or (ref.sampling is not None and ref.kind != "clip"):
        return read_media_file(ref, limits=limits)  # raises an error that says why
    select = FrameSelector.of(ref)
    if ref.frame_files:
        shape, select = _frame_files_shape(ref, limits, min_side)
    elif is_video_file(ref):
        if ref.kind == "image":
            select.frames = (ref.index or 0, (ref.index or 0) + 1, 1)
        height, width = read_frame_size(ref.file, select, limits=limits)
        count = len(select.source.indices) if select.source else 0
        shape = (height, width, 3) if ref.kind == "image" else (count, height, width, 3)
    elif ref.kind == "image":
        shape = read_shape(ref.file, frame=ref.index, limits=limits, min_side=min_side)
    else:
        shape = read_shape(ref.file, frame=None, limits=limits, min_side=min_side, select=select)
    is_clip = ref.kind == "clip"
    height, width = shape[:2] if ref.kind == "image" else shape[1:3]
    return Media(
        zeros(shape), ref.kind, ref.view, ref.spacing,
        frame_times=select.times if is_clip else None, size=(height, width), geometry=Geometry(),
        clip=select.source if is_clip else None,
    )  # fmt: skip


def _frame_files_shape(
    ref: MediaRef, limits: ReadLimits, min_side: int | None
) -> tuple[tuple[int, ...], FrameSelector]:
    select = frame_files_selector(ref)
    indices = select(len(ref.frame_files))
    files = [ref.frame_files[i] for i in dict.fromkeys(indices)]
    shapes = [read_shape(file, limits=limits, min_side=min_side) for file in files]
    for file, shape in zip(files, shapes, strict=True):
        if shape[:2] != shapes[0][:2]:
            raise DataError(f"{file}: all frames of a clip must have the same size")
    return (len(indices), *max(shapes, key=len)), select
