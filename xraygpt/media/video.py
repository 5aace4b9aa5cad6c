"""Read frames of video files, and write mp4 files, with PyAV.

A file is read twice. The first pass lists the times of all frames from the packets, without
decoding. Once the frames to read are chosen, the second pass decodes the file and converts only
these to RGB, so that the memory needed does not depend on the length of the clip. Frames are
numbered in the order in which the decoder returns them, since the counts in containers are often
wrong. If the decoder returns other frames than the packets promised, their times are taken from a
pass that decodes all of them.
"""

from __future__ import annotations

import itertools
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from xraygpt.common.errors import DataError, InputError
from xraygpt.common.requirements import INSTALL_VLM
from xraygpt.media.picture import DEFAULT_LIMITS, ReadLimits, SelectFrames, check_clip_size
from xraygpt.media.video_containers import missing_bytes

_CUT = "copy or download it again"
_REPAIR = f"{_CUT}, or try to repair it: ffmpeg -i FILE -c copy repaired.mkv"


@dataclass(frozen=True)
class _Timeline:
    """When the frames of a file are shown, in the order in which they are decoded.

    Attributes:
        stamps: Presentation time stamp of each frame in units of `base`; None if the file has no
            usable ones, and frames follow each other at `rate`.
        count: Number of frames.
        base: Unit of the stamps in seconds.
        rate: Mean frames per second according to the file.
        stated: Duration in seconds according to the file's header; None if it is not stated.
        last: Duration of the last frame, in units of `base`; 0 if unknown.
    """

    stamps: tuple[int, ...] | None
    count: int
    base: Fraction
    rate: Fraction | None
    stated: float | None
    last: int = 0

    def times(self) -> list[float] | None:
        """Return the time of each frame in seconds after the first; None if unknown."""
        if self.stamps is not None:
            return [float((stamp - self.stamps[0]) * self.base) for stamp in self.stamps]
        return None if not self.rate else [float(i / self.rate) for i in range(self.count)]

    def duration(self) -> float | None:
        """Return the duration in seconds; that in the header only if the frames confirm it."""
        times = self.times()
        if times is None:
            return self.stated
        interval = times[-1] / (len(times) - 1) if len(times) > 1 else 0.0
        last = (
            float(self.last * self.base) or interval or (float(1 / self.rate) if self.rate else 0)
        )
        measured = times[-1] + last
        confirmed = self.stated is not None and abs(self.stated - measured) <= max(last, interval)
        return self.stated if confirmed else measured or None


def read_video(
    path: str | PathLike[str], select: SelectFrames, *, limits: ReadLimits = DEFAULT_LIMITS
) -> np.ndarray:
    """Read selected frames of a video file.

    The format (mp4, m4v, mov, avi, mkv, webm or gif) is detected from the content. A rotation or
    reflection that the file asks for is applied. Sound is ignored. Of several video streams, the
    first is read.

    Args:
        path: The file.
        select: Chooses the frames. It is called with the number of frames, their true times in
            seconds after the first, and the duration, and once more if the container was wrong.
        limits: Size limits.

    Returns:
        uint8 RGB of shape (F, H, W, 3).

    Raises:
        DataError: The file is missing, empty, damaged, cut short, over a limit, or has no video.
        InputError: PyAV is not installed.
    """
    file = _check_file(Path(path))
    import_av()
    with _errors_with_path(file):
        timeline = _read_packets(file, limits)
        indices = select(timeline.count, timeline.times(), timeline.duration())
        pixels = _decode_selected(file, timeline, indices, limits)
        if pixels is None:
            timeline = _decode_times(file, limits)
            indices = select(timeline.count, timeline.times(), timeline.duration())
            pixels = _decode_selected(file, timeline, indices, limits)
        if pixels is None:
            raise DataError(f"decoding it twice gives different frames; {_REPAIR}")
    return pixels


def read_frame_size(
    path: str | PathLike[str], select: SelectFrames, *, limits: ReadLimits = DEFAULT_LIMITS
) -> tuple[int, int]:
    """Choose frames as `read_video` does, and return their height and width in pixels.

    Only the first frame is decoded. Where a container is wrong about its frames, which `read_video`
    notices while it decodes them, `select` may have been called with a wrong number.

    Raises:
        DataError: See `read_video`.
        InputError: PyAV is not installed.
    """
    file = _check_file(Path(path))
    reformatter = import_av().video.reformatter.VideoReformatter()
    with _errors_with_path(file):
        timeline = _read_packets(file, limits)
        indices = select(timeline.count, timeline.times(), timeline.duration())
        with _open_stream(file) as (container, stream):
            for frame in container.decode(stream):
                height, width, _ = _to_rgb(frame, reformatter).shape
                check_clip_size(str(file), (height, width, 3), len(indices), limits)
                return height, width
        raise DataError(f"the video stream has no frames; {_REPAIR}")


