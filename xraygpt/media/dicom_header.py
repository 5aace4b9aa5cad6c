"""DICOM headers: find the dataset, parse the elements needed and check the pixel layout.

Section numbers refer to DICOM PS3.3 unless another part is named.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.picture import MetaValue, ReadLimits, inflate

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

_DICOMDIR = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR, PS3.10 8.6
_DEFLATED = "1.2.840.10008.1.2.1.99"
GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_REQUIRED = [  # type 1 in C.7.6.3
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
]
_CODES = {
    "Modality": "modality",
    "ViewPosition": "view_position",  # PA, AP, LL, RL, ...
    "ImageLaterality": "laterality",
    "Laterality": "laterality",
    "BodyPartExamined": "body_part",
    "PresentationIntentType": "presentation_intent",  # C.8.11.1.1.1
    "BurnedInAnnotation": "burned_in",  # YES or NO: text that may identify the patient (C.7.6.1)
}
_SPACINGS = {  # 10.7.1.3: (row, column), in mm in the patient or at the detector
    "PixelSpacing": "pixel_spacing",
    "ImagerPixelSpacing": "imager_pixel_spacing",
}
# Only these elements are parsed. Names, identifiers, dates and private elements are skipped.
HEADER_ELEMENTS = (
    *(*_REQUIRED, *_CODES, *_SPACINGS, "HighBit", "PlanarConfiguration", "NumberOfFrames"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("FrameTime", "FrameTimeVector", "CineRate", "SpacingBetweenSlices"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)


# ---- the dataset in a file -----------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """The start and the encoding of the dataset in a file."""

    stream: BinaryIO
    start: int
    syntax: UID


def open_dataset(stream: BinaryIO, limits: ReadLimits) -> Source:
    """Read the file meta information (PS3.10 7.1) and find the dataset that follows.

    pydicom's own reader is not used, since it inflates deflated datasets of any size.
    """
    from pydicom.uid import UID

    stream.seek(128)
    if stream.read(4) != b"DICM":
        stream.seek(0)
    meta = _read_file_meta(stream)
    if meta.get(0x0002) == _DICOMDIR:
        raise ImageError(
            "the file is a DICOMDIR, a table of contents; choose one of the images it lists"
        )
    start = stream.tell()
    syntax = UID(meta.get(0x0010, "") or _guess_syntax(stream.read(6)))
    if syntax == _DEFLATED:
        stream.seek(start)
        return Source(BytesIO(inflate(stream.read(), limits)), 0, syntax)
    if not syntax.is_transfer_syntax:
        raise ImageError(
            "the file names no known transfer syntax or is cut short; export it uncompressed"
        )
    return Source(stream, start, syntax)


def _read_file_meta(stream: BinaryIO) -> dict[int, str]:
    """Read the UIDs in group 0002 (PS3.10 7.1), by element number, up to the dataset."""
    uids: dict[int, str] = {}
    while (head := stream.read(8))[:2] == b"\x02\x00" and len(head) == 8:
        length = int.from_bytes(head[6:8], "little")
        if head[4:6] in (
            b"OB",
            b"OW",
            b"UN",
            b"SQ",
            b"UT",
        ):  # 2 reserved bytes, 4 for the length
            length = int.from_bytes(stream.read(4), "little")
        elif not head[4:6].isalpha():  # implicit VR, which violates the standard
            length = int.from_bytes(head[4:8], "little")
        value = stream.read(length)[:64]  # the longest UID, PS3.5 9.1
        uids[int.from_bytes(head[2:4], "little")] = value.decode("ascii", "replace").rstrip("\0 ")
    stream.seek(-len(head), 1)
    return uids


def _guess_syntax(head: bytes) -> str:
    """Guess the transfer syntax from the first element if there is no file meta (PS3.5 7.1)."""
    if not head[4:6].isupper():  # no value representation: implicit VR, the default (PS3.5 10)
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.2" if head[0] == 0 else "1.2.840.10008.1.2.1"


def read_elements(source: Source, keywords: tuple[str, ...]) -> Dataset:
    """Parse the given elements, stopping before the pixel data unless they are requested."""
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    source.stream.seek(source.start)
    return read_dataset(
        source.stream,
        source.syntax.is_implicit_VR,
        source.syntax.is_little_endian,
        stop_when=None if "PixelData" in keywords else lambda tag, *_: tag >= 0x7FE00001,
        specific_tags=[Tag(keyword) for keyword in keywords],
    )


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """Return the values of a numeric element; empty if it is absent, empty or not all finite."""
    try:
        value = dataset.get(keyword)
        if value is None:
            return []
        values = [value] if isinstance(value, (int, float, str)) else value
        result = [float(number) for number in values]
    except (TypeError, ValueError):
        return []
    return result if np.isfinite(result).all() else []


# ---- pixel layout --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The checked image pixel module (C.7.6.3)."""

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool


