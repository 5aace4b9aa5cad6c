"""The DICOM reader against values worked out by hand; the files are made here and hold no patient.

The arithmetic stands beside each case. Frames have a few pixels, so that the automatic range is the
plain minimum and maximum (it clips nothing up to 1,000 pixels).
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from xraygpt.common.errors import ImageError
from xraygpt.media.grey import window_values
from xraygpt.media.pixels import (
    PixelImage,
    frame_count,
    read_image,
)

DATA = Path(os.environ.get("XRAYGPT_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAMPLES = Path(next(iter(pydicom.data.__path__))) / "test_files"  # ship inside pydicom's wheel
EXPLICIT, IMPLICIT = uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian

needs_libjpeg = pytest.mark.skipif(
    not get_decoder(uid.JPEGLSLossless).is_available, reason="needs the extra xraygpt[jpeg]"
)


def dataset(stored: Any, bits: int = 0, **elements: Any) -> Dataset:
    """A secondary capture of stored values, (H, W), (H, W, 3), or (F, H, W) with NumberOfFrames."""
    array = np.asarray(stored)
    color = array.ndim > 2 and array.shape[-1] == 3
    frames = array.ndim - (3 if color else 2)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = EXPLICIT
    ds.SOPClassUID, ds.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3.4"
    ds.PatientName, ds.PatientID = "Doe^Secret", "SECRET-ID"
    ds.Rows, ds.Columns = array.shape[frames : frames + 2]
    ds.SamplesPerPixel = 3 if color else 1
    ds.PhotometricInterpretation = "RGB" if color else "MONOCHROME2"
    if color:
        ds.PlanarConfiguration = 0
    if frames:
        ds.NumberOfFrames = array.shape[0]
    ds.BitsAllocated = array.dtype.itemsize * 8
    ds.BitsStored = bits or ds.BitsAllocated
    ds.HighBit = ds.BitsStored - 1
    ds.PixelRepresentation = int(array.dtype.kind == "i")
    data = array.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def save(path: Path, ds: Dataset, syntax: uid.UID = EXPLICIT) -> Path:
    ds.file_meta.TransferSyntaxUID = syntax
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases are broken on purpose
        ds.save_as(path, enforce_file_format=True)
    return path


def read(folder: Path, ds: Dataset, syntax: uid.UID = EXPLICIT, **how: Any) -> PixelImage:
    return read_image(save(folder / "x.dcm", ds, syntax), **how)


def row(dtype: str, *values: int) -> np.ndarray:
    return np.array([values], dtype)


u8, u16, u32, i16 = (partial(row, dtype) for dtype in ("u1", "u2", "u4", "i2"))
MONO1 = {"PhotometricInterpretation": "MONOCHROME1"}
INVERSE, IDENTITY = ({"PresentationLUTShape": name} for name in ("INVERSE", "IDENTITY"))


def window(center: Any, width: Any, function: str | None = None) -> dict[str, Any]:
    named = {"VOILUTFunction": function} if function else {}
    return {"WindowCenter": center, "WindowWidth": width} | named


def exact(center: float, width: float) -> dict[str, Any]:
    return window(center, width, "LINEAR_EXACT")


def rescale(slope: float, intercept: float) -> dict[str, Any]:
    return {"RescaleSlope": slope, "RescaleIntercept": intercept}


def lut(descriptor: list[int], data: Any, vr: str = "US") -> list[Dataset]:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if descriptor[1] < 0 else "US", descriptor)
    item.add_new("LUTData", vr, data)
    return [item]


def voi(descriptor: list[int], data: Any, vr: str = "US") -> dict[str, Any]:
    return {"VOILUTSequence": lut(descriptor, data, vr)}


def padding(value: int, limit: int | None = None) -> dict[str, Any]:
    limits = {} if limit is None else {"PixelPaddingRangeLimit": limit}
    return {"PixelPaddingValue": value} | limits


QUARTERS = [0, 0.25, 0.5, 1]
WORDS = struct.pack("<3H", 0, 819, 4095)  # 819 / 4095 = 0.2
ALL_WORDS = np.arange(65536, dtype="<u2").tobytes()

# name: (stored, bits stored, elements, display values); without a window (x - low) / (high - low)
# fmt: off
TABLE: dict[str, tuple[np.ndarray, int, dict[str, Any], list[float]]] = {
    # ---- bit depths
    "8 bit": (u8(50, 100, 150, 250), 8, {}, QUARTERS),  # (x - 50) / 200
    "8 bit, whole": (u8(0, 51, 102, 255), 8, {}, [0, 51 / 255, 102 / 255, 1]),
    "10 bit": (u16(23, 273, 523, 1023), 10, {}, QUARTERS),  # (x - 23) / 1000
    "12 bit": (u16(95, 1095, 2095, 4095), 12, {}, QUARTERS),  # (x - 95) / 4000
    "14 bit": (u16(0, 4000, 8000, 16000), 14, {}, QUARTERS),  # x / 16000
    "16 bit": (u16(1000, 16000, 31000, 61000), 16, {}, QUARTERS),  # (x - 1000) / 60000
    "32 bit": (u32(10, 1_000_000_010, 4_000_000_010), 32, {}, [0, 0.25, 1]),  # (x - 10) / 4e9
    "signed 16": (i16(-1000, 0, 1000, 3000), 16, {}, QUARTERS),  # (x + 1000) / 4000
    "signed 8": (u8(156, 0, 100).view(np.int8), 8, {}, [0, 0.5, 1]),  # -100, 0, 100
    # bits above the stored ones mean nothing: 0xF000 is 0, 0x1400 1024, 0xA800 2048, 0x3FFF 4095
    "spare bits": (
        u16(0xF000, 0x1400, 0xA800, 0x3FFF), 12, {}, [0, 1024 / 4095, 2048 / 4095, 1]),
    # signed 12 bit: 0x7800 is -2048, 0xF000 0, 0x53FF 1023, 0x17FF 2047; (x + 2048) / 4095
    "spare bits, signed": (
        u16(0x7800, 0xF000, 0x53FF, 0x17FF).view(np.int16), 12, {},
        [0, 2048 / 4095, 3071 / 4095, 1]),
    # High Bit 15 and 12 stored: the values sit 4 bits up and the lower 4 mean nothing
    "spare bits below": (u16(9, 1000 * 16 + 15, 4000 * 16), 12, {"HighBit": 15}, [0, 0.25, 1]),
    # ---- a frame of one value has no range: that of all stored values takes its place
    "flat black": (u16(0, 0), 12, {}, [0, 0]),
    "flat white": (u16(4095, 4095), 12, {}, [1, 1]),
    "flat signed": (i16(0, 0), 12, {}, [2048 / 4095] * 2),  # (0 + 2048) / 4095
    "flat black, MONOCHROME1": (u16(4095, 4095), 12, MONO1, [0, 0]),
    # ---- windows
    # LINEAR: (x - 99.5) / 50 + 0.5; 75 -> 0.01, 100 -> 0.51, 124 -> 0.99
    "linear": (
        u8(0, 74, 75, 100, 124, 125, 255), 8, window(100, 51), [0, 0, 0.01, 0.51, 0.99, 1, 1]),
    # (x - 127.5) / 255 + 0.5 = x / 255: the half step makes the full width the identity
    "linear, whole": (u8(0, 1, 128, 255), 8, window(128, 256), [0, 1 / 255, 128 / 255, 1]),
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
    "MONOCHROME1, INVERSE": (  # the same said twice is once (C.8.11.3)
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
    """Implicit VR, where US or SS is not stated, and neither preamble nor file meta."""
    stored, bits, elements, expected = TABLE[name]
    ds = dataset(stored, bits, **elements)
    del ds.file_meta
    ds.save_as(tmp_path / "bare.img", implicit_vr=True, little_endian=True)
    np.testing.assert_allclose(read_image(tmp_path / "bare.img").pixels[0], expected, atol=1e-6)


def test_which_voi_step_is_told(tmp_path: Path) -> None:
    window = {"WindowCenter": 100, "WindowWidth": 51}
    table = {"VOILUTSequence": lut([2, 0, 8], [0, 255])}
    told = [
        read(tmp_path, dataset(u8(0, 1), **elements), window=argument).meta["voi"]
        for elements, argument in [({}, None), (window, None), (table, None), (table, (9.0, 9.0))]
    ]
    assert told == ["range", "window", "lut", "argument"]


def test_signed_padding_written_as_unsigned(tmp_path: Path) -> None:
    ds = dataset(i16(-2000, -1000, 0, 1000))
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    assert read(tmp_path, ds).pixels.tolist() == [[0, 0, 0.5, 1]]


def test_steep_sigmoid_does_not_overflow() -> None:
    with np.errstate(all="raise"):
        shown = window_values(np.array([0.0, 1e3, 6e4]), 1e3, 1e-3, "SIGMOID")
    np.testing.assert_allclose(shown, [0, 0.5, 1], atol=1e-300)


def test_automatic_range_shrugs_off_few_outliers(tmp_path: Path) -> None:
    # 10,000 pixels: 100 of 0, 100 of 1000, 3 hot ones of 60000, the rest 500. The ends are ranks 9
    # and 9990 of 0..9999 (a tenth of a percent of 9999 is 9), so 1000 is white, not 60000.
    stored = np.full(10_000, 500, np.uint16)
    stored[:100], stored[-103:-3], stored[-3:] = 0, 1000, 60000
    pixels = read(tmp_path, dataset(stored.reshape(100, 100))).pixels.ravel()
    assert (pixels[0], pixels[5000], pixels[-4], pixels[-1]) == (0, 0.5, 1, 1)


def test_automatic_range_of_a_nearly_flat_frame_is_its_whole_range(tmp_path: Path) -> None:
    stored = np.full(10_000, 300, np.uint16)
    stored[0], stored[-1] = 100, 500  # fewer than the tail, but all the contrast there is
    pixels = read(tmp_path, dataset(stored.reshape(100, 100))).pixels.ravel()
    assert (pixels[0], pixels[1], pixels[-1]) == (0, 0.5, 1)


def test_window_argument_is_in_modality_units_and_shaped_by_the_file(tmp_path: Path) -> None:
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 1, "WindowWidth": 1}
    ds = dataset(u8(0, 50, 100), 8, **rescale)  # modality -100, 0, 100
    # LINEAR c 0.5 w 201: m / 200 + 0.5
    np.testing.assert_allclose(read(tmp_path, ds, window=(0.5, 201)).pixels, [[0, 0.5, 1]])
    ds.VOILUTFunction = "SIGMOID"  # c 0 w 100: 1 / (1 + e^4)
    np.testing.assert_allclose(
        read(tmp_path, ds, window=(0, 100)).pixels, [[0.0179862, 0.5, 0.9820138]], atol=1e-6
    )


def test_parity_with_pydicom_where_it_is_right() -> None:
    """Random windows, rescales and tables of integers, against pydicom's own functions."""
    from xraygpt.media.dicom import _modality_values, _voi_values

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
        theirs = apply_modality_lut(stored, ds)
        mine = _modality_values(stored.astype(np.float64), [ds])
        np.testing.assert_allclose(mine, theirs)
        shown, *_ = _voi_values(mine, [ds], None)
        theirs = apply_voi_lut(theirs.astype(np.int32), ds).astype(np.float64)
        if trial % 3 == 2:
            theirs /= 4095
        else:  # pydicom windows into the range of all stored values, rescaled
            slope, intercept = (2, ds.RescaleIntercept) if trial % 2 else (1, 0)
            theirs = (theirs - intercept) / (slope * 4095)
        np.testing.assert_allclose(shown, theirs, atol=1e-9)


