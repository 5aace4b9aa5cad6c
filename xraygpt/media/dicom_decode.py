"""Decode DICOM pixel data to stored values, checking each frame before it is decoded.

Section numbers refer to DICOM PS3.3 unless another part is named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xraygpt.common.errors import ImageError
from xraygpt.media.dicom_header import Layout
from xraygpt.media.picture import codestream_sizes

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.pixels.decoders.base import Decoder
    from pydicom.uid import UID

PIXEL_ELEMENTS = ("PixelData", "ExtendedOffsetTable", "ExtendedOffsetTableLengths")
_RLE = "1.2.840.10008.1.2.5"


def decode_frames(
    dataset: Dataset, syntax: UID, layout: Layout, indices: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yield each frame's stored values, (rows, columns[, 3]), with the unused bits cleared.

    Raises:
        ImageError: The pixel data are missing, truncated, corrupt or not supported.
    """
    decoder = _decoder(syntax)
    if not dataset.get("PixelData"):
        raise ImageError(
            "the file has no PixelData: it is cut short or not an image; copy or export it again"
        )
    if not syntax.is_encapsulated:
        _check_native_length(dataset, layout)
    options: dict[str, Any] = {"number_of_frames": layout.frames, "allow_excess_frames": False}
    if syntax == _RLE:  # pylibjpeg-rle panics on corrupt data; `except Exception` misses it
        options["decoding_plugin"] = "pydicom"
    # PS3.5 8.1.1: bits above the high bit are unused (old files keep overlays there). The high bit
    # is bits stored - 1 today; in older files it may be higher, with unused bits below as well.
    unused_low_bits = layout.high_bit + 1 - layout.bits_stored
    if unused_low_bits:
        options["bits_stored"] = layout.high_bit + 1
    for index in indices:
        if layout.bits_allocated == 1 and not syntax.is_encapsulated and syntax.is_little_endian:
            yield _unpack_bits(dataset.PixelData, layout, index)
            continue
        if syntax.is_encapsulated and syntax != _RLE:
            _check_codestream(dataset, layout, index)
        try:
            stored, _ = decoder.as_array(dataset, index=index, **options)
        except Exception as error:
            raise _decode_failure(decoder, index, error) from None
        yield stored >> unused_low_bits if unused_low_bits else stored


def _unpack_bits(stored: bytes, layout: Layout, index: int) -> np.ndarray:
    """Unpack a frame of single bits, which may start within a byte (PS3.5 8.1.1).

    pydicom 3.0.2 refuses such a frame.
    """
    size = layout.rows * layout.columns * layout.samples
    first, last = index * size // 8, -(-(index + 1) * size // 8)
    bits = np.unpackbits(np.frombuffer(stored[first:last], np.uint8), bitorder="little")
    start = index * size - 8 * first
    shape = (layout.rows, layout.columns, layout.samples)
    return bits[start : start + size].reshape(shape[: 2 if layout.samples == 1 else 3])


def _decoder(syntax: UID) -> Decoder:
    from pydicom.pixels import get_decoder

    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise ImageError(
            f"the transfer syntax {syntax.name} is not supported; export the file uncompressed"
        ) from None
    if not decoder.is_available:
        raise ImageError(
            f"the transfer syntax {syntax.name} requires a decoder: pip install 'xraygpt[jpeg]'"
        )
    return decoder


def _decode_failure(decoder: Decoder, index: int, error: Exception) -> ImageError:
    """Build an error without the decoder's own message, which may quote the file."""
    advice = "it is corrupt or cut short; copy or export it again"
    if "pylibjpeg-libjpeg" in " ".join(decoder.missing_dependencies):
        # Pillow alone reads 8-bit lossy JPEG, but not 12-bit or lossless JPEG (PS3.5 A.4.1).
        advice = "it requires a decoder (pip install 'xraygpt[jpeg]') or is corrupt"
    name = type(error).__name__
    return ImageError(f"frame {index} ({decoder.UID.name}) cannot be decoded ({name}): {advice}")


def _check_native_length(dataset: Dataset, layout: Layout) -> None:
    """Check that uncompressed pixel data contain all frames (PS3.5 8.1.1)."""
    from pydicom.pixels.utils import get_expected_length

    dataset.NumberOfFrames = layout.frames
    length, expected = len(dataset.PixelData), get_expected_length(dataset)
    if length < expected:
        raise ImageError(
            f"the file is cut short: PixelData has {length:,} of {expected:,} bytes (or is "
            "compressed but not marked as such); copy or export it again"
        )


def _check_codestream(dataset: Dataset, layout: Layout, index: int) -> None:
    """Check the size and the end marker of a JPEG frame before it is decoded.

    The size in the frame must equal the size in the header, which has been checked against the
    limit. If the end marker (EOI or EOC, both FFD9) is missing, decoders fill in the missing part.
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
            f"frame {index} declares (rows, columns, samples) {sorted(sizes)} inside, but the "
            f"header says {declared}; export the file again"
        )
    if b"\xff\xd9" not in frame[-10:]:
        raise ImageError(
            f"frame {index} is cut short (no end marker); copy or export the file again"
        )
