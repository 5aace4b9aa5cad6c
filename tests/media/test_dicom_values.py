"""DICOM display values against values computed by hand, with the arithmetic next to each case.

Frames have a few pixels, so that the automatic range is the plain minimum and maximum (it clips
nothing up to 1,000 pixels).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from tests.media.dicom_files import (
    IDENTITY,
    INVERSE,
    MONO1,
    dataset,
    exact,
    i16,
    lut,
    padding,
    read,
    rescale,
    u8,
    u16,
    u32,
    voi,
    window,
)
from xraygpt.media.dicom_render import modality_values, voi_values
from xraygpt.media.grey import apply_window
from xraygpt.media.pixels import read_image

QUARTERS = [0, 0.25, 0.5, 1]
WORDS = struct.pack("<3H", 0, 819, 4095)  # 819 / 4095 = 0.2
ALL_WORDS = np.arange(65536, dtype="<u2").tobytes()

# name: (stored, bits stored, elements, display values); without a window (x - low) / (high - low)
# fmt: off
TABLE: dict[str, tuple[np.ndarray, int, dict[str, Any], list[float]]] = {
    # ---- bit depths
    "8 bit": (u8(50, 100, 150, 250), 8, {}, QUARTERS),  # (x - 50) / 200
    "8 bit, full range": (u8(0, 51, 102, 255), 8, {}, [0, 51 / 255, 102 / 255, 1]),
    "10 bit": (u16(23, 273, 523, 1023), 10, {}, QUARTERS),  # (x - 23) / 1000
    "12 bit": (u16(95, 1095, 2095, 4095), 12, {}, QUARTERS),  # (x - 95) / 4000
    "14 bit": (u16(0, 4000, 8000, 16000), 14, {}, QUARTERS),  # x / 16000
    "16 bit": (u16(1000, 16000, 31000, 61000), 16, {}, QUARTERS),  # (x - 1000) / 60000
    "32 bit": (u32(10, 1_000_000_010, 4_000_000_010), 32, {}, [0, 0.25, 1]),  # (x - 10) / 4e9
    "signed 16": (i16(-1000, 0, 1000, 3000), 16, {}, QUARTERS),  # (x + 1000) / 4000
    "signed 8": (u8(156, 0, 100).view(np.int8), 8, {}, [0, 0.5, 1]),  # -100, 0, 100
    # bits above the stored ones are ignored: 0xF000 is 0, 0x1400 1024, 0xA800 2048, 0x3FFF 4095
    "spare bits": (
        u16(0xF000, 0x1400, 0xA800, 0x3FFF), 12, {}, [0, 1024 / 4095, 2048 / 4095, 1]),
    # signed 12 bit: 0x7800 is -2048, 0xF000 0, 0x53FF 1023, 0x17FF 2047; (x + 2048) / 4095
    "spare bits, signed": (
        u16(0x7800, 0xF000, 0x53FF, 0x17FF).view(np.int16), 12, {},
        [0, 2048 / 4095, 3071 / 4095, 1]),
    # High Bit 15 and 12 stored: values are shifted by 4 bits and the lower 4 ignored
    "spare bits below": (u16(9, 1000 * 16 + 15, 4000 * 16), 12, {"HighBit": 15}, [0, 0.25, 1]),
    # ---- a frame of one value uses the range of all stored values
    "flat black": (u16(0, 0), 12, {}, [0, 0]),
    "flat white": (u16(4095, 4095), 12, {}, [1, 1]),
    "flat signed": (i16(0, 0), 12, {}, [2048 / 4095] * 2),  # (0 + 2048) / 4095
    "flat black, MONOCHROME1": (u16(4095, 4095), 12, MONO1, [0, 0]),
    # ---- windows
    # LINEAR: (x - 99.5) / 50 + 0.5; 75 -> 0.01, 100 -> 0.51, 124 -> 0.99
    "linear": (
        u8(0, 74, 75, 100, 124, 125, 255), 8, window(100, 51), [0, 0, 0.01, 0.51, 0.99, 1, 1]),
    # (x - 127.5) / 255 + 0.5 = x / 255: the half step makes the full width the identity
    "linear, full range": (u8(0, 1, 128, 255), 8, window(128, 256), [0, 1 / 255, 128 / 255, 1]),
    "linear, width 1": (u8(99, 100), 8, window(100, 1), [0, 1]),  # a step at 99.5
    # (x - 100) / 50 + 0.5; 76 -> 0.02, 124 -> 0.98
    "exact": (u8(75, 76, 100, 124, 125), 8, exact(100, 50), [0, 0.02, 0.5, 0.98, 1]),
    "exact, narrow": (u8(9, 10, 30), 8, exact(10, 0.5), [0, 0.5, 1]),  # 9.75 to 10.25
    # 1 / (1 + exp(-4 (x - 100) / 50)); at 50: 1 / (1 + e^4) = 0.0179862
    "sigmoid": (u8(50, 100, 150), 8, window(100, 50, "SIGMOID"), [0.0179862, 0.5, 0.9820138]),
    "first of two windows": (u8(75, 100), 8, window([100, 7], [51, 3]), [0.01, 0.51]),
    "placeholder window": (u8(50, 150, 250), 8, window(0, 0), [0, 0.5, 1]),
    "empty window": (u8(50, 150, 250), 8, window(None, None), [0, 0.5, 1]),
    "forbidden window": (u8(50, 150, 250), 8, window(9, 0.5), [0, 0.5, 1]),  # LINEAR needs 1
    # ---- modality
    # 2 x - 1024: 412 -> -200, 512 -> 0, 562 -> 100, 612 -> 200; c 0.5 w 401: m / 400 + 0.5
    "rescale": (
        u16(0, 412, 512, 562, 612), 12, rescale(2, -1024) | window(0.5, 401),
        [0, 0, 0.5, 0.75, 1]),
    "negative slope": (u8(0, 50, 100), 8, rescale(-1, 100), [1, 0.5, 0]),  # 100 - x
    "intercept alone": (
        u8(0, 50, 100), 8, {"RescaleIntercept": -50} | exact(0, 100), [0, 0.5, 1]),
    # 4 entries from 10 on: 5 and 10 -> 0, 11 -> 100, 12 -> 400, 13 and 200 -> 1000; m / 1000
    "modality table": (
        u8(5, 10, 11, 12, 13, 200), 8,
        {"ModalityLUTSequence": lut([4, 10, 16], [0, 100, 400, 1000])} | exact(500, 1000),
        [0, 0, 0.1, 0.4, 1, 1]),
    # from -2 on: -9 and -2 -> 0, -1 -> 300, 0 and 50 -> 1000
    "modality table, signed": (
        i16(-9, -2, -1, 0, 50), 16,
        {"ModalityLUTSequence": lut([3, -2, 16], [0, 300, 1000])} | exact(500, 1000),
        [0, 0, 0.3, 1, 1]),
    # ---- VOI tables: entry / (2**bits - 1)
    "voi table": (
        u8(0, 100, 101, 102, 103, 104, 255), 8, voi([5, 100, 8], [0, 51, 102, 204, 255]),
        [0, 0, 0.2, 0.4, 0.8, 1, 1]),
    "voi table, 12 bit": (u16(0, 1, 2), 12, voi([3, 0, 12], [0, 819, 4095]), [0, 0.2, 1]),
    "voi table, OW": (u8(0, 1, 2), 8, voi([3, 0, 12], WORDS, "OW"), [0, 0.2, 1]),
    "voi table, packed": (
        u8(0, 1, 2, 3), 8, voi([4, 0, 8], bytes([0, 51, 102, 255]), "OW"), [0, 0.2, 0.4, 1]),
    # 510 entries of 8 bits, entry n being n // 2
    "voi table, long": (
        u16(0, 300, 509), 10, voi([510, 0, 8], [n // 2 for n in range(510)]),
        [0, 150 / 255, 254 / 255]),
    # 65536 entries are written as 0; entry n is n, and 13107 / 65535 = 0.2
    "voi table, 65536": (u16(0, 13107, 65535), 16, voi([0, 0, 16], ALL_WORDS, "OW"), [0, 0.2, 1]),
    # x / 2: 0, 0.5 (to even: 0), 1, 2
    "rescale and voi table": (
        u8(0, 1, 2, 4), 8, rescale(0.5, 0) | voi([3, 0, 8], [0, 51, 255]), [0, 0, 0.2, 1]),
    "table before window": (u8(0, 1), 8, voi([2, 0, 8], [51, 255]) | window(0, 1), [0.2, 1]),
    # ---- polarity
    "MONOCHROME1": (u8(50, 100, 150, 250), 8, MONO1, [1, 0.75, 0.5, 0]),
    "MONOCHROME1, window": (  # inverted after it: 1 - 0.01, 1 - 0.51
        u8(0, 75, 100, 255), 8, MONO1 | window(100, 51), [1, 0.99, 0.49, 0]),
    "MONOCHROME1, table": (u8(0, 1, 2), 8, MONO1 | voi([3, 0, 8], [0, 51, 255]), [1, 0.8, 0]),
    "MONOCHROME1, INVERSE": (  # inverted once, not twice (C.8.11.3)
        u8(0, 51, 255), 8, MONO1 | INVERSE, [1, 0.8, 0]),
    "MONOCHROME1, IDENTITY": (u8(0, 51, 255), 8, MONO1 | IDENTITY, [1, 0.8, 0]),
    "MONOCHROME2, INVERSE": (u8(0, 51, 255), 8, INVERSE, [1, 0.8, 0]),
    "MONOCHROME2, IDENTITY": (u8(0, 51, 255), 8, IDENTITY, [0, 0.2, 1]),
    # ---- padding: black, and out of the range, which is (x - 1000) / 2000
    "padding": (u16(0, 1000, 2000, 3000), 12, padding(0), [0, 0, 0.5, 1]),
    "padding above": (u16(4095, 1000, 2000, 3000), 12, padding(4095), [0, 0, 0.5, 1]),
    "padding, MONOCHROME1": (
        u16(4095, 1000, 2000, 3000), 12, MONO1 | padding(4095), [0, 1, 0.5, 0]),
    "padding, window": (u16(3000, 1000, 4000), 12, padding(3000) | exact(2000, 4000), [0, 0.25, 1]),
    "padding range": (
        u16(0, 5, 10, 1000, 2000, 3000), 12, padding(0, 10), [0, 0, 0, 0, 0.5, 1]),
    "padding range, downwards": (
        u16(4095, 4000, 1000, 2000, 3000), 12, padding(4095, 4000), [0, 0, 0, 0.5, 1]),
    "padding, signed": (i16(-2000, -1000, 0, 1000), 16, padding(-2000), [0, 0, 0.5, 1]),
    # a stored value, so not the 0 that 1 becomes after the rescale; (x - 1) / 2 of 1, 3
    "padding, rescale": (u8(0, 1, 3), 8, padding(0) | rescale(1, -1), [0, 0, 1]),
    "all padding": (u16(7, 7), 12, padding(7), [0, 0]),
}
# fmt: on


@pytest.mark.parametrize("name", TABLE)
def test_values(name: str, tmp_path: Path) -> None:
    stored, bits, elements, expected = TABLE[name]
    image = read(tmp_path, dataset(stored, bits, **elements))
    assert image.pixels.dtype == np.float32
    assert image.pixels.shape == stored.shape
    assert image.bits == bits
    np.testing.assert_allclose(image.pixels[0], expected, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_values_do_not_depend_on_the_encoding(name: str, tmp_path: Path) -> None:
    """Implicit VR, where US or SS is ambiguous, without preamble and file meta."""
    stored, bits, elements, expected = TABLE[name]
    ds = dataset(stored, bits, **elements)
    del ds.file_meta
    ds.save_as(tmp_path / "bare.img", implicit_vr=True, little_endian=True)
    np.testing.assert_allclose(read_image(tmp_path / "bare.img").pixels[0], expected, atol=1e-6)


def test_meta_names_the_voi_step(tmp_path: Path) -> None:
    window = {"WindowCenter": 100, "WindowWidth": 51}
    table = {"VOILUTSequence": lut([2, 0, 8], [0, 255])}
    steps = [
        read(tmp_path, dataset(u8(0, 1), **elements), window=argument).meta["voi"]
        for elements, argument in [({}, None), (window, None), (table, None), (table, (9.0, 9.0))]
    ]
    assert steps == ["range", "window", "lut", "argument"]


def test_signed_padding_written_as_unsigned(tmp_path: Path) -> None:
    ds = dataset(i16(-2000, -1000, 0, 1000))
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert read(tmp_path, ds).pixels.tolist() == [[0, 0, 0.5, 1]]


def test_steep_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        display = apply_window(np.array([0.0, 1e3, 6e4]), 1e3, 1e-3, "SIGMOID")
    np.testing.assert_allclose(display, [0, 0.5, 1], atol=1e-300)


def test_automatic_range_ignores_few_outliers(tmp_path: Path) -> None:
    # 10,000 pixels: 100 of 0, 100 of 1000, 3 hot ones of 60000, the rest 500. The ends are ranks 9
    # and 9990 of 0..9999 (a tenth of a percent of 9999 is 9), so 1000 is white, not 60000.
    stored = np.full(10_000, 500, np.uint16)
    stored[:100], stored[-103:-3], stored[-3:] = 0, 1000, 60000
    pixels = read(tmp_path, dataset(stored.reshape(100, 100))).pixels.ravel()
    assert (pixels[0], pixels[5000], pixels[-4], pixels[-1]) == (0, 0.5, 1, 1)


def test_automatic_range_of_a_nearly_flat_frame_is_its_full_range(tmp_path: Path) -> None:
    stored = np.full(10_000, 300, np.uint16)
    stored[0], stored[-1] = 100, 500  # fewer than the tail, but all the contrast there is
    pixels = read(tmp_path, dataset(stored.reshape(100, 100))).pixels.ravel()
    assert (pixels[0], pixels[1], pixels[-1]) == (0, 0.5, 1)


def test_window_argument_in_modality_units_with_the_function_of_the_file(
    tmp_path: Path,
) -> None:
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 1, "WindowWidth": 1}
    ds = dataset(u8(0, 50, 100), 8, **rescale)  # modality -100, 0, 100
    # LINEAR c 0.5 w 201: m / 200 + 0.5
    np.testing.assert_allclose(read(tmp_path, ds, window=(0.5, 201)).pixels, [[0, 0.5, 1]])
    ds.VOILUTFunction = "SIGMOID"  # c 0 w 100: 1 / (1 + e^4)
    np.testing.assert_allclose(
        read(tmp_path, ds, window=(0, 100)).pixels, [[0.0179862, 0.5, 0.9820138]], atol=1e-6
    )


def test_parity_with_pydicom_where_it_is_correct() -> None:
    """Random windows, rescales and tables of integers, compared with pydicom's own functions."""
    rng = np.random.default_rng(7)
    for trial in range(60):
        stored = rng.integers(0, 4096, (1, 50)).astype(np.int32)
        ds = dataset(stored.astype(np.uint16), 12)
        if trial % 2:
            ds.RescaleSlope, ds.RescaleIntercept = 2, int(rng.integers(-1024, 1024))
        if trial % 3 == 2:
            ds.VOILUTSequence = lut([500, 300, 12], sorted(rng.integers(0, 4096, 500).tolist()))
        else:
            ds.WindowCenter, ds.WindowWidth = (
                float(rng.uniform(0, 4000)),
                float(rng.uniform(2, 4000)),
            )
            ds.VOILUTFunction = ["LINEAR", "LINEAR_EXACT", "SIGMOID"][trial // 3 % 3]
        ds.set_original_encoding(False, True)
        expected = apply_modality_lut(stored, ds)
        modality = modality_values(stored.astype(np.float64), [ds])
        np.testing.assert_allclose(modality, expected)
        display, *_ = voi_values(modality, [ds], None)
        expected = apply_voi_lut(expected.astype(np.int32), ds).astype(np.float64)
        if trial % 3 == 2:
            expected /= 4095
        else:  # pydicom windows into the range of all stored values, rescaled
            slope, intercept = (2, ds.RescaleIntercept) if trial % 2 else (1, 0)
            expected = (expected - intercept) / (slope * 4095)
        np.testing.assert_allclose(display, expected, atol=1e-9)
