"""DICOM files to display values, in the order of the standard's grey-scale pipeline.

    stored value --modality LUT (C.11.1)--> modality value --VOI LUT or window (C.11.2)--> [0, 1]
                 --MONOCHROME1 or INVERSE--> 1 - x --padding--> 0

Section numbers are those of DICOM PS3.3 unless another part is named. A frame of up to 16 bits goes
through these steps once per possible value, not per pixel: exact in float64, then one look-up.

pydicom parses and decodes. Its `apply_modality_lut` and `apply_voi_lut` are left aside: on headers
that occur they fail or wrap around (8-bit tables of more than 256 entries, tables after a rescale,
negative first values, short tables). A test holds this module to them where they are right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.dicom_lut import look_up, palette
from xraygpt.media.grey import (
    display_range,
    take_levels,
    value_levels,
    value_range,
    window_values,
)
from xraygpt.media.picture import (
    MetaValue,
    PixelImage,
    ReadLimits,
    Window,
    check_size,
    codestream_sizes,
    inflate,
    quiet,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"  # SOP class of a DICOMDIR, PS3.10 8.6
_DEFLATED, _RLE = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
_GREY = ("MONOCHROME1", "MONOCHROME2")
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
}
_SPACINGS = {  # 10.7.1.3: row, column; mm in the patient, mm at the detector
    "PixelSpacing": "pixel_spacing",
    "ImagerPixelSpacing": "imager_pixel_spacing",
}
# All that is read. Names, identifiers, dates and private elements are skipped, never parsed.
_HEADER = (
    *(*_REQUIRED, *_CODES, *_SPACINGS, "HighBit", "PlanarConfiguration", "NumberOfFrames"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PresentationLUTShape"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("FrameTime", "FrameTimeVector", "SpacingBetweenSlices"),
    *(f"{color}PaletteColorLookupTableDescriptor" for color in ("Red", "Green", "Blue")),
    *(f"{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
    *(f"Segmented{color}PaletteColorLookupTableData" for color in ("Red", "Green", "Blue")),
)
_LOGGERS = ("pydicom", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle")
_PIXELS = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")


@dataclass(frozen=True)
class _Source:
    """Where the dataset of a file begins, and how it is encoded."""

    stream: BinaryIO
    start: int
    syntax: UID


@dataclass(frozen=True)
class _Layout:
    """The image pixel module (C.7.6.3), checked."""

    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool


def read_dicom(
    file: Path, *, frame: int | None, window: Window | None, limits: ReadLimits
) -> PixelImage:
    """Read a DICOM file whose size on disk has been checked; see `pixels.read_image`.

    Raises:
        ImageError: Not an image, too large, truncated or not supported. `pixels.read_image` turns
            the other exceptions that corrupt files cause into this one.
    """
    with quiet(*_LOGGERS), file.open("rb") as stream:
        source = _open_dataset(stream, limits)
        layout = _layout(_read_elements(source, _HEADER))
        if frame is not None and frame >= layout.frames:
            raise ImageError(f"frame {frame} was asked for, but it has {layout.frames}, from 0")
        if window and layout.photometric not in _GREY:
            raise ImageError("is in colour, and a window applies to grey images; leave it out")
        wanted = range(layout.frames) if frame is None else range(frame, frame + 1)
        check_size(layout.rows, layout.columns, layout.samples, len(wanted), limits)
        dataset = _read_elements(source, (*_HEADER, *_PIXELS))
        colored = () if layout.photometric in _GREY else (3,)
        pixels = np.empty((len(wanted), layout.rows, layout.columns, *colored), np.float32)
        shown: dict[str, MetaValue] = {}
        for place, stored in enumerate(_stored_frames(dataset, source.syntax, layout, wanted)):
            pixels[place], shown = _render(stored, dataset, layout, wanted[place], window)
        meta = {**_meta(dataset, source.syntax, layout), **shown}
    return PixelImage(pixels if frame is None else pixels[0], layout.bits_stored, "DICOM", meta)


def dicom_frame_count(file: Path, *, limits: ReadLimits) -> int:
    """Number of Frames (0028,0008), 1 where absent or 0, without reading the pixels."""
    with quiet(*_LOGGERS), file.open("rb") as stream:
        return _layout(_read_elements(_open_dataset(stream, limits), _HEADER)).frames


# ---- bytes to a checked header -------------------------------------------------------------------


def _open_dataset(stream: BinaryIO, limits: ReadLimits) -> _Source:
    """Read the file meta information (PS3.10 7.1) and find the dataset behind it.

    pydicom's own opener is passed by: it inflates a deflated dataset without any bound.
    """
    from pydicom.uid import UID

    stream.seek(128)
    if stream.read(4) != b"DICM":
        stream.seek(0)
    meta = _file_meta(stream)
    if meta.get(0x0002) == _MEDIA_DIRECTORY:
        raise ImageError("is a DICOMDIR, a table of contents; give one of the images it lists")
    start = stream.tell()
    syntax = UID(meta.get(0x0010, "") or _guess_syntax(stream.read(6)))
    if syntax == _DEFLATED:
        stream.seek(start)
        return _Source(BytesIO(inflate(stream.read(), limits)), 0, syntax)
    if not syntax.is_transfer_syntax:
        raise ImageError("names no known transfer syntax, or is cut short; export it uncompressed")
    return _Source(stream, start, syntax)


def _file_meta(stream: BinaryIO) -> dict[int, str]:
    """UIDs of group 0002 by element number (PS3.10 7.1); leaves the stream at the dataset."""
    found: dict[int, str] = {}
    while (head := stream.read(8))[:2] == b"\x02\x00" and len(head) == 8:
        length = int.from_bytes(head[6:8], "little")
        if head[4:6] in (b"OB", b"OW", b"UN", b"SQ", b"UT"):  # 2 reserved bytes, 4 of length
            length = int.from_bytes(stream.read(4), "little")
        elif not head[4:6].isalpha():  # implicit VR, against the standard
            length = int.from_bytes(head[4:8], "little")
        value = stream.read(length)[:64]  # the longest UID, PS3.5 9.1
        found[int.from_bytes(head[2:4], "little")] = value.decode("ascii", "replace").rstrip("\0 ")
    stream.seek(-len(head), 1)
    return found


def _guess_syntax(head: bytes) -> str:
    """Transfer syntax of a dataset that states none, from its first element (PS3.5 7.1)."""
    if not head[4:6].isupper():  # no value representation: implicit VR, the default (PS3.5 10)
        return "1.2.840.10008.1.2"
    return "1.2.840.10008.1.2.2" if head[0] == 0 else "1.2.840.10008.1.2.1"


def _read_elements(source: _Source, keywords: tuple[str, ...]) -> Dataset:
    """Parse the elements named, and stop at the pixel data unless that is one of them."""
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


def _layout(dataset: Dataset) -> _Layout:
    """Check the image pixel module (C.7.6.3) before anything relies on it."""
    missing = [keyword for keyword in _REQUIRED if dataset.get(keyword) is None]
    if len(missing) == len(_REQUIRED):
        raise ImageError("holds no DICOM image, or is cut short; give the file of an image")
    if missing:
        raise ImageError(f"lacks {', '.join(missing)}, without which pixels mean nothing; mend it")
    photometric = str(dataset.PhotometricInterpretation).strip().upper()
    layout = _Layout(
        rows=_integer(dataset, "Rows", 1, 65535),
        columns=_integer(dataset, "Columns", 1, 65535),
        samples=3 if photometric in _COLOR else 1,
        frames=_integer(dataset, "NumberOfFrames", 0, 2**31 - 1, absent=1) or 1,
        photometric=photometric,
        bits_allocated=_integer(dataset, "BitsAllocated", 1, 32),
        bits_stored=_integer(dataset, "BitsStored", 1, 32),
        high_bit=_integer(dataset, "HighBit", 0, 31, absent=dataset.BitsStored - 1),
        signed=bool(_integer(dataset, "PixelRepresentation", 0, 1)),
    )
    _check_layout(layout, _integer(dataset, "SamplesPerPixel", 1, 4))
    return layout


def _check_layout(layout: _Layout, samples: int) -> None:
    name = layout.photometric
    if name not in (*_GREY, *_COLOR, "PALETTE COLOR"):
        raise ImageError("has an unknown Photometric Interpretation; export it as grey or RGB")
    if samples != layout.samples:
        raise ImageError(f"has {samples} samples per pixel, which {name} forbids; mend it")
    if name.startswith("YBR_FULL") and layout.bits_allocated != 8:
        raise ImageError("is YBR of more than 8 bits, which is not supported; export it as RGB")
    bits = [layout.bits_stored, layout.high_bit + 1, layout.bits_allocated]
    if layout.bits_allocated not in (1, 8, 16, 32) or sorted(bits) != bits:  # PS3.5 8.1.1
        raise ImageError(f"has bits stored, high bit + 1, allocated of {bits}; export it again")


def _integer(dataset: Dataset, keyword: str, low: int, high: int, absent: int | None = None) -> int:
    value = dataset.get(keyword)
    value = absent if value in (None, "") else value
    if not isinstance(value, int) or not low <= value <= high:
        raise ImageError(f"has a {keyword} that is no whole number from {low} to {high}; mend it")
    return int(value)


# ---- header to stored values ---------------------------------------------------------------------


def _stored_frames(
    dataset: Dataset, syntax: UID, layout: _Layout, wanted: range
) -> Iterator[np.ndarray]:
    """Decode the wanted frames to stored values, (rows, columns[, 3]), spare bits cleared."""
    decoder = _decoder(syntax)
    if not dataset.get("PixelData"):
        raise ImageError("has no PixelData: it is cut short or no image; copy or export it again")
    if not syntax.is_encapsulated:
        _check_native_length(dataset, layout)
    options: dict[str, Any] = {"number_of_frames": layout.frames, "allow_excess_frames": False}
    if syntax == _RLE:  # pylibjpeg-rle panics on corrupt data, which no `except Exception` stops
        options["decoding_plugin"] = "pydicom"
    # PS3.5 8.1.1: bits above the high bit mean nothing (old files keep overlays there). The high
    # bit is bits stored - 1 today; in older files it may be more, with spare bits below as well.
    spare = layout.high_bit + 1 - layout.bits_stored
    if spare:
        options["bits_stored"] = layout.high_bit + 1
    for index in wanted:
        if syntax.is_encapsulated and syntax != _RLE:
            _check_codestream(dataset, layout, index)
        try:
            stored, _ = decoder.as_array(dataset, index=index, **options)
        except Exception as error:
            raise _decode_failure(decoder, index, error) from None
        yield stored >> spare if spare else stored


def _decoder(syntax: UID) -> Decoder:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(f"is {syntax.name}, not supported; export it uncompressed") from None
    if not decoder.is_available:
        raise ImageError(f"is {syntax.name}, needing a decoder: pip install 'xraygpt[jpeg]'")
    return decoder


def _decode_failure(decoder: Decoder, index: int, error: Exception) -> ImageError:
    """Say that a frame did not decode; a plug-in's own words may quote the file and stay inside."""
    advice = "it is corrupt or cut short; copy or export it again"
    if "pylibjpeg-libjpeg" in " ".join(decoder.missing_dependencies):
        # Pillow alone reads 8-bit lossy JPEG, not 12-bit or lossless (PS3.5 A.4.1).
        advice = "it needs a decoder (pip install 'xraygpt[jpeg]'), or is corrupt"
    name = type(error).__name__
    return ImageError(f"frame {index} ({decoder.UID.name}) does not decode ({name}): {advice}")


