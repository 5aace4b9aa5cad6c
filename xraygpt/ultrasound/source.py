"""Find the files of ultrasound studies in a folder, and read them whatever their format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xraygpt.cardiac.nifti_intake import read_nifti
from xraygpt.common.errors import DataError, InputError
from xraygpt.media.clips import FrameSelector
from xraygpt.media.picture import ReadLimits
from xraygpt.media.video import read_video
from xraygpt.media.video_containers import has_video_suffix, is_video
from xraygpt.ultrasound.clip import Clip, NotUltrasound
from xraygpt.ultrasound.dicom_clip import peek_identity, read_dicom_clip
from xraygpt.ultrasound.identity import Identity

LIMITS = ReadLimits(
    max_file_bytes=4 * 2**30, max_pixels=1_000_000_000, max_clip_samples=1_000_000_000
)
_NIFTI = (".nii", ".nii.gz")
_LABELS = 16  # a NIfTI file with at most this many values, all of them whole, is a label map
_LOW_VALUES = 32  # a file whose values are all below this may be one


def find_files(source: Path) -> list[Path]:
    """Return all files of a folder tree in order, or the file itself; not hidden ones.

    Raises:
        InputError: There is no file.
    """
    if source.is_file():
        return [source]
    files = sorted(p for p in source.rglob("*") if p.is_file() and not _is_hidden(p, source))
    if not files:
        raise InputError(f"{source}: the folder has no files")
    return files


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def read_clip(file: Path, limits: ReadLimits = LIMITS) -> Clip:
    """Read a DICOM, video or NIfTI file, which is recognised by its content.

    Raises:
        DataError: It is damaged, cut short, or over a limit. The message has the reason, but
            neither the path nor anything that the file contains.
        NotUltrasound: It is none of these, or no picture of ultrasound.
        InputError: A package that reads this format is not installed.
    """
    try:
        return _read(file, limits)
    except DataError as error:
        kind = NotUltrasound if isinstance(error, NotUltrasound) else DataError
        raise kind(_without_name(str(error), file)) from None
    except InputError:
        raise
    except OSError as error:
        raise DataError(f"the file cannot be opened ({error.strerror})") from None
    except MemoryError:
        raise DataError("there is not enough memory for this file; cut it") from None
    except Exception as error:  # damaged files fail in many ways, whose messages may quote them
        raise DataError(f"the file is damaged or cut short ({type(error).__name__})") from None


def _read(file: Path, limits: ReadLimits) -> Clip:
    with file.open("rb") as stream:
        head = stream.read(352)
    if not head:
        raise DataError("the file is empty (0 bytes)")
    if file.stat().st_size > limits.max_file_bytes:
        raise DataError(f"the file has over {limits.max_file_bytes:,} bytes; cut it")
    if is_video(file):
        return _read_video(file, limits)
    if _is_dicom(head, file):
        return read_dicom_clip(file, limits)
    if file.name.lower().endswith(_NIFTI):
        return _read_nifti(file)
    if has_video_suffix(file.name):
        raise DataError("this is no video, whatever its name says; copy or download it again")
    raise NotUltrasound("this is no DICOM, video or NIfTI file; leave it out")


def read_identity_of(file: Path) -> Identity:
    """Read what a DICOM header says about the patient; nothing for other and damaged files."""
    try:
        with file.open("rb") as stream:
            head = stream.read(132)
        return peek_identity(file, LIMITS) if _is_dicom(head, file) else Identity()
    except OSError:
        return Identity()


def _is_dicom(head: bytes, file: Path) -> bool:
    """Return whether a file is DICOM: by its prefix, or its first element if it has no preamble."""
    if head[128:132] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom"):
        return True
    if len(head) < 8 or head[:2] not in (b"\x02\x00", b"\x08\x00"):
        return False
    length = struct.unpack("<I", head[4:8])[0]
    return (head[4:6].isalpha() and head[4:6].isupper()) or 0 < length < file.stat().st_size


def _without_name(message: str, file: Path) -> str:
    """Remove the path from a message, since names of files may be names of patients."""
    for name in (str(file), file.name):
        message = message.replace(f"{name}: ", "").replace(name, "the file")
    return message


# ---- videos and NIfTI ----------------------------------------------------------------------------


def _read_video(file: Path, limits: ReadLimits) -> Clip:
    select = FrameSelector(str(file))
    pixels = read_video(file, select, limits=limits)
    if _is_grey(pixels):
        pixels = np.ascontiguousarray(pixels[..., 0])
    known = select.times is not None and len(pixels) > 1
    warnings = () if known or len(pixels) == 1 else ("the file does not say when frames are shown",)
    return Clip(
        pixels,
        "video",
        times=select.times if known else None,
        times_from="time stamps" if known else "",
        warnings=warnings,
    )


def _is_grey(pixels: np.ndarray) -> bool:
    frames: Iterator[np.ndarray] = iter(pixels)
    return all(bool((f == f[..., :1]).all()) for f in frames)


def _read_nifti(file: Path) -> Clip:
    """Read columns × rows × frames, or columns × rows × 1 × frames."""
    volume = read_nifti(file)
    phases, slices, rows, columns = volume.shape
    if phases > 1 and slices > 1:
        raise DataError(
            f"it has {slices} slices at {phases} times, but only single planes are read; save each "
            "plane as columns × rows × frames"
        )
    values = np.concatenate([volume.read(phase) for phase in range(phases)]).astype(np.float32)
    if volume.is_reversed:  # the order of slices in space, which frames do not have
        values = values[::-1]
    if not np.isfinite(values).all():
        raise DataError("it has pixels that are not numbers (NaN or infinite); replace them by 0")
    warnings = [w for w in volume.warnings if "mL" not in w and "heart rate" not in w]
    pixels = _grey_levels(values.reshape(-1, rows, columns), warnings)
    times = None if volume.times is None else tuple(float(t) for t in volume.times)
    if slices > 1:
        times = None
        warnings.append("the third dimension is read as frames, at unknown times")
    return Clip(
        pixels,
        "NIfTI",
        times=times,
        times_from="" if times is None else "NIfTI header",
        spacing_mm=volume.grid.spacing,
        spacing_from="NIfTI header" if volume.grid.spacing else "",
        warnings=tuple(warnings),
    )


def _grey_levels(values: np.ndarray, warnings: list[str]) -> np.ndarray:
    """Map values to uint8: those of 0..255 as they are, others by the range of the whole file.

    Values that are all in 0..1 are stretched, unless they are whole numbers.

    Raises:
        NotUltrasound: They are labels, not grey levels.
    """
    low, high = float(values.min()), float(values.max())
    is_whole = bool((values == np.rint(values)).all())
    if high < _LOW_VALUES and is_whole:
        found = np.unique(values[:: max(1, len(values) // 4)])
        if len(found) <= _LABELS:
            raise NotUltrasound(f"it has only {len(found)} values: a label map, no picture")
    if low < 0 or high > 255 or (high <= 1 and not is_whole):
        warnings.append("the grey levels are not in 0 to 255, and were stretched to this range")
        values = (values - low) * (255 / ((high - low) or 1.0))
    return np.rint(values).astype(np.uint8)
