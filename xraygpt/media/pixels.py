"""Read image files into display values, for training, evaluation and the demo alike.

`read_image` detects the format from a file's first bytes, not its name, and returns a `PixelImage`:
float32 display values from 0 (black) to 1 (white), with bright bones and dark air whatever the
file's own convention. PNG and JPEG files are read here with Pillow; DICOM files are read in
`dicom.py` with pydicom, which is imported only then.

Sizes are checked before decoding (`ReadLimits`). Every failure is an `ImageError` that names the
file, the problem and the fix; damaged images are never silently repaired or replaced.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xraygpt.common.errors import DataError, ImageError
from xraygpt.media.grey import apply_window
from xraygpt.media.picture import (
    DEFAULT_LIMITS,
    MetaValue,
    PixelImage,
    ReadLimits,
    SelectFrames,
    Window,
    check_size,
    suppress_library_output,
)

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
_GREY_MODES = ("1", "L", "LA")  # of Pillow, apart from those for 16 bits
_ORIENTATION, _QUARTER_TURNS = 0x0112, (5, 6, 7, 8)  # EXIF
_HEAD_BYTES = 132  # preamble (128) and prefix (4) of a DICOM file, PS3.10 7.1


def read_image(
    path: str | PathLike[str],
    *,
    frame: int | None = 0,
    window: Window | None = None,
    limits: ReadLimits = DEFAULT_LIMITS,
    min_side: int | None = None,
    select: SelectFrames | None = None,
) -> PixelImage:
    """Read a PNG, JPEG or DICOM file into display values.

    Args:
        path: The file. Its format is detected from its content, not from its name.
        frame: Index of the frame, counted from 0. None reads all frames and adds a leading frame
            axis, even for a single frame.
        window: (center, width) to use instead of the window or table in a grey file, in modality
            values (after the modality LUT) for DICOM and in stored values (0-255 or 0-65535) for
            PNG and JPEG.
        limits: Size limits.
        min_side: Allows a JPEG to be decoded at a half, a quarter or an eighth of its size, as long
            as no side becomes shorter than this many pixels. Pixels are then approximate block
            means.
        select: With `frame=None`, chooses the frames to read.

    Returns:
        The image as display values in [0, 1], with bright bones.

    Raises:
        ImageError: The file is missing, empty, too large, truncated, corrupt or not in a supported
            format, or `frame` or `window` is not valid for it.
    """
    with _errors_with_path(path):
        file, head = _inspect(path, limits)
        if frame is not None and frame < 0:
            raise ImageError(f"frame {frame} was requested, but frames count from 0")
        if window and not (math.isfinite(window[0]) and 0 < window[1] < math.inf):
            raise ImageError(f"window {window} is not (center, width) with a positive width")
        if _is_raster(head):
            picture = _read_raster(file, frame, window, limits, min_side)
            if frame is None and select is not None:
                return replace(picture, pixels=picture.pixels[list(select(1, None, None))])
            return picture
        from xraygpt.media.dicom import read_dicom

        return read_dicom(file, frame=frame, window=window, limits=limits, select=select)


def frame_count(path: str | PathLike[str], *, limits: ReadLimits = DEFAULT_LIMITS) -> int:
    """Read the number of frames from the file's header; always 1 for PNG and JPEG.

    Args:
        path: The file.
        limits: Size limits; only the limit on bytes is checked.

    Raises:
        ImageError: The file is not a readable image.
    """
    with _errors_with_path(path):
        file, head = _inspect(path, limits)
        if _is_raster(head):
            return 1
        from xraygpt.media.dicom import dicom_frame_count

        return dicom_frame_count(file, limits=limits)


def read_shape(
    path: str | PathLike[str],
    *,
    frame: int | None = 0,
    limits: ReadLimits = DEFAULT_LIMITS,
    min_side: int | None = None,
    select: SelectFrames | None = None,
) -> tuple[int, ...]:
    """Return the shape of the pixels that `read_image` returns, from the file's header.

    The arguments are those of `read_image`.

    Raises:
        ImageError: The file is missing or not a readable image, or has no such frame. Damage after
            the header is not found.
    """
    with _errors_with_path(path):
        file, head = _inspect(path, limits)
        if not _is_raster(head):
            from xraygpt.media.dicom import dicom_shape

            return dicom_shape(file, frame=frame, limits=limits, select=select)
        if frame:
            raise ImageError(f"frame {frame} was requested, but a PNG or JPEG has only frame 0")
        shape = _raster_shape(file, limits, min_side)
        if frame is not None:
            return shape
        return (1 if select is None else len(select(1, None, None)), *shape)


# ---- checks ------------------------------------------------------------------------------------


@contextmanager
def _errors_with_path(path: str | PathLike[str]) -> Iterator[None]:
    """Context manager that converts every exception to an `ImageError` starting with the path.

    The messages of other exceptions are dropped, since they may quote the file's content.
    """
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except DataError:  # from the choice of frames; it names the file
        raise
    except Exception as error:
        raise ImageError(
            f"{path}: the file cannot be decoded ({type(error).__name__}), so it is corrupt or cut "
            "short; copy or export it again"
        ) from None


def _inspect(path: str | PathLike[str], limits: ReadLimits) -> tuple[Path, bytes]:
    """Run the checks that need no decoding, and return the file and its first bytes."""
    file = Path(path)
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError("this is not a regular file; specify the path of an image file")
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
    except FileNotFoundError:
        raise ImageError("no such file; check the path and the image root") from None
    except OSError as error:
        raise ImageError(
            f"the file cannot be opened ({error.strerror}); check its permissions"
        ) from None
    if status.st_size > limits.max_file_bytes:
        raise ImageError(
            f"the file has {status.st_size:,} bytes, over the limit of {limits.max_file_bytes:,}; "
            "raise ReadLimits.max_file_bytes if this size is expected"
        )
    if not head:
        raise ImageError("the file is empty (0 bytes); copy or download it again")
    is_dicom = head[128:] == b"DICM" or file.suffix.lower() in (".dcm", ".dicom")
    if not (is_dicom or _is_raster(head) or _starts_like_dataset(head, status.st_size)):
        raise ImageError("this is not a PNG, JPEG or DICOM file; convert it to one of these")
    return file, head


def _is_raster(head: bytes) -> bool:
    """Return whether a file is PNG or JPEG; a DICOM preamble may contain their signature too."""
    return head.startswith((_PNG, _JPEG)) and head[128:] != b"DICM"


def _starts_like_dataset(head: bytes, size: int) -> bool:
    """Return whether a file without a preamble may begin with a DICOM element (PS3.5 7.1).

    The first group is 0002 (file meta) or 0008 (identification), followed by a value representation
    of two capital letters or by an implicit-VR length that fits into the file.
    """
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    if head[:2] == b"\x00\x08":  # big endian, which is always explicit (PS3.5 A.3)
        return explicit
    fits = len(head) >= 8 and 0 < int.from_bytes(head[4:8], "little") < size
    return head[:2] in (b"\x02\x00", b"\x08\x00") and (explicit or fits)


# ---- PNG and JPEG ------------------------------------------------------------------------------


def _read_raster(
    file: Path, frame: int | None, window: Window | None, limits: ReadLimits, min_side: int | None
) -> PixelImage:
    """Read a PNG or JPEG, mapping stored values 0..2**bits - 1 to display values in [0, 1]."""
    if frame:
        raise ImageError(f"frame {frame} was requested, but a PNG or JPEG has only frame 0")
    image, source_format, factor = _load_raster(file, limits, min_side)
    display, bits = _raster_values(image)
    lowest, highest = float(display.min()), float(display.max())
    if window:
        if display.ndim == 3:
            raise ImageError(
                "the image is in colour, but a window applies to grey images; omit the window"
            )
        stored = np.rint(display.astype(np.float64) * (2**bits - 1))
        display = apply_window(stored, *window).astype(np.float32)
    meta: dict[str, MetaValue] = {"rows": display.shape[0], "columns": display.shape[1]}
    meta |= {"frames": 1, "voi": "argument" if window else "identity"}
    if factor > 1:
        meta["file_size"] = tuple(float(round(n * factor)) for n in display.shape[:2])
    if display.ndim == 2:
        full_scale = 2**bits - 1
        meta["window"] = window or ((full_scale + 1) / 2, full_scale + 1)
        meta["values"] = tuple(round(v * full_scale) * 1.0 for v in (lowest, highest))
    return PixelImage(display[None] if frame is None else display, bits, source_format, meta)


def _load_raster(
    file: Path, limits: ReadLimits, min_side: int | None
) -> tuple[PillowImage, str, float]:
    """Decode the file with Pillow and apply its EXIF orientation.

    Returns:
        The image, its format, and the factor by which the image in the file is larger.
    """
    from PIL import ImageOps

    with _open_raster(file, limits) as image:
        source_format = "PNG" if image.format == "PNG" else "JPEG"  # a JPEG may call itself MPO
        full_width = image.width
        if min_side:
            image.draft(None, (min_side, min_side))  # no effect on a PNG
        image.load()
        factor = full_width / image.width
        try:
            with suppress_library_output("PIL"):
                return ImageOps.exif_transpose(image), source_format, factor
        except Exception:
            # The pixels are intact; an EXIF block that cannot be parsed specifies no orientation.
            return image.copy(), source_format, factor


def _raster_shape(file: Path, limits: ReadLimits, min_side: int | None) -> tuple[int, ...]:
    """Return (H, W) of a grey image or (H, W, 3) of one in colour, without decoding it."""
    with _open_raster(file, limits) as image:
        if min_side:
            image.draft(None, (min_side, min_side))
        try:
            with suppress_library_output("PIL"):
                turned = image.getexif().get(_ORIENTATION) in _QUARTER_TURNS
        except Exception:
            turned = False
        size = (image.width, image.height) if turned else (image.height, image.width)
        is_grey = image.mode.startswith("I") or image.mode in _GREY_MODES
        return size if is_grey else (*size, 3)


def _open_raster(file: Path, limits: ReadLimits) -> PillowImage:
    """Open a PNG or JPEG and check its size, without decoding it."""
    from PIL import Image, ImageFile, UnidentifiedImageError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "no file is read while PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, since Pillow then "
            "returns truncated images without an error; set it to False"
        )
    try:
        with suppress_library_output("PIL"):
            image = Image.open(file, formats=["PNG", "JPEG"])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"the header declares more than Pillow's limit of {Image.MAX_IMAGE_PIXELS:,} pixels; "
            "downsample it"
        ) from None
    except UnidentifiedImageError:
        raise ImageError(
            "the file has a corrupt PNG or JPEG header; copy or export it again"
        ) from None
    try:
        check_size(image.height, image.width, len(image.getbands()), 1, limits)
    except ImageError:
        image.close()
        raise
    return image


def _raster_values(image: PillowImage) -> tuple[np.ndarray, int]:
    """Return display values, float32 in [0, 1] of shape (H, W[, 3]), and the bits per sample.

    The divisor is the format's full scale, not the image's maximum, so that equal stored values
    stay equal across files. Transparent pixels are blended onto black.
    """
    if image.mode.startswith("I"):  # 16-bit grey PNG: `I;16`, or `I` from an older Pillow
        stored = np.asarray(image)
        transparent = stored == image.info.get("transparency", -1)
        return np.where(transparent, 0, stored / np.float32(65535)).astype(np.float32), 16
    is_grey = image.mode in _GREY_MODES
    if not image.has_transparency_data:
        values = np.asarray(image.convert("L" if is_grey else "RGB")) / np.float32(255)
        return values, 1 if image.mode == "1" else 8
    values = np.asarray(image.convert("LA" if is_grey else "RGBA")) / np.float32(255)
    blended = values[..., :-1] * values[..., -1:]
    return blended[..., 0] if is_grey else blended, 8
