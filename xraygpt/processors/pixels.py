"""Files on disk to display-ready pixels: one reader for training, evaluation and the demo.

`read_image` looks at a file's first bytes, never trusts its name, and answers with a `PixelImage`:
float32 display values in [0, 1], 0 black, 1 white, so that bone is bright and air is dark whatever
the file's own convention was. PNG and JPEG are read here with Pillow, DICOM in `dicom.py` with
pydicom, which is imported only when a DICOM turns up.

Every size is checked before anything is decoded (`ReadLimits`). Every failure is an `ImageError`
that names the file, what is wrong with it and what to do; a picture is never repaired, cut or
replaced in silence. `grey.py` has the arithmetic.
"""

from __future__ import annotations

import logging
import math
import re
import stat
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.processors.grey import window_values

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

MetaValue = str | int | tuple[float, ...]
Window = tuple[float, float]

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_HEAD_BYTES = 132  # preamble (128) and prefix (4) of a DICOM file, PS3.10 7.1
# `warnings.catch_warnings` swaps process-wide state and is not safe in threads; this makes it so.
_SILENCE = threading.RLock()


@dataclass(frozen=True, kw_only=True)
class ReadLimits:
    """What `read_image` accepts; each is checked before the pixels are decoded."""

    max_file_bytes: int = 512 * 2**20
    """Largest file, and largest inflated size of a deflated DICOM, in bytes."""

    max_pixels: int = 100_000_000
    """Most samples decoded in one call: rows x columns x samples per pixel x frames asked for. For
    PNG and JPEG Pillow's own limit on rows x columns (`PIL.Image.MAX_IMAGE_PIXELS`) holds too."""


DEFAULT_LIMITS = ReadLimits()


@dataclass(frozen=True)
class PixelImage:
    """A decoded image, ready to show or to resize."""

    pixels: np.ndarray
    """float32 in [0, 1]: (H, W) grey or (H, W, 3) RGB; (F, H, W[, 3]) for `frame=None`."""

    bits: int
    """Bits per sample before scaling to [0, 1]: DICOM Bits Stored, or as Pillow decodes it."""

    source_format: str
    """`"DICOM"`, `"PNG"` or `"JPEG"`."""

    meta: Mapping[str, MetaValue]
    """What the file says of the picture and not of the patient. Always: `rows`, `columns`, `frames`
    (in the file) and `voi`, the step that chose black and white: `argument` (the caller's window),
    `lut` or `window` (the file's), `range` (it names none, so its own values), or `identity`
    (colour, PNG, JPEG). Grey images have `window`, the (center, width) shown (for `lut` one that
    spans its values), and `values`, the lowest and highest value of the frame, both in the units
    of `read_image(window=…)`. DICOM also has `photometric` and `transfer_syntax`, and where given
    `modality`, `view_position`, `laterality`, `body_part`, `pixel_spacing` and
    `imager_pixel_spacing` (row, column; mm)."""


def read_image(
    path: str | PathLike[str],
    *,
    frame: int | None = 0,
    window: Window | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    at_least: int | None = None,
) -> PixelImage:
    """Read a PNG, JPEG or DICOM file into display values.

    Args:
        path: The file. Its content decides the format, so a DICOM named `.png` is read as a DICOM.
        frame: Index of the frame, from 0. None reads all frames and puts a frame axis first, also
            when there is only one.
        window: (center, width) to use in place of the window or table of a grey file. Units: for
            DICOM modality values (after the modality LUT), for PNG and JPEG stored values (0-255 or
            0-65535).
        limits: Size limits.
        at_least: A JPEG may be decoded at a half, a quarter or an eighth of its size as long as no
            side falls below so many pixels. Pixels are then means of its own, nearly.

    Returns:
        Display values in [0, 1], bone bright.

    Raises:
        ImageError: The file is missing, empty, too large, truncated, corrupt, of another format or
            not supported; or `frame` or `window` does not fit it.
    """
    with _failures_named(path):
        file, head = _inspect(path, limits)
        if frame is not None and frame < 0:
            raise ImageError(f"frame {frame} was asked for; frames count from 0")
        if window and not (math.isfinite(window[0]) and 0 < window[1] < math.inf):
            raise ImageError(f"window {window} is not (center, width) with a positive width")
        if _is_raster(head):
            return _read_raster(file, frame, window, limits, at_least)
        from xraygpt.processors.dicom import read_dicom

        return read_dicom(file, frame=frame, window=window, limits=limits)