def parse_layout(dataset: Dataset) -> Layout:
    """Read and check the image pixel module (C.7.6.3).

    Raises:
        ImageError: An element is missing, out of range or inconsistent with the others.
    """
    missing = [keyword for keyword in _REQUIRED if dataset.get(keyword) is None]
    if len(missing) == len(_REQUIRED):
        raise ImageError(
            "the file contains no DICOM image or is cut short; choose a file with an image"
        )
    if missing:
        raise ImageError(
            f"the header lacks {', '.join(missing)}, required to read pixels; fix the header"
        )
    photometric = str(dataset.PhotometricInterpretation).strip().upper()
    layout = Layout(
        rows=_parse_integer(dataset, "Rows", 1, 65535),
        columns=_parse_integer(dataset, "Columns", 1, 65535),
        samples=3 if photometric in _COLOR else 1,
        frames=_parse_integer(dataset, "NumberOfFrames", 0, 2**31 - 1, default=1) or 1,
        photometric=photometric,
        bits_allocated=_parse_integer(dataset, "BitsAllocated", 1, 32),
        bits_stored=_parse_integer(dataset, "BitsStored", 1, 32),
        high_bit=_parse_integer(dataset, "HighBit", 0, 31, default=dataset.BitsStored - 1),
        signed=bool(_parse_integer(dataset, "PixelRepresentation", 0, 1)),
    )
    _check_layout(layout, _parse_integer(dataset, "SamplesPerPixel", 1, 4))
    return layout


def _check_layout(layout: Layout, samples: int) -> None:
    name = layout.photometric
    if name not in (*GREY, *_COLOR, "PALETTE COLOR"):
        raise ImageError(
            "the file has an unknown Photometric Interpretation; export it as grey or RGB"
        )
    if samples != layout.samples:
        raise ImageError(
            f"the file has {samples} samples per pixel, which {name} does not allow; fix the header"
        )
    if name.startswith("YBR_FULL") and layout.bits_allocated != 8:
        raise ImageError("YBR of more than 8 bits is not supported; export the file as RGB")
    bits = [layout.bits_stored, layout.high_bit + 1, layout.bits_allocated]
    if layout.bits_allocated not in (1, 8, 16, 32) or sorted(bits) != bits:  # PS3.5 8.1.1
        raise ImageError(
            f"the values of bits stored, high bit + 1 and bits allocated, {bits}, are not valid "
            "together; export the file again"
        )


def _parse_integer(
    dataset: Dataset, keyword: str, low: int, high: int, default: int | None = None
) -> int:
    value = dataset.get(keyword)
    value = default if value in (None, "") else value
    if not isinstance(value, int) or not low <= value <= high:
        raise ImageError(
            f"the header has a {keyword} that is not a whole number from {low} to {high}; fix it"
        )
    return int(value)


# ---- metadata ------------------------------------------------------------------------------------


def picture_meta(dataset: Dataset, syntax: UID, layout: Layout) -> dict[str, MetaValue]:
    """Collect facts about the image; text only if it is a valid code string (PS3.5 6.2)."""
    meta: dict[str, MetaValue] = {
        "rows": layout.rows,
        "columns": layout.columns,
        "frames": layout.frames,
        "photometric": layout.photometric,
        "transfer_syntax": str(syntax.name),
    }
    for keyword, name in _CODES.items():
        if re.fullmatch(r"[A-Z0-9_ ]{1,16}", code := str(dataset.get(keyword) or "").strip()):
            meta.setdefault(name, code)
    for keyword, name in _SPACINGS.items():
        spacing = numbers(dataset, keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            meta[name] = tuple(spacing)
    between = numbers(dataset, "SpacingBetweenSlices")
    if len(between) == 1 and between[0] > 0:
        meta["slice_spacing"] = tuple(between)
    if times := frame_times(dataset, layout.frames):
        meta["frame_times"] = times
    return meta


def frame_times(dataset: Dataset, frames: int) -> tuple[float, ...]:
    """Return the frames' times in seconds after the first (C.7.6.5); empty if unknown.

    They are those of Frame Time Vector, else of Frame Time, else of Cine Rate.
    """
    intervals = numbers(dataset, "FrameTimeVector")  # milliseconds; the first is 0
    if len(intervals) != frames:
        rates = [r for r in numbers(dataset, "CineRate") if r > 0]  # frames per second
        interval = numbers(dataset, "FrameTime") or [1000 / r for r in rates]
        intervals = interval[:1] * frames  # the same after every frame
        intervals[:1] = [0.0] * len(intervals[:1])
    if frames < 2 or len(intervals) != frames or min(intervals) < 0 or not any(intervals):
        return ()
    return tuple(round(float(t) / 1000, 6) for t in np.cumsum(intervals))