def encode_mp4(frames: Iterable[np.ndarray], rate: Fraction, *, quality: int = 21) -> bytes:
    """Encode frames as H.264 in mp4.

    Args:
        frames: uint8 RGB of shape (H, W, 3), with even H and W.
        rate: Frames per second.
        quality: Constant rate factor of x264, 0 (lossless) to 51.

    Raises:
        InputError: PyAV is not installed.
    """
    av = import_av()
    buffer = BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality)}
        for i, pixels in enumerate(frames):
            if i == 0:  # the first frame opens the encoder, which fixes the size
                stream.height, stream.width = pixels.shape[:2]
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return buffer.getvalue()


def import_av(remedy: str = INSTALL_VLM) -> ModuleType:
    """Import PyAV.

    Args:
        remedy: How to install it.

    Raises:
        InputError: It is not installed.
    """
    try:
        import av
    except ImportError:
        raise InputError(f"video files need PyAV: {remedy}") from None
    module: ModuleType = av
    return module


# ---- checks --------------------------------------------------------------------------------------


def _check_file(file: Path) -> Path:
    try:
        status = file.stat()
        with file.open("rb"):
            pass
    except OSError as error:
        raise DataError(
            f"{file}: the video cannot be opened ({error.strerror}); check the path and its "
            "permissions"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file}: this is not a regular file; specify the path of a video file")
    if not status.st_size:
        raise DataError(f"{file}: the file is empty (0 bytes); {_CUT}")
    return file


@contextmanager
def _errors_with_path(file: Path) -> Iterator[None]:
    """Context manager that adds the path to messages, and explains errors of the decoder."""
    av = import_av()
    try:
        yield
    except DataError as error:
        text = str(error)
        raise DataError(text if text.startswith(f"{file}: ") else f"{file}: {text}") from None
    except av.error.EOFError:
        raise DataError(f"{file}: the file has no frames; {_CUT}") from None
    except (av.error.FFmpegError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{file}: this is not a video that can be decoded, or it is damaged "
            f"({type(error).__name__}); {_REPAIR}"
        ) from None


# ---- the two passes ------------------------------------------------------------------------------


@contextmanager
def _open_stream(file: Path) -> Iterator[tuple[Any, Any]]:
    """Open the first video stream that is not a cover picture.

    It is decoded in one thread: FFmpeg waits for its threads when it frees a decoder, and waits for
    ever in a process that was forked meanwhile, such as a worker of a data loader.

    Raises:
        DataError: There is none.
    """
    av = import_av()
    with av.open(str(file), metadata_errors="ignore") as container:
        cover = av.stream.Disposition.attached_pic
        for stream in container.streams.video:
            if not stream.disposition & cover:
                stream.codec_context.thread_count = 1
                yield container, stream
                return
        sound = "only sound" if container.streams.audio else "no video stream"
        advice = "choose a file with pictures" if container.streams.audio else _REPAIR
        raise DataError(f"the file has {sound}; {advice}")


def _read_packets(file: Path, limits: ReadLimits) -> _Timeline:
    """List the frames from the packets, without decoding them.

    Raises:
        DataError: The file is cut short, or has no or too many frames.
    """
    lacking = missing_bytes(file)
    if lacking:
        raise DataError(f"the file is cut short ({lacking:,} or more bytes are missing); {_REPAIR}")
    stamps: list[int | None] = []
    last = 0
    with _open_stream(file) as (container, stream):
        for packet in container.demux(stream):
            if not packet.size or packet.is_discard:  # the last is empty, and flushes the decoder
                continue
            if packet.is_corrupt:
                raise DataError(f"packet {len(stamps)} of the file is cut short; {_REPAIR}")
            stamps.append(packet.pts)
            last = packet.duration or 0
            _check_count(len(stamps), limits)
        ordered = None if None in stamps else sorted(s for s in stamps if s is not None)
        return _timeline(stream, ordered, len(stamps), last)