def frame_count(path: str | PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS) -> int:
    """Number of frames a file says it holds, from its header alone; 1 for PNG and JPEG.

    Args:
        path: The file.
        limits: Size limits; only those in bytes are checked.

    Returns:
        1 or more.

    Raises:
        ImageError: The file is not a readable image.
    """
    with _failures_named(path):
        file, head = _inspect(path, limits)
        if _is_raster(head):
            return 1
        from xraygpt.processors.dicom import dicom_frame_count

        return dicom_frame_count(file, limits=limits)


# ---- checks and guards -------------------------------------------------------------------------


def check_size(rows: int, columns: int, samples: int, frames: int, limits: ReadLimits) -> None:
    """Refuse a picture over the pixel limit; Python integers, so the product cannot overflow.

    Raises:
        ImageError: The product is over `limits.max_pixels`.
    """
    if rows * columns * samples * frames > limits.max_pixels:
        raise ImageError(
            f"its header declares {columns} x {rows} pixels of {samples} sample(s) in {frames} "
            f"frame(s), over the limit of {limits.max_pixels:,}; downsample it, ask for one frame, "
            "or raise ReadLimits.max_pixels"
        )


def inflate(data: bytes, limits: ReadLimits) -> bytes:
    """Undo deflate (DICOM PS3.5 A.5) up to the file size limit: 1 kB can hold 1 MB of zeros.

    Raises:
        ImageError: The result is over `limits.max_file_bytes`, or the data end too early.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data, limits.max_file_bytes + 1)
    if len(inflated) > limits.max_file_bytes:
        raise ImageError(
            f"inflates to more than the limit of {limits.max_file_bytes:,} bytes; "
            "raise ReadLimits.max_file_bytes if that is right"
        )
    if not inflater.eof:
        raise ImageError("is a deflated DICOM that is cut short; copy or export it again")
    return inflated


def codestream_sizes(frame: bytes) -> set[tuple[int, int, int]]:
    """(rows, columns, samples) that a JPEG, JPEG-LS or JPEG 2000 frame states; empty if none."""
    # JPEG 2000: SOC then SIZ (ITU-T T.800 A.5.1), perhaps in a JP2 wrapper. Every one counts.
    sizes = set()
    for match in re.finditer(rb"\xff\x4f\xff\x51\x00[\x29-\xff].{34}", frame, re.DOTALL):
        x1, y1, x0, y0 = np.frombuffer(match[0], ">u4", 4, 8).tolist()
        sizes.add((y1 - y0, x1 - x0, int.from_bytes(frame[match.end() :][:2], "big")))
    # JPEG, JPEG-LS: segments up to the frame header (ITU-T T.81 B.2.2, T.87 C.2.2).
    place = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while place + 10 <= len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            rows, columns = np.frombuffer(frame, ">u2", 2, place + 5).tolist()
            return {*sizes, (rows, columns, frame[place + 9])}
        fill = marker == 0xFF  # any number of fill bytes may stand before a marker
        place += 1 if fill else 2 + int.from_bytes(frame[place + 2 : place + 4], "big")
    return sizes


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Keep libraries' warnings and log lines in: they may quote values from the file.

    One thread at a time, and all as before on leaving. Pillow's decompression-bomb warning becomes
    an error.

    Args:
        loggers: Loggers to cut off from the application's handlers meanwhile.
    """
    from PIL import Image

    cut = [logging.getLogger(name) for name in loggers]
    with _SILENCE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before = [logger.propagate for logger in cut]
        try:
            for logger in cut:
                logger.propagate = False
            yield
        finally:
            for logger, propagate in zip(cut, before, strict=True):
                logger.propagate = propagate


@contextmanager
def _failures_named(path: str | PathLike[str]) -> Iterator[None]:
    """Turn whatever goes wrong into an `ImageError` that begins with the file.

    Of a foreign exception only the type is told: its text can quote the file's content.
    """
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:
        raise ImageError(
            f"{path}: cannot be decoded ({type(error).__name__}), so it is corrupt or cut short; "
            "copy or export it again"
        ) from None


