"""Lookup tables in DICOM files. Section numbers refer to PS3.3."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from xraygpt.common.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def apply_lut(values: np.ndarray, item: Dataset) -> tuple[np.ndarray, int]:
    """Map values through the lookup table of a LUT sequence item.

    Returns:
        The table entry for each value, as float64, and the number of bits per entry.
    """
    count, first, bits = _parse_descriptor(item.get("LUTDescriptor"))
    little_endian = item.original_encoding[1] is not False
    entries = lut_entries(item.get("LUTData"), count, bits, little_endian)
    # C.11.1.1.1, C.11.2.1.1: values outside the table map to its first or last entry.
    indices = np.clip(np.rint(values - first), 0, count - 1).astype(np.intp)
    return entries[indices].astype(np.float64), bits


def palette_colors(levels: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return each level's RGB in [0, 1], float32 (levels, 3) (C.7.6.3.1.5, C.7.6.3.1.6)."""
    if "SegmentedRedPaletteColorLookupTableData" in dataset:  # C.7.9.2; pydicom expands it
        from pydicom.pixels.processing import apply_color_lut

        bits = _parse_descriptor(dataset.get("RedPaletteColorLookupTableDescriptor"))[2]
        rgb = apply_color_lut(levels, dataset)[..., :3]
        return np.clip(rgb / np.float32(2**bits - 1), 0, 1)
    channels, little_endian = [], dataset.original_encoding[1] is not False
    for color in ("Red", "Green", "Blue"):
        descriptor = dataset.get(f"{color}PaletteColorLookupTableDescriptor")
        count, first, bits = _parse_descriptor(descriptor)
        data = dataset.get(f"{color}PaletteColorLookupTableData")
        indices = np.clip(levels.astype(np.int64) - first, 0, count - 1)
        entries = lut_entries(data, count, bits, little_endian)[indices]
        channels.append(np.clip(entries / np.float32(2**bits - 1), 0, 1))
    return np.stack(channels, axis=-1)


def _parse_descriptor(value: Any) -> tuple[int, int, int]:
    """Return entry count, first value mapped and bits per entry (C.11.1.1.1, C.7.6.3.1.5)."""
    if not hasattr(value, "__len__") or isinstance(value, bytes) or len(value) != 3:
        raise ImageError(
            "the file has a lookup table without its descriptor of 3 numbers; export it again"
        )
    count, first, bits = (int(number) for number in value)
    if not 1 <= bits <= 16:
        raise ImageError(
            f"the file has a lookup table of {bits} bits, expected 1 to 16; export it again"
        )
    return (count & 0xFFFF) or 65536, first, bits  # 0 means 65536; in an SS, 40000 reads negative


def lut_entries(data: Any, count: int, bits: int, little_endian: bool) -> np.ndarray:
    """Decode DICOM LUT Data: 16-bit words, or packed bytes for entries of up to 8 bits.

    Args:
        data: Bytes (value representation OW), or one number or a list of numbers (US, SS).
        count: Number of entries according to the descriptor.
        bits: Bits per entry, 1 to 16.
        little_endian: Byte order of `data` if it is bytes.

    Returns:
        The entries, unsigned integers of shape (count,).

    Raises:
        ImageError: `data` has fewer than `count` entries.
    """
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], "<u2" if little_endian else ">u2")
    else:
        words = np.atleast_1d(np.asarray(data, np.int64)).astype(np.uint16)
    if len(words) < count and bits <= 8:
        words = words.astype("<u2").view(np.uint8)
    if len(words) < count:
        raise ImageError(
            f"the file has a lookup table of {len(words)} entries, not {count}; export it again"
        )
    return words[:count]
