"""Read DICOM files into display values.

pydicom parses the header (`dicom_header.py`) and decodes the frames (`dicom_decode.py`);
`dicom_render.py` maps stored values to display values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.dicom_decode import PIXEL_ELEMENTS, decode_frames
from xraygpt.media.dicom_header import (
    GREY,
    HEADER_ELEMENTS,
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
    Window,
    check_size,
    suppress_library_output,
)

_LOGGERS = ("pydicom", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle")


def read_dicom(
    file: Path, *, frame: int | None, window: Window | None, limits: ReadLimits
) -> PixelImage:
    """Read a DICOM file, after its size on disk has been checked; see `pixels.read_image`.

    Raises:
        ImageError: The file is not an image, too large, truncated or not supported. Other
            exceptions that corrupt files cause are converted by `pixels.read_image`.
    """
    with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
        source = open_dataset(stream, limits)
        layout = parse_layout(read_elements(source, HEADER_ELEMENTS))
        if frame is not None and frame >= layout.frames:
            raise ImageError(
                f"frame {frame} was requested, but the file has {layout.frames} frame(s), counted "
                "from 0"
            )
        if window and layout.photometric not in GREY:
            raise ImageError(
                "the image is in colour, but a window applies to grey images; omit the window"
            )
        indices = range(layout.frames) if frame is None else range(frame, frame + 1)
        check_size(layout.rows, layout.columns, layout.samples, len(indices), limits)
        dataset = read_elements(source, (*HEADER_ELEMENTS, *PIXEL_ELEMENTS))
        channels = () if layout.photometric in GREY else (3,)
        pixels = np.empty((len(indices), layout.rows, layout.columns, *channels), np.float32)
        display_meta: dict[str, MetaValue] = {}
        for i, stored in enumerate(decode_frames(dataset, source.syntax, layout, indices)):
            pixels[i], display_meta = render_frame(stored, dataset, layout, indices[i], window)
        meta = {**picture_meta(dataset, source.syntax, layout), **display_meta}
    return PixelImage(pixels if frame is None else pixels[0], layout.bits_stored, "DICOM", meta)


def dicom_frame_count(file: Path, *, limits: ReadLimits) -> int:
    """Read Number of Frames (0028,0008), or 1 if it is absent or 0, without reading the pixels."""
    with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
        source = open_dataset(stream, limits)
        return parse_layout(read_elements(source, HEADER_ELEMENTS)).frames