def _check_native_length(dataset: Dataset, layout: _Layout) -> None:
    """Uncompressed pixel data must hold all frames (PS3.5 8.1.1)."""
    from pydicom.pixels.utils import get_expected_length

    dataset.NumberOfFrames = layout.frames
    length, expected = len(dataset.PixelData), get_expected_length(dataset)
    if length < expected:
        raise ImageError(
            f"is cut short: PixelData has {length:,} of {expected:,} bytes (or is compressed and "
            "does not say so); copy or export it again"
        )


def _check_codestream(dataset: Dataset, layout: _Layout, index: int) -> None:
    """JPEG frames carry a size of their own: it must be the header's, or no limit means anything.

    The end marker (EOI or EOC, both FFD9) must be there: decoders fill in what is missing.
    """
    from pydicom.encaps import get_frame

    table, lengths = dataset.get("ExtendedOffsetTable"), dataset.get("ExtendedOffsetTableLengths")
    frame = get_frame(
        dataset.PixelData,
        index,
        number_of_frames=layout.frames,
        extended_offsets=(table, lengths) if table and lengths else None,
    )
    declared, sizes = (layout.rows, layout.columns, layout.samples), codestream_sizes(frame)
    if sizes != {declared}:
        raise ImageError(
            f"frame {index} states (rows, columns, samples) {sorted(sizes)} inside, but the header "
            f"says {declared}; export it again"
        )
    if b"\xff\xd9" not in frame[-10:]:
        raise ImageError(f"frame {index} is cut short (no end marker); copy or export it again")


