"""Decoded images, read limits and the checks shared by the PNG, JPEG and DICOM readers."""

from __future__ import annotations

import logging
import math
import re
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from xraygpt.common.errors import ImageError

MetaValue = str | int | tuple[float, ...]
Window = tuple[float, float]
SelectFrames = Callable[[int, Sequence[float] | None, float | None], Sequence[int]]
"""(number of frames in the file, their times and the duration in s, or None) -> frames to read."""

# `warnings.catch_warnings` swaps process-wide state, so a lock is needed for thread safety.
_WARNINGS_LOCK = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """Size limits for `read_image`, checked before the pixels are decoded."""

    max_file_bytes: int = 512 * 2**20
    """Largest file size, and largest inflated size of a deflated DICOM file, in bytes."""

    max_pixels: int = 100_000_000
    """Largest number of samples to decode in one call: rows x columns x samples per pixel x
    requested frames. For PNG and JPEG, Pillow's limit on rows x columns
    (`PIL.Image.MAX_IMAGE_PIXELS`) also applies."""

    max_clip_samples: int = 400_000_000
    """Largest number of samples to keep of a video or a list of images: rows x columns x 3 x frames
    read. They take one byte each, or four as float32."""

    max_video_frames: int = 1_000_000
    """Largest number of frames in a video file, all of which may have to be decoded: nine hours at
    30 frames per second."""


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class PixelImage:
    """A decoded image as display values."""

    pixels: np.ndarray
    """float32 in [0, 1], of shape (H, W) for grey, (H, W, 3) for RGB, or (F, H, W[, 3]) for all
    frames."""

    bits: int
    """Bits per sample before scaling to [0, 1]: DICOM Bits Stored, or Pillow's bit depth."""

    source_format: str
    """`"DICOM"`, `"PNG"` or `"JPEG"`."""

    meta: Mapping[str, MetaValue]
    """Facts about the image, none about the patient. Always present: `rows`, `columns`, `frames`
    (in the file) and `voi`, the step that set black and white: `argument` (the caller's window),
    `lut` or `window` (from the file), `range` (the frame's own values, if the file has neither),
    or `identity` (colour, PNG, JPEG). Grey images also have `window`, the displayed (center, width)
    (for `lut`, a window that spans the frame's values), and `values`, the lowest and the highest
    value in the frame, both in the units of `read_image(window=…)`. A JPEG that was decoded at a
    fraction of its size has `file_size` (height, width), the size in the file. DICOM files also
    have `photometric` and `transfer_syntax` and, if known, `modality`, `view_position`,
    `laterality`, `body_part`, `presentation_intent`, `burned_in` (YES or NO), `pixel_spacing` and
    `imager_pixel_spacing` (row, column; mm), `slice_spacing` (mm) and `frame_times` (seconds after
    the first frame)."""


def check_size(rows: int, columns: int, samples: int, frames: int, limits: ReadLimits) -> None:
    """Check an image against the pixel limit, using Python integers, which cannot overflow.

    Raises:
        ImageError: The product of the sizes is over `limits.max_pixels`.
    """
    if rows * columns * samples * frames > limits.max_pixels:
        raise ImageError(
            f"the header declares {columns} x {rows} pixels of {samples} sample(s) in {frames} "
            f"frame(s), over the limit of {limits.max_pixels:,}; downsample it, read one frame, "
            "or raise ReadLimits.max_pixels"
        )


def check_clip_size(file: str, shape: tuple[int, ...], frames: int, limits: ReadLimits) -> None:
    """Check the frames to keep of a clip against the limit.

    Args:
        file: The file, for the message.
        shape: (H, W, samples per pixel) of a frame.
        frames: Number of frames to keep.
        limits: The limits.

    Raises:
        ImageError: The product of the sizes is over `limits.max_clip_samples`.
    """
    if math.prod(shape) * frames > limits.max_clip_samples:
        raise ImageError(
            f"{file}: {frames} frame(s) of {shape[1]} x {shape[0]} pixels have more than the limit "
            f"of {limits.max_clip_samples:,} values; read fewer (sampling: num_frames or "
            "max_frames), make the video smaller, or raise ReadLimits.max_clip_samples"
        )


def inflate(data: bytes, limits: ReadLimits) -> bytes:
    """Inflate deflated data (DICOM PS3.5 A.5), up to the file size limit to guard against bombs.

    Raises:
        ImageError: The result is over `limits.max_file_bytes`, or the data are cut short.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, limits.max_file_bytes + 1)
    if len(inflated) > limits.max_file_bytes:
        raise ImageError(
            f"the file inflates to more than the limit of {limits.max_file_bytes:,} bytes; "
            "raise ReadLimits.max_file_bytes if this size is expected"
        )
    if not inflater.eof:
        raise ImageError("the file is a deflated DICOM that is cut short; copy or export it again")
    return inflated


def codestream_sizes(frame: bytes) -> set[tuple[int, int, int]]:
    """Return every (rows, columns, samples) that a JPEG, JPEG-LS or JPEG 2000 frame declares."""
    # JPEG 2000: SOC then SIZ (ITU-T T.800 A.5.1), possibly in a JP2 wrapper. All are collected.
    sizes = set()
    for match in re.finditer(rb"\xff\x4f\xff\x51\x00[\x29-\xff].{34}", frame, re.DOTALL):
        x1, y1, x0, y0 = np.frombuffer(match[0], ">u4", 4, 8).tolist()
        sizes.add((y1 - y0, x1 - x0, int.from_bytes(frame[match.end() :][:2], "big")))
    # JPEG, JPEG-LS: segments up to the frame header (ITU-T T.81 B.2.2, T.87 C.2.2).
    pos = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while pos + 10 <= len(frame) and frame[pos] == 0xFF:
        marker = frame[pos + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = np.frombuffer(frame, ">u2", 2, pos + 5).tolist()
            return {*sizes, (rows, columns, frame[pos + 9])}
        is_fill = marker == 0xFF  # any number of fill bytes may precede a marker
        pos += 1 if is_fill else 2 + int.from_bytes(frame[pos + 2 : pos + 4], "big")
    return sizes


@contextmanager
def suppress_library_output(*loggers: str) -> Iterator[None]:
    """Context manager that silences libraries, whose warnings and logs may quote the file.

    Only one thread at a time can be inside. Pillow's decompression-bomb warning becomes an error.

    Args:
        loggers: Names of the loggers whose records must not reach the application's handlers.
    """
    from PIL import Image

    muted = [logging.getLogger(name) for name in loggers]
    with _WARNINGS_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = [logger.propagate for logger in muted]
        try:
            for logger in muted:
                logger.propagate = False
            yield
        finally:
            for logger, propagate in zip(muted, before, strict=True):
                logger.propagate = propagate
