"""Read DICOM ultrasound: cine and still images, in grey, colour or with a palette.

Section numbers refer to DICOM PS3.3.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xraygpt.media.dicom_decode import PIXEL_ELEMENTS, decode_frames
from xraygpt.media.dicom_header import (
    GREY,
    HEADER_ELEMENTS,
    Layout,
    frame_times,
    numbers,
    open_dataset,
    parse_layout,
    read_elements,
)
from xraygpt.media.dicom_render import render_frame
from xraygpt.media.picture import ReadLimits, check_clip_size, suppress_library_output
from xraygpt.ultrasound.clip import Clip, NotUltrasound
from xraygpt.ultrasound.identity import IDENTITY_ELEMENTS, Identity, read_identity
from xraygpt.ultrasound.regions import RegionTable, read_regions

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_ELEMENTS = (
    *("SequenceOfUltrasoundRegions", "HeartRate", "RecommendedDisplayFrameRate"),
    *("SOPClassUID", "Modality"),
)
_LOGGERS = ("pydicom", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle")
_ULTRASOUND = ("US", "IVUS", "OT", "")  # OT: captured from a screen
_SOP_CLASSES = (  # PS3.4 B.5: Ultrasound (Multi-frame) Image Storage, and their retired versions
    "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1",
    "1.2.840.10008.5.1.4.1.1.6", "1.2.840.10008.5.1.4.1.1.3",
)  # fmt: skip
_HEART_RATES = (20.0, 350.0)  # beats per minute, plausible


def read_dicom_clip(file: Path, limits: ReadLimits) -> Clip:
    """Read all frames of a DICOM file.

    Frames in YBR are converted to RGB once, by pydicom's decoder.

    Raises:
        DataError: It is damaged, cut short, over a limit or not supported.
        NotUltrasound: It is of another modality.
    """
    with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
        source = open_dataset(stream, limits)
        header = read_elements(source, (*HEADER_ELEMENTS, *_ELEMENTS, *IDENTITY_ELEMENTS))
        _check_modality(header)
        layout = parse_layout(header)
        shape = (layout.rows, layout.columns, 1 if layout.photometric in GREY else 3)
        check_clip_size("the clip", shape, layout.frames, limits)
        regions = read_regions(header, layout.rows, layout.columns)
        identity = read_identity(header)
        dataset = read_elements(source, (*HEADER_ELEMENTS, *PIXEL_ELEMENTS))
        frames = decode_frames(dataset, source.syntax, layout, range(layout.frames))
        pixels = _render(frames, dataset, layout)
    return _clip(pixels, header, layout, regions, identity)


def peek_identity(file: Path, limits: ReadLimits) -> Identity:
    """Read what the header of a file says about the patient; nothing if it is not valid DICOM."""
    try:
        with suppress_library_output(*_LOGGERS), file.open("rb") as stream:
            return read_identity(read_elements(open_dataset(stream, limits), IDENTITY_ELEMENTS))
    except Exception:  # damaged headers fail in many ways; reading the clip reports them
        return Identity()


def _check_modality(header: Dataset) -> None:
    modality = str(header.get("Modality") or "").strip().upper()
    if modality in _ULTRASOUND or str(header.get("SOPClassUID")) in _SOP_CLASSES:
        return
    if header.get("SequenceOfUltrasoundRegions"):
        return
    name = modality if modality.isalnum() and len(modality) <= 16 else "unknown"
    raise NotUltrasound(f"the modality is {name}, not ultrasound (US); leave it out")


def _clip(
    pixels: np.ndarray, header: Dataset, layout: Layout, regions: RegionTable, identity: Identity
) -> Clip:
    warnings = list(regions.refused)
    times, times_from = _times(header, layout.frames)
    if layout.frames > 1 and times is None:
        warnings.append("the header does not say when the frames were taken")
    spacing, spacing_from = regions.spacing_mm, "region table"
    if spacing is None and not regions.regions and not regions.refused:
        spacing, spacing_from = _pixel_spacing(header), "Pixel Spacing"
    if spacing is None and len({r.spacing_mm for r in regions.sectors}) > 1:
        warnings.append("the regions have different scales, so there is no spacing")
    low, high = _HEART_RATES
    rate = next((r for r in numbers(header, "HeartRate") if low <= r <= high), None)
    return Clip(
        pixels,
        "DICOM",
        times=times,
        times_from=times_from,
        regions=regions,
        spacing_mm=spacing,
        spacing_from=spacing_from if spacing else "",
        heart_rate=rate,
        identity=identity,
        warnings=tuple(warnings),
    )


def _times(header: Dataset, frames: int) -> tuple[tuple[float, ...] | None, str]:
    """Return the times of the frames, and the element that they come from (C.7.6.5, C.7.6.16).

    Recommended Display Frame Rate is used last, since it is a speed of display.
    """
    times = frame_times(header, frames)
    if times and all(a < b for a, b in pairwise(times)):
        is_vector = len(numbers(header, "FrameTimeVector")) == frames
        once = "Frame Time" if numbers(header, "FrameTime") else "Cine Rate"
        return times, "Frame Time Vector" if is_vector else once
    rates = [rate for rate in numbers(header, "RecommendedDisplayFrameRate") if rate > 0]
    if frames > 1 and rates:
        return tuple(round(i / rates[0], 6) for i in range(frames)), "Recommended Display Rate"
    return None, ""


def _pixel_spacing(header: Dataset) -> tuple[float, float] | None:
    spacing = numbers(header, "PixelSpacing")
    return (spacing[0], spacing[1]) if len(spacing) == 2 and min(spacing) > 0 else None


# ---- pixels --------------------------------------------------------------------------------------


def _render(frames: Iterator[np.ndarray], dataset: Dataset, layout: Layout) -> np.ndarray:
    """Map stored values to uint8; all frames of a clip in the same way."""
    channels = () if layout.photometric in GREY else (3,)
    pixels = np.empty((layout.frames, layout.rows, layout.columns, *channels), np.uint8)
    is_plain = layout.bits_stored == 8 and not layout.signed
    if layout.photometric in GREY and not _has_display_function(dataset):
        _render_grey(list(frames), layout, pixels)
        return pixels
    for i, stored in enumerate(frames):
        if layout.samples == 3 and is_plain:
            pixels[i] = stored
        else:
            display, _ = render_frame(stored, dataset, layout, i, None)
            pixels[i] = np.rint(display * np.float32(255)).astype(np.uint8)
    return pixels


def _render_grey(frames: list[np.ndarray], layout: Layout, pixels: np.ndarray) -> None:
    """Map grey frames without a window: 8 bits as they are, others from their common range.

    `render_frame` would stretch each frame to its own range, so that the clip flickers.
    """
    low, high = 0.0, 2.0**layout.bits_stored - 1
    if layout.signed or layout.bits_stored > 8:
        low, high = float(min(f.min() for f in frames)), float(max(f.max() for f in frames))
    scale = 255 / ((high - low) or 1.0)
    for i, stored in enumerate(frames):
        display = np.rint((stored.astype(np.float32) - low) * scale).astype(np.uint8)
        pixels[i] = 255 - display if layout.photometric == "MONOCHROME1" else display


def _has_display_function(dataset: Dataset) -> bool:
    """Return whether the file says how grey values are displayed (C.11.1, C.11.2)."""
    names = ("WindowCenter", "VOILUTSequence", "ModalityLUTSequence", "PixelPaddingValue")
    inverse = str(dataset.get("PresentationLUTShape", "")).strip().upper() == "INVERSE"
    groups = dataset.get("SharedFunctionalGroupsSequence")
    return inverse or bool(groups) or any(dataset.get(name) is not None for name in names)
