"""Read DICOM files into display values.

pydicom parses the header (`dicom_header.py`) and decodes the frames (`dicom_decode.py`);
`dicom_render.py` maps stored values to display values.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.dicom_decode import PIXEL_ELEMENTS, decode_frames
from xraygpt.media.dicom_header import (
    GREY,
    HEADER_ELEMENTS,
    Layout,
    frame_times,
    open_dataset,
    parse_layout,
    picture_meta,
    read_elements,
)
from xraygpt.media.dicom_render import render_frame
from xraygpt.media.picture import (
    MetaValue,
    PixelImage,
    ReadLimits,
    SelectFrames,
    Window,
    check_size,
    suppress_library_output,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LOGGERS = ("pydicom", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle")


def read_dicom(
    file: Path,
    *,
    frame: int | None,
    window: Window | None,
    limits: ReadLimits,
    select: SelectFrames | None = None,
) -> PixelImage:
    """Read a DICOM file, after its size on disk has been checked; see `pixels.read_image`.

    Raises:
        ImageError: The file is not an image, too large, truncated or not supported. Other
            exceptions that corrupt files cause are converted by `pixels.read_image`.
    """
    with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
        source = open_dataset(stream, limits)
        header = read_elements(source, HEADER_ELEMENTS)
        layout = parse_layout(header)
        indices = _requested(header, layout, frame, select)
        if window and layout.photometric not in GREY:
            raise ImageError(
                "the image is in colour, but a window applies to grey images; omit the window"
            )
        check_size(layout.rows, layout.columns, layout.samples, len(indices), limits)
        dataset = read_elements(source, (*HEADER_ELEMENTS, *PIXEL_ELEMENTS))
        channels = () if layout.photometric in GREY else (3,)
        pixels = np.empty((len(indices), layout.rows, layout.columns, *channels), np.float32)
        display_meta: dict[str, MetaValue] = {}
        for i, stored in enumerate(decode_frames(dataset, source.syntax, layout, indices)):
            pixels[i], display_meta = render_frame(stored, dataset, layout, indices[i], window)
        meta = {**picture_meta(dataset, source.syntax, layout), **display_meta}
    return PixelImage(pixels if frame is None else pixels[0], layout.bits_stored, "DICOM", meta)


def dicom_shape(
    file: Path, *, frame: int | None, limits: ReadLimits, select: SelectFrames | None = None
) -> tuple[int, ...]:
    """Return the shape of the pixels that `read_dicom` returns, without reading them.

    Raises:
        ImageError: See `read_dicom`.
    """
    with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
        header = read_elements(open_dataset(stream, limits), HEADER_ELEMENTS)
    layout = parse_layout(header)
    indices = _requested(header, layout, frame, select)
    check_size(layout.rows, layout.columns, layout.samples, len(indices), limits)
    size = (layout.rows, layout.columns, *(() if layout.photometric in GREY else (3,)))
    return size if frame is not None else (len(indices), *size)


def _requested(
    header: Dataset, layout: Layout, frame: int | None, select: SelectFrames | None
) -> Sequence[int]:
    """Return the indices of the frames to read."""
    if frame is not None and frame >= layout.frames:
        raise ImageError(
            f"frame {frame} was requested, but the file has {layout.frames} frame(s), counted "
            "from 0"
        )
    if frame is not None:
        return [frame]
    if select is None:
        return range(layout.frames)
    return select(layout.frames, frame_times(header, layout.frames) or None, None)


def dicom_frame_count(file: Path, *, limits: ReadLimits) -> int:
    """Read Number of Frames (0028,0008), or 1 if it is absent or 0, without reading the pixels."""
    with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
        source = open_dataset(stream, limits)
        return parse_layout(read_elements(source, HEADER_ELEMENTS)).frames
