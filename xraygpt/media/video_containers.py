"""Recognise video files by their first bytes, and notice files that were cut short."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".gif")
HEAD_BYTES = 132
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"  # RFC 8794, RFC 9559
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")  # QuickTime File Format


def has_video_suffix(file: str) -> bool:
    """Return whether a file name ends like that of a video, in any case."""
    return file[-5:].lower().endswith(VIDEO_SUFFIXES)


def is_video(path: Path) -> bool:
    """Return whether a file is a video by its content; False if it cannot be opened."""
    try:
        with path.open("rb") as stream:
            return _container(stream.read(HEAD_BYTES)) is not None
    except OSError:
        return False


def missing_bytes(path: Path) -> int:
    """Return how many bytes a video file lacks at its end, according to its own structure.

    Returns:
        At least this number of bytes is missing; 0 if the file seems to be complete.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        container = _container(stream.read(HEAD_BYTES))
        if container == "mp4":
            end = _end_of_boxes(stream, size)
        elif container == "avi":
            stream.seek(4)
            end = int.from_bytes(stream.read(4), "little") + 8
        elif container == "matroska":
            end = _end_of_segment(stream, size)
        elif container == "gif":  # ends with a trailer, possibly followed by zeros
            stream.seek(max(0, size - 4096))
            end = size if stream.read().rstrip(b"\0").endswith(b"\x3b") else size + 1
        else:
            end = size
    return max(0, end - size)


def _container(head: bytes) -> str | None:
    if head[128:] == b"DICM":  # a DICOM preamble may contain any signature
        return None
    if head[4:8] in _BOXES:
        return "mp4"
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return "avi"
    if head.startswith(_EBML):
        return "matroska"
    return "gif" if head.startswith((b"GIF87a", b"GIF89a")) else None


def _end_of_boxes(stream: BinaryIO, size: int) -> int:
    """Return where the last box at the top level ends (ISO/IEC 14496-12, 4.2)."""
    start = 0
    while start + 8 <= size:
        stream.seek(start)
        head = stream.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:  # the size is in the following 64 bits
            length = int.from_bytes(head[8:16], "big")
        if length == 0:  # up to the end of the file
            return size
        if length < 8:
            return start  # not a box, so nothing is known about the rest
        start += length
    return start


def _end_of_segment(stream: BinaryIO, size: int) -> int:
    """Return where the segment of a Matroska file ends; `size` if the file does not say."""
    stream.seek(4)
    header, _ = _read_length(stream)
    if header is None:
        return size
    stream.seek(header, 1)
    if stream.read(4) != _SEGMENT:
        return size
    length, start = _read_length(stream)
    return size if length is None else start + length


def _read_length(stream: BinaryIO) -> tuple[int | None, int]:
    """Read a variable-size integer (RFC 8794, section 4); None if it means "unknown".

    Returns:
        The number, and the position after it.
    """
    first = stream.read(1)
    if not first or not first[0]:
        return None, stream.tell()
    extra = 8 - first[0].bit_length()
    value = first[0] & ((1 << (7 - extra)) - 1)
    for byte in stream.read(extra):
        value = value << 8 | byte
    unknown = value == (1 << (7 * (extra + 1))) - 1
    return None if unknown else value, stream.tell()