# ---- frames ------------------------------------------------------------------------------------


def test_frames(tmp_path: Path) -> None:
    stored = np.array([[[0, 100]], [[50, 150]], [[9, 9]]], np.uint8)
    window = {"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}  # x / 200
    path = save(tmp_path / "x.dcm", dataset(stored, **window))
    assert frame_count(path) == 3
    assert read_image(path, frame=1).pixels.tolist() == [[0.25, 0.75]]
    whole = read_image(path, frame=None)
    assert whole.pixels.shape == (3, 1, 2)
    assert whole.meta["frames"] == 3
    for index in range(3):
        assert (read_image(path, frame=index).pixels == whole.pixels[index]).all()
    with pytest.raises(ImageError, match=r"frame 3 was asked for, but it has 3"):
        read_image(path, frame=3)
    with pytest.raises(ImageError, match=r"frames count from 0"):
        read_image(path, frame=-1)


def test_a_single_frame_has_a_frame_axis_on_request(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(u8(0, 255)))
    assert read_image(path, frame=None).pixels.shape == (1, 1, 2)
    assert frame_count(path) == 1


def test_frame_count_needs_no_pixels(tmp_path: Path) -> None:
    ds = dataset(np.zeros((4, 2, 2), np.uint8))
    ds.PixelData = b""
    assert frame_count(save(tmp_path / "x.dcm", ds)) == 4


def test_functional_groups(tmp_path: Path) -> None:
    """Enhanced objects: window per frame, rescale shared."""

    def group(keyword: str, **elements: Any) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        setattr(outer, keyword, [inner])
        return outer

    exact = {"WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    ds = dataset(np.array([[[0, 25]], [[0, 50]]], np.uint8), **window(1, 1))  # of no account
    ds.SharedFunctionalGroupsSequence = [
        group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=0)
    ]
    ds.PerFrameFunctionalGroupsSequence = [
        group("FrameVOILUTSequence", WindowCenter=50, **exact),  # m / 100: 0, 0.5
        group("FrameVOILUTSequence", WindowCenter=100, **exact),  # m / 100 - 0.5: 0, 0.5
    ]
    pixels = read(tmp_path, ds, frame=None).pixels
    np.testing.assert_allclose(pixels, [[[0, 0.5]], [[0, 0.5]]])


# ---- colour ------------------------------------------------------------------------------------


def test_rgb_and_planar_configuration(tmp_path: Path) -> None:
    stored = np.array([[[0, 51, 255], [102, 204, 0]]], np.uint8)
    expected = stored / 255
    image = read(tmp_path, dataset(stored))
    np.testing.assert_allclose(image.pixels, expected, atol=1e-7)
    assert image.pixels.dtype == np.float32
    planes = np.ascontiguousarray(stored.transpose(2, 0, 1)).tobytes()
    image = read(tmp_path, dataset(stored, PlanarConfiguration=1, PixelData=planes))
    np.testing.assert_allclose(image.pixels, expected, atol=1e-7)


def test_ybr(tmp_path: Path) -> None:
    # Y 100, Cb 128, Cr 228: R = 100 + 1.402 * 100 = 240, G = 100 - 0.714 * 100 = 29, B = 100
    stored = np.array([[[100, 128, 228], [50, 128, 128]]], np.uint8)
    expected = [[[240 / 255, 29 / 255, 100 / 255], [50 / 255] * 3]]
    image = read(tmp_path, dataset(stored, PhotometricInterpretation="YBR_FULL"))
    np.testing.assert_allclose(image.pixels, expected, atol=1e-6)
    # 4:2:2: Y1 Y2 Cb Cr. The second pixel, Y 50, shares the colour: 190, -21 -> 0, 50
    ds = dataset(stored, PhotometricInterpretation="YBR_FULL_422")
    ds.PixelData = bytes([100, 50, 128, 228])
    expected = [[[240 / 255, 29 / 255, 100 / 255], [190 / 255, 0, 50 / 255]]]
    np.testing.assert_allclose(read(tmp_path, ds).pixels, expected, atol=1e-6)


def palette(ds: Dataset, form: str, red: bytes, green: bytes, blue: bytes, bits: int) -> Dataset:
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for color, data in zip(("Red", "Green", "Blue"), (red, green, blue), strict=True):
        ds.add_new(f"{color}PaletteColorLookupTableDescriptor", "US", [4, 0, bits])
        ds.add_new(f"{form}{color}PaletteColorLookupTableData", "OW", data)
    return ds


def test_palettes(tmp_path: Path) -> None:
    stored = u8(0, 1, 3, 9)  # 9 lies past the table: its last entry
    expected = [[[0, 1, 0.2], [0.2, 0, 0.2], [1, 0.4, 0.2], [1, 0.4, 0.2]]]
    tables = [[0, 51, 102, 255], [255, 0, 51, 102], [51, 51, 51, 51]]
    eight = palette(dataset(stored), "", *(bytes(table) for table in tables), bits=8)
    np.testing.assert_allclose(read(tmp_path, eight).pixels, expected, atol=1e-6)
    words = (struct.pack("<4H", *(257 * entry for entry in table)) for table in tables)
    sixteen = palette(dataset(stored), "", *words, bits=16)  # 257 * 255 = 65535
    np.testing.assert_allclose(read(tmp_path, sixteen).pixels, expected, atol=1e-6)
    # segments (C.7.9.2): 0 n v... is n values as they stand; 1 n v is n steps in a line up to v
    line = struct.pack("<7H", 0, 1, 0, 1, 3, 65535, 0)[:12]  # 0, 21845, 43690, 65535
    ds = palette(dataset(stored), "Segmented", line, line, line, bits=16)
    grey = np.array([0, 1 / 3, 1, 1])
    np.testing.assert_allclose(
        read(tmp_path, ds).pixels, np.stack([grey] * 3, axis=-1)[None], atol=1e-6
    )


def test_a_window_on_colour_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="window applies to grey"):
        read(tmp_path, dataset(np.zeros((2, 2, 3), np.uint8)), window=(1, 2))