# ---- stored values to display values -------------------------------------------------------------


def _render(
    stored: np.ndarray, dataset: Dataset, layout: _Layout, index: int, window: Window | None
) -> tuple[np.ndarray, dict[str, MetaValue]]:
    """Stored values of one frame to display values in [0, 1]; and what of `meta` says how."""
    if layout.samples == 3:
        # RGB, or YBR that the decoder turned into RGB (C.7.6.3.1.2): full scale is 2**bits - 1.
        return np.clip(stored / np.float32(2**layout.bits_stored - 1), 0, 1), {"voi": "identity"}
    levels, indices = value_levels(stored)
    if layout.photometric == "PALETTE COLOR":
        return take_levels(palette(levels, dataset), indices), {"voi": "identity"}
    scopes = _scopes(dataset, index)
    modality = _modality_values(levels.astype(np.float64), scopes)
    padding = _is_padding(levels, dataset, layout)
    shown, voi, used = _voi_values(modality, scopes, window)
    lowest, highest = low, high = value_range(modality, indices, padding)
    if shown is None:
        low, high = display_range(modality, indices, padding)
        if low == high:  # a flat frame has no range of its own: that of all stored values
            half = 2.0 ** (layout.bits_stored - 1)
            ends = np.array([-half, half - 1] if layout.signed else [0, 2 * half - 1])
            low, high = sorted(_modality_values(ends, scopes).tolist())
        shown = np.clip((modality - low) / ((high - low) or 1.0), 0, 1)
    # C.7.6.3.1.2: MONOCHROME1 shows its lowest value white, after the VOI step. (2050,0020) INVERSE
    # says the same again of such a file (C.8.11.3), so it inverts once, not twice; IDENTITY there
    # is a known vendor mistake and undoes nothing. INVERSE on MONOCHROME2 inverts.
    shape = str(dataset.get("PresentationLUTShape", "")).strip().upper()
    if layout.photometric == "MONOCHROME1" or shape == "INVERSE":
        shown = 1 - shown
    shown[padding] = 0  # C.7.5.1.1.2: padding is no part of the image; background is black
    # What LINEAR (C.11.2.1.2.1) makes of black at `low` and white at `high`.
    used = used or ((low + high + 1) / 2, high - low + 1)
    facts: dict[str, MetaValue] = {"voi": voi, "window": used, "values": (lowest, highest)}
    return take_levels(shown.astype(np.float32), indices), facts


