"""Uploaded files of a study: single files and zip files, which are unpacked within limits."""

from __future__ import annotations

import errno
import lzma
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import IO

from xraygpt.common.errors import InputError

_CHUNK = 2**20  # bytes
_MAX_NAME = 120  # characters of a file or folder name
_MAX_DEPTH = 16  # folders within folders
_UNSAFE = re.compile(r"[\x00-\x1f\x7f/\\:]")
_TAIL = 66_000  # bytes at the end of a zip file that have the size of its table of contents
_ENTRY = 400  # bytes in a table of contents for each file, at most


@dataclass(frozen=True)
class StudyLimits:
    """Limits on the files of one study.

    Attributes:
        max_files: Number of files, also those in a zip file.
        max_bytes: Size of all files, unpacked.
        max_upload: Size of one uploaded file in bytes.
    """

    max_files: int = 20_000
    max_bytes: int = 4 * 2**30
    max_upload: int = 2**30


@dataclass(frozen=True)
class Added:
    """What was added to a study.

    Attributes:
        files: Number of files.
        size: Their size in bytes.
    """

    files: int
    size: int


def clean_name(name: str) -> str:
    """Return a file name that is safe on every system, with its extension."""
    cleaned = _UNSAFE.sub("_", name).lstrip(". ") or "file"
    return cleaned if len(cleaned) <= _MAX_NAME else cleaned[-_MAX_NAME:].lstrip(". ")


def free_path(folder: Path, name: str) -> Path:
    """Return a path in a folder that does not exist yet, with a number if the name is taken."""
    path, number = folder / name, 2
    while path.exists():
        path = folder / f"{number}-{name}"
        number += 1
    return path


def is_zip(file: Path) -> bool:
    """Check whether a file is, or claims to be, a zip file."""
    with file.open("rb") as stream:
        return stream.read(2) == b"PK" or file.suffix.lower() == ".zip"


def unpack(file: Path, folder: Path, limits: StudyLimits) -> Added:
    """Unpack a zip file into a folder; nothing is added if it is refused.

    Sizes are counted while unpacking, whatever the file declares. Hidden files are left out.

    Args:
        file: The zip file.
        folder: Folder to add its content to.
        limits: Numbers and sizes that are left for it.

    Raises:
        InputError: It is damaged, encrypted or too large, or has unsafe names; one sentence.
    """
    partial = Path(mkdtemp(dir=folder.parent, prefix="unpack-"))
    try:
        added = _unpack(file, partial, limits)
        for path in sorted(partial.iterdir()):
            path.rename(free_path(folder, path.name))
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError):
        raise InputError("is damaged or not a zip file; compress the folder again") from None
    except NotImplementedError:
        raise InputError(
            "uses a compression that cannot be read; compress the folder as an ordinary zip file"
        ) from None
    except OSError as error:
        reason = "the server's disk is full" if error.errno == errno.ENOSPC else "a name is invalid"
        raise InputError(f"cannot be unpacked: {reason}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return added


def _unpack(file: Path, folder: Path, limits: StudyLimits) -> Added:
    with file.open("rb") as stream:
        if _contents_size(stream) > limits.max_files * _ENTRY:
            raise _too_many(limits)
        with zipfile.ZipFile(stream) as archive:
            entries = list(_entries(archive))
            if not entries:
                raise InputError("contains no files; compress the folder with the images")
            if len(entries) > limits.max_files:
                raise _too_many(limits)
            if sum(entry.file_size for entry, _ in entries) > limits.max_bytes:
                raise _too_large(limits)
            left = limits.max_bytes
            for entry, target in entries:
                path = folder.joinpath(*target.parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.exists():
                    path = free_path(path.parent, path.name)
                with archive.open(entry) as source, path.open("xb") as out:
                    left -= _copy(source, out, left, limits)
    return Added(len(entries), limits.max_bytes - left)


def _entries(archive: zipfile.ZipFile) -> Iterator[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the files of a zip file with their relative paths.

    Raises:
        InputError: One is encrypted, is a link or no file, or would lie outside of the folder.
    """
    for entry in archive.infolist():
        name = entry.filename.replace("\\", "/")
        parts = PurePosixPath(name).parts
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if name.startswith("/") or ".." in parts or re.match(r"[A-Za-z]:", name):
            raise InputError("has a file that would be written outside of its folder; refused")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError("contains a link; compress the files themselves")
        if len(parts) > _MAX_DEPTH:
            raise InputError(f"has more than {_MAX_DEPTH} folders within folders")
        hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
        if entry.is_dir() or not parts or hidden:
            continue
        if entry.flag_bits & 1:
            raise InputError("is encrypted; compress the folder without a password")
        yield entry, PurePosixPath(*map(clean_name, parts))


def _copy(source: IO[bytes], out: IO[bytes], left: int, limits: StudyLimits) -> int:
    """Copy a file and return its size.

    Raises:
        InputError: It has more than `left` bytes.
    """
    size = 0
    while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > left:
            raise _too_large(limits)
        out.write(chunk)
    return size


def _contents_size(stream: IO[bytes]) -> int:
    """Return the size in bytes of a zip file's table of contents, before it is read."""
    end = stream.seek(0, 2)
    stream.seek(max(0, end - _TAIL))
    tail = stream.read()
    stream.seek(0)
    sizes = [0]
    for mark, offset, length in ((b"PK\x05\x06", 12, 4), (b"PK\x06\x06", 40, 8)):
        at = tail.rfind(mark)
        if at >= 0:
            sizes.append(int.from_bytes(tail[at + offset : at + offset + length], "little"))
    return max(size for size in sizes if size != 0xFFFFFFFF)  # 64-bit size follows


def _too_many(limits: StudyLimits) -> InputError:
    return InputError(f"has more than {limits.max_files:,} files; upload one study at a time")


def _too_large(limits: StudyLimits) -> InputError:
    size = limits.max_bytes / 2**30
    return InputError(f"has more than {size:.2g} GB unpacked; upload one study at a time")