# ---- encodings ---------------------------------------------------------------------------------

# 12 bit, 0..4080, each value four times, so that the tail (1 of 1,024 pixels) clips nothing
RAMP = (np.arange(32 * 32, dtype=np.uint16) // 4 * 16).reshape(32, 32)
RAMP_SHOWN = RAMP / 4080


@pytest.mark.parametrize(
    "syntax", [EXPLICIT, IMPLICIT, uid.DeflatedExplicitVRLittleEndian, uid.ExplicitVRBigEndian]
)
def test_uncompressed_syntaxes(syntax: uid.UID, tmp_path: Path) -> None:
    ds = dataset(RAMP, 12)
    if syntax == uid.ExplicitVRBigEndian:
        ds.PixelData = RAMP.astype(">u2").tobytes()
        ds.set_original_encoding(False, False)
    image = read(tmp_path, ds, syntax)
    np.testing.assert_allclose(image.pixels, RAMP_SHOWN, atol=1e-6)
    assert image.meta["transfer_syntax"] == syntax.name


def test_big_endian_table(tmp_path: Path) -> None:
    table = np.array([0, 819, 4095], ">u2").tobytes()
    ds = dataset(u8(0, 1, 2, 2), VOILUTSequence=lut([3, 0, 12], table, "OW"))
    ds["PixelData"].VR = "OB"
    np.testing.assert_allclose(
        read(tmp_path, ds, uid.ExplicitVRBigEndian).pixels, [[0, 0.2, 1, 1]], atol=1e-6
    )


@pytest.mark.parametrize(("explicit", "little"), [(True, True), (True, False), (False, True)])
def test_no_preamble_no_meta(explicit: bool, little: bool, tmp_path: Path) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData = RAMP.astype("<u2" if little else ">u2").tobytes()
    del ds.file_meta
    ds.save_as(tmp_path / "noext", implicit_vr=not explicit, little_endian=little)
    np.testing.assert_allclose(read_image(tmp_path / "noext").pixels, RAMP_SHOWN, atol=1e-6)


def test_meta_without_preamble(tmp_path: Path) -> None:
    whole = save(tmp_path / "x.dcm", dataset(RAMP, 12), uid.DeflatedExplicitVRLittleEndian)
    (tmp_path / "y").write_bytes(whole.read_bytes()[132:])
    np.testing.assert_allclose(read_image(tmp_path / "y").pixels, RAMP_SHOWN, atol=1e-6)


def test_meta_in_implicit_vr(tmp_path: Path) -> None:
    ds = dataset(RAMP, 12)
    del ds.file_meta
    ds.save_as(tmp_path / "x", implicit_vr=False, little_endian=True)
    meta = struct.pack("<HHI20s", 2, 0x10, 20, b"1.2.840.10008.1.2.1")
    (tmp_path / "x").write_bytes(b"\0" * 128 + b"DICM" + meta + (tmp_path / "x").read_bytes())
    np.testing.assert_allclose(read_image(tmp_path / "x").pixels, RAMP_SHOWN, atol=1e-6)


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
@pytest.mark.parametrize("kind", ["grey", "signed", "colour", "frames"])
def test_lossless_round_trip(syntax: uid.UID, kind: str, tmp_path: Path) -> None:
    stored = {
        "grey": RAMP,
        "signed": RAMP.astype(np.int16) - 2000,
        "colour": np.stack([RAMP, RAMP.T, RAMP[::-1]], axis=-1).astype(np.uint8),
        "frames": np.stack([RAMP, RAMP[::-1]]),
    }[kind]
    ds = dataset(stored, {"grey": 12, "frames": 12, "signed": 13, "colour": 8}[kind])
    plain = read(tmp_path, ds, frame=None).pixels
    ds.compress(syntax, generate_instance_uid=False)
    image = read(tmp_path, ds, syntax, frame=None)
    assert (image.pixels == plain).all()
    if kind == "grey":
        np.testing.assert_allclose(image.pixels[0], RAMP_SHOWN, atol=1e-6)
    if kind == "frames":
        assert (read_image(tmp_path / "x.dcm", frame=1).pixels == plain[1]).all()


def jpeg_baseline(value: int, folder: Path) -> Path:
    """A flat 8-bit frame, 16 x 16, compressed with Pillow: flat blocks survive quality 100."""
    buffer = io.BytesIO()
    Image.new("L", (16, 16), value).save(buffer, "JPEG", quality=100)
    ds = dataset(np.full((16, 16), value, np.uint8), WindowCenter=128, WindowWidth=256)
    ds.PixelData = encapsulate([buffer.getvalue()])
    ds["PixelData"].is_undefined_length = True
    return save(folder / "x.dcm", ds, uid.JPEGBaseline8Bit)


def test_jpeg_baseline(tmp_path: Path) -> None:
    # window c 128 w 256 is x / 255; 204 / 255 = 0.8
    pixels = read_image(jpeg_baseline(204, tmp_path)).pixels
    np.testing.assert_allclose(pixels, np.full((16, 16), 0.8), atol=1.01 / 255)


@needs_libjpeg
@pytest.mark.parametrize(
    ("compressed", "plain", "tolerance"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm", 0),
        ("MR_small_bigendian.dcm", "MR_small.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0),  # JPEG lossless, process 14 SV1
        ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 3 / 255),
        ("SC_rgb_dcmtk_+eb+cr.dcm", "SC_rgb_rle.dcm", 6 / 255),  # JPEG baseline
    ],
)
def test_compressed_samples(compressed: str, plain: str, tolerance: float) -> None:
    """Pairs that ship inside pydicom: the same image plain and compressed by other toolkits."""
    if not (SAMPLES / compressed).is_file():
        pytest.skip("this pydicom ships no sample files")
    got = read_image(SAMPLES / compressed).pixels
    assert abs(got - read_image(SAMPLES / plain).pixels).max() <= tolerance


@needs_libjpeg
def test_12_bit_jpeg_sample() -> None:
    if not (SAMPLES / "JPGExtended.dcm").is_file():
        pytest.skip("this pydicom ships no sample files")
    image = read_image(SAMPLES / "JPGExtended.dcm")
    assert (image.bits, image.pixels.shape) == (12, (1024, 256))


def test_missing_plug_in_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData = encapsulate([b"\xff\xd8" + b"\0" * 20 + b"\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    path = save(tmp_path / "x.dcm", ds, uid.JPEGLSLossless)
    monkeypatch.setattr(get_decoder(uid.JPEGLSLossless), "_available", {})
    with pytest.raises(ImageError, match=r"JPEG-LS Lossless.*pip install 'xraygpt\[jpeg\]'"):
        read_image(path)


def test_pillow_alone_names_the_extra_for_what_it_cannot_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jpeg_baseline(100, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\xff\xc0", b"\xff\xc3"))  # claims to be lossless
    decoder = get_decoder(uid.JPEGBaseline8Bit)
    only = {name: func for name, func in decoder._available.items() if name == "pillow"}
    monkeypatch.setattr(decoder, "_available", only)
    monkeypatch.setattr(decoder, "_unavailable", {"pylibjpeg": ("pylibjpeg-libjpeg>=2.1",)})
    with pytest.raises(ImageError, match=r"pip install 'xraygpt\[jpeg\]'"):
        read_image(path)


# ---- real files --------------------------------------------------------------------------------


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "size", "bits"),
    [("CR-MONO1-10-chest.dcm", (440, 440), 10), ("RG1_J2KI.dcm", (1955, 1841), 15)],
)
def test_real_chests_open_with_bright_bones(name: str, size: tuple[int, int], bits: int) -> None:
    """Both are MONOCHROME1 PA chests: spine above lung above the air beside the neck."""
    path = DATA / "dicom" / name
    if not path.is_file():
        pytest.skip(f"no real DICOM files under {DATA}; set XRAYGPT_DATA")
    image = read_image(path)
    assert (image.pixels.shape, image.bits) == (size, bits)
    assert (image.meta["view_position"], image.meta["photometric"]) == ("PA", "MONOCHROME1")

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        rows, columns = size
        part = image.pixels[
            int(top * rows) : int(bottom * rows), int(left * columns) : int(right * columns)
        ]
        return float(part.mean())

    spine = mean(0.45, 0.75, 0.44, 0.52)
    lungs = [mean(0.24, 0.33, 0.22, 0.32), mean(0.24, 0.33, 0.66, 0.74)]
    air = mean(0.03, 0.07, 0.95, 0.99)
    assert spine > max(lungs) + 0.15
    assert min(lungs) > air + 0.1