def _scopes(dataset: Dataset, index: int) -> list[Dataset]:
    """Where the display attributes of a frame may stand, the most specific place first.

    Enhanced objects keep them in functional groups, per frame or shared (C.7.6.16.2.9 pixel value
    transformation, C.7.6.16.2.10 frame VOI LUT), all others in the dataset itself.
    """
    scopes: list[Dataset] = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[index : index + 1], *shared[:1]):
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            scopes += (group.get(keyword) or [])[:1]
    return [*scopes, dataset]


def _numbers(scope: Dataset, keyword: str) -> list[float]:
    """The values of a numeric element; none where it is absent, empty, or not all finite."""
    try:
        value = scope.get(keyword)
        several = (
            [] if value is None else [value] if isinstance(value, (int, float, str)) else value
        )
        numbers = [float(number) for number in several]
    except (TypeError, ValueError):
        return []
    return numbers if np.isfinite(numbers).all() else []


def _modality_values(stored: np.ndarray, scopes: list[Dataset]) -> np.ndarray:
    """Stored to modality values, float64: by table (C.11.1.1.1), or slope * stored + intercept."""
    for scope in scopes:
        if items := scope.get("ModalityLUTSequence"):
            return look_up(stored, items[0])[0]
    for scope in scopes:
        if "RescaleSlope" in scope or "RescaleIntercept" in scope:  # C.11.1.1.2
            slope = [*_numbers(scope, "RescaleSlope"), 1.0][0]
            if slope == 0:
                raise ImageError("has a RescaleSlope of 0, which makes all pixels equal; mend it")
            return stored * slope + [*_numbers(scope, "RescaleIntercept"), 0.0][0]
    return stored