def _inspect(path: str | PathLike[str], limits: ReadLimits) -> tuple[Path, bytes]:
    """The file and its first bytes, after the checks that need no decoding."""
    file = Path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("is not a regular file; give the path of an image file")
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise ImageError("no such file; check the path and the image root") from None
    except OSError as error:
        raise ImageError(f"cannot be opened ({error.strerror}); check its permissions") from None
    if status.st_size > limits.max_file_bytes:
        raise ImageError(
            f"has {status.st_size:,} bytes, over the limit of {limits.max_file_bytes:,}; "
            "raise ReadLimits.max_file_bytes if that is right"
        )
    if not head:
        raise ImageError("is empty (0 bytes); copy or download it again")
    dicom = head[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom")
    if not (dicom or _is_raster(head) or _starts_like_dataset(head, status.st_size)):
        raise ImageError("is not a PNG, JPEG or DICOM file; convert it to one of these")
    return file, head


def _is_raster(head: bytes) -> bool:
    """PNG or JPEG by signature; a DICOM's free preamble may hold one, and it stays a DICOM."""
    return head.startswith((_PNG, _JPEG)) and head[128:] != b"DICM"


def _starts_like_dataset(head: bytes, size: int) -> bool:
    """Whether a file without preamble may begin with a DICOM data element (PS3.5 7.1).

    The first group is 0002 (file meta) or 0008 (identification); then comes a value representation
    of two capitals, or an implicit-VR length that fits into the file.
    """
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] == b"\x00\x08":  # big endian, which is always explicit (PS3.5 A.3)
        return explicit
    fits = len(head) >= 8 and 0 < int.from_bytes(head[4:8], "little") < size
    return head[:2] in (b"\x02\x00", b"\x08\x00") and (explicit or fits)


# ---- PNG and JPEG ------------------------------------------------------------------------------


def _read_raster(
    file: Path, frame: int | None, window: Window | None, limits: ReadLimits, at_least: int | None
) -> PixelImage:
    """PNG or JPEG: stored values 0..2**bits - 1 to display values in [0, 1]."""
    if frame:
        raise ImageError(f"frame {frame} was asked for, but a PNG or JPEG has only frame 0")
    image, source_format = _load_raster(file, limits, at_least)
    display, bits = _raster_values(image)
    ends = (float(display.min()), float(display.max()))
    if window:
        if display.ndim == 3:
            raise ImageError("is in colour, and a window applies to grey images; leave it out")
        stored = np.rint(display.astype(np.float64) * (2**bits - 1))
        display = window_values(stored, *window).astype(np.float32)
    meta: dict[str, MetaValue] = {"rows": display.shape[0], "columns": display.shape[1]}
    meta |= {"frames": 1, "voi": "argument" if window else "identity"}
    if display.ndim == 2:
        full = 2**bits - 1
        meta["window"] = window or ((full + 1) / 2, full + 1)
        meta["values"] = tuple(round(end * full) * 1.0 for end in ends)
    return PixelImage(display[None] if frame is None else display, bits, source_format, meta)


def _load_raster(file: Path, limits: ReadLimits, at_least: int | None) -> tuple[PillowImage, str]:
    """Decode with Pillow and turn upright by the EXIF orientation."""
    from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "is not read while PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, which passes off half an "
            "image as a whole one; find who set it and set it to False"
        )
    try:
        with quiet("PIL"):
            image = Image.open(file, formats=["PNG", "JPEG"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"its header declares more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels; "
            "downsample it"
        ) from None
    except UnidentifiedImageError:
        raise ImageError("has a corrupt PNG or JPEG header; copy or export it again") from None
    with image:
        check_size(image.height, image.width, len(image.getbands()), 1, limits)
        source_format = "PNG" if image.format == "PNG" else "JPEG"  # a JPEG may call itself MPO
        if at_least:
            image.draft(None, (at_least, at_least))  # does nothing to a PNG
        image.load()
        try:
            with quiet("PIL"):
                return ImageOps.exif_transpose(image), source_format
        except Exception:
            # The pixels are sound; an EXIF block that cannot be parsed carries no orientation.
            return image.copy(), source_format


def _raster_values(image: PillowImage) -> tuple[np.ndarray, int]:
    """Display values, (H, W) or (H, W, 3) float32 in [0, 1], and bits per sample.

    The divisor is the format's full scale, never the image's own maximum, so that equal stored
    values stay equal across files. Transparency is laid on black.
    """
    if image.mode.startswith("I"):  # 16-bit grey PNG: `I;16`, or `I` from an older Pillow
        stored = np.asarray(image)
        clear = stored == image.info.get("transparency", -1)
        return np.where(clear, 0, stored / np.float32(65535)).astype(np.float32), 16
    grey = image.mode in ("1", "L", "LA")
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if grey else "RGB")) / np.float32(255)
        return values, 1 if image.mode == "1" else 8
    values = np.asarray(image.convert("LA" if grey else "RGBA")) / np.float32(255)
    blended = values[..., :-1] * values[..., -1:]
    return blended[..., 0] if grey else blended, 8
