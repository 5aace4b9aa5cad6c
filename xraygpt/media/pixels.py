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

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.grey import window_values
from xraygpt.media.picture import (
    DEFAULT_LIMITS,
    MetaValue,
    PixelImage,
    ReadLimits,
    Window,
    check_size,
    quiet,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_HEAD_BYTES = 132  # preamble (128) and prefix (4) of a DICOM file, PS3.10 7.1


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
        from xraygpt.media.dicom import read_dicom

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
        from xraygpt.media.dicom import dicom_frame_count

        return dicom_frame_count(file, limits=limits)


# ---- checks and guards -------------------------------------------------------------------------


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