def _voi_values(
    modality: np.ndarray, scopes: list[Dataset], window: Window | None
) -> tuple[np.ndarray | None, str, Window | None]:
    """Modality values to [0, 1] by the caller's window, the file's table, or its window (C.11.2).

    Also which of them it was, and the window if it is one. Of several views the first is taken. A
    window that the standard forbids (not a number, or as wide as the 0 of a placeholder) counts as
    none: None, and the caller finds a range.
    """
    named = [scope.VOILUTFunction for scope in scopes if scope.get("VOILUTFunction")]
    function = str([*named, "LINEAR"][0]).strip().upper()  # C.11.2.1.3
    narrowest = 1 if function == "LINEAR" else np.finfo(float).tiny
    if window:
        return window_values(modality, *window, function), "argument", window
    for scope in scopes:
        for item in (scope.get("VOILUTSequence") or [])[:1]:  # C.11.2.1.1
            entries, bits = look_up(modality, item)
            return np.clip(entries / (2**bits - 1), 0, 1), "lut", None
        center, width = _numbers(scope, "WindowCenter"), _numbers(scope, "WindowWidth")
        if center and width and width[0] >= narrowest:
            used = (center[0], width[0])
            return window_values(modality, *used, function), "window", used
    return None, "range", None


def _is_padding(levels: np.ndarray, dataset: Dataset, layout: _Layout) -> np.ndarray:
    """Which stored values are padding: Pixel Padding Value to Range Limit, both (C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(levels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [value, limit if isinstance(limit, int) else value]
    if layout.signed and layout.bits_allocated <= 16:  # as US, a negative value reads + 2**16
        ends = [end - 65536 if end >= 32768 else end for end in ends]
    return (levels >= min(ends)) & (levels <= max(ends))


def _meta(dataset: Dataset, syntax: UID, layout: _Layout) -> dict[str, MetaValue]:
    """Facts on the picture; text only in the form of a code string (PS3.5 6.2), never free text."""
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
        spacing = _numbers(dataset, keyword)
        if len(spacing) == 2 and min(spacing) > 0:
            meta[name] = tuple(spacing)
    between = _numbers(dataset, "SpacingBetweenSlices")
    if len(between) == 1 and between[0] > 0:
        meta["slice_spacing"] = tuple(between)
    if times := _frame_times(dataset, layout.frames):
        meta["frame_times"] = times
    return meta


def _frame_times(dataset: Dataset, frames: int) -> tuple[float, ...]:
    """Seconds of each frame after the first, from the cine module (C.7.6.5); empty if not given."""
    steps = _numbers(dataset, "FrameTimeVector")  # milliseconds, the first of them 0
    if len(steps) != frames:
        steps = _numbers(dataset, "FrameTime")[:1] * frames  # the same after every frame
        steps[:1] = [0.0] * len(steps[:1])
    if frames < 2 or len(steps) != frames or min(steps) < 0 or not any(steps):
        return ()
    return tuple(round(float(t) / 1000, 6) for t in np.cumsum(steps))