def _decode_times(file: Path, limits: ReadLimits) -> _Timeline:
    """List the frames by decoding all of them, which is slow but certain."""
    stamps: list[int | None] = []
    with _open_stream(file) as (container, stream):
        for frame in container.decode(stream):
            stamps.append(frame.pts)
            _check_count(len(stamps), limits)
        known = [s for s in stamps if s is not None]
        reordered = container.format.name == "avi" and stream.codec_context.has_b_frames
        # AVI numbers the frames as they are stored, which is not the order of display.
        usable = known if len(known) == len(stamps) and not reordered else None
        return _timeline(stream, usable, len(stamps))


def _timeline(stream: Any, stamps: list[int] | None, count: int, last: int = 0) -> _Timeline:
    if not count:
        raise DataError(f"the video stream has no frames; {_REPAIR}")
    if stamps is not None and any(a >= b for a, b in itertools.pairwise(stamps)):
        stamps = None
    stated = stream.duration and float(stream.duration * stream.time_base)
    rate = stream.average_rate or stream.guessed_rate
    return _Timeline(
        None if stamps is None else tuple(stamps), count, stream.time_base, rate, stated, last
    )


def _check_count(count: int, limits: ReadLimits) -> None:
    if count > limits.max_video_frames:
        raise DataError(
            f"the video has more than the limit of {limits.max_video_frames:,} frames; cut it, or "
            "raise ReadLimits.max_video_frames"
        )


def _decode_selected(
    file: Path, timeline: _Timeline, indices: Sequence[int], limits: ReadLimits
) -> np.ndarray | None:
    """Decode the selected frames to RGB, up to the last of them.

    Returns:
        uint8 (F, H, W, 3), or None if the decoded frames are not those of the timeline.
    """
    wanted = sorted(set(indices))
    place = {index: i for i, index in enumerate(wanted)}
    pixels: np.ndarray | None = None
    decoded, reformatter = 0, import_av().video.reformatter.VideoReformatter()
    with _open_stream(file) as (container, stream):
        for index, frame in enumerate(container.decode(stream)):
            if index >= timeline.count or not _is_expected(frame, timeline, index):
                return None
            if frame.is_corrupt:
                raise DataError(f"frame {index} is damaged; {_REPAIR}")
            decoded += 1
            if index not in place:
                continue
            if pixels is None:
                shape = (frame.height, frame.width, 3)
                check_clip_size(str(file), shape, len(indices), limits)
            rgb = _to_rgb(frame, reformatter)
            if pixels is None:
                pixels = np.empty((len(wanted), *rgb.shape), np.uint8)
            if rgb.shape != pixels.shape[1:]:
                raise DataError(_size_message(index, rgb.shape, pixels.shape[1:]))
            pixels[place[index]] = rgb
            if index == wanted[-1] and wanted[-1] < timeline.count - 1:
                break
    if pixels is None or decoded <= wanted[-1]:
        return None
    return pixels if len(wanted) == len(indices) else pixels[[place[i] for i in indices]]


def _is_expected(frame: Any, timeline: _Timeline, index: int) -> bool:
    """Return whether a decoded frame has the time stamp that the timeline says."""
    return timeline.stamps is None or frame.pts == timeline.stamps[index]


def _size_message(index: int, shape: tuple[int, ...], first: tuple[int, ...]) -> str:
    return (
        f"the size changes from {first[1]} x {first[0]} to {shape[1]} x {shape[0]} pixels at frame "
        f"{index}; cut the video there"
    )


# ---- pixels --------------------------------------------------------------------------------------


def _to_rgb(frame: Any, reformatter: Any) -> np.ndarray:
    """Return uint8 (H, W, 3), turned as the file asks for; in one thread, see `_open_stream`."""
    rgb: np.ndarray = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    return _apply_display_matrix(rgb, _display_matrix(frame))


def _display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    """Return the signs (a, b, c, d) of the map (x, y) -> (a x + c y, b x + d y) for display."""
    if not frame.rotation and not len(frame.side_data):
        return None
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])  # 16.16 fixed point, row by row
    signs = [int(np.sign(round(v / 65536))) for v in (a, b, c, d)]
    return signs[0], signs[1], signs[2], signs[3]


def _apply_display_matrix(rgb: np.ndarray, matrix: tuple[int, int, int, int] | None) -> np.ndarray:
    """Turn by quarters and reflect; other angles are left as they are."""
    if matrix is None:
        return rgb
    a, b, c, d = matrix
    if abs(b) == 1 and abs(c) == 1 and not a and not d:  # x becomes y
        turned = rgb.swapaxes(0, 1)
        rows, columns = b, c
    elif abs(a) == 1 and abs(d) == 1 and not b and not c:
        turned, rows, columns = rgb, d, a
    else:
        return rgb
    return turned[::rows, ::columns]
