"""Frames, colour and encodings of DICOM files."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.data
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from tests.media.dicom_files import (
    EXPLICIT,
    IMPLICIT,
    RAMP,
    dataset,
    jpeg_baseline,
    lut,
    read,
    save,
    u8,
    window,
)
from xraygpt.common.errors import ImageError
from xraygpt.media.pixels import frame_count, read_image

DATA = Path(os.environ.get("XRAYGPT_DATA", Path(__file__).parents[3] / "shared" / "data"))
SAMPLES = Path(next(iter(pydicom.data.__path__))) / "test_files"  # part of pydicom's wheel
RAMP_SHOWN = RAMP / 4080

needs_libjpeg = pytest.mark.skipif(
    not get_decoder(uid.JPEGLSLossless).is_available, reason="needs the extra xraygpt[jpeg]"
)


# ---- frames ------------------------------------------------------------------------------------


def test_frames(tmp_path: Path) -> None:
    stored = np.array([[[0, 100]], [[50, 150]], [[9, 9]]], np.uint8)
    window = {"WindowCenter": 100, "WindowWidth": 200, "VOILUTFunction": "LINEAR_EXACT"}  # x / 200
    path = save(tmp_path / "x.dcm", dataset(stored, **window))
    assert frame_count(path) == 3
    assert read_image(path, frame=1).pixels.tolist() == [[0.25, 0.75]]
    clip = read_image(path, frame=None)
    assert clip.pixels.shape == (3, 1, 2)
    assert clip.meta["frames"] == 3
    for index in range(3):
        assert (read_image(path, frame=index).pixels == clip.pixels[index]).all()
    with pytest.raises(ImageError, match=r"frame 3 was requested, but the file has 3"):
        read_image(path, frame=3)
    with pytest.raises(ImageError, match=r"frames count from 0"):
        read_image(path, frame=-1)


def test_frames_of_single_bits_may_start_within_a_byte(tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 2, (8, 13, 11)).astype(np.uint8)
    ds = dataset(stored)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, 1, 0
    packed = np.packbits(stored.ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + bytes(len(packed) % 2)
    path = save(tmp_path / "x.dcm", ds)
    for index in range(8):
        np.testing.assert_array_equal(read_image(path, frame=index).pixels, stored[index])


def test_a_single_frame_has_a_frame_axis_on_request(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(u8(0, 255)))
    assert read_image(path, frame=None).pixels.shape == (1, 1, 2)
    assert frame_count(path) == 1


def test_frame_count_needs_no_pixels(tmp_path: Path) -> None:
    ds = dataset(np.zeros((4, 2, 2), np.uint8))
    ds.PixelData = b""
    assert frame_count(save(tmp_path / "x.dcm", ds)) == 4


def test_functional_groups(tmp_path: Path) -> None:
    """Enhanced objects with a window per frame and a shared rescale."""

    def group(keyword: str, **elements: Any) -> Dataset:
        inner, outer = Dataset(), Dataset()
        for name, value in elements.items():
            setattr(inner, name, value)
        setattr(outer, keyword, [inner])
        return outer

    exact = {"WindowWidth": 100, "VOILUTFunction": "LINEAR_EXACT"}
    ds = dataset(np.array([[[0, 25]], [[0, 50]]], np.uint8), **window(1, 1))  # overridden
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
    stored = u8(0, 1, 3, 9)  # 9 is past the table: its last entry
    expected = [[[0, 1, 0.2], [0.2, 0, 0.2], [1, 0.4, 0.2], [1, 0.4, 0.2]]]
    tables = [[0, 51, 102, 255], [255, 0, 51, 102], [51, 51, 51, 51]]
    eight = palette(dataset(stored), "", *(bytes(table) for table in tables), bits=8)
    np.testing.assert_allclose(read(tmp_path, eight).pixels, expected, atol=1e-6)
    words = (struct.pack("<4H", *(257 * entry for entry in table)) for table in tables)
    sixteen = palette(dataset(stored), "", *words, bits=16)  # 257 * 255 = 65535
    np.testing.assert_allclose(read(tmp_path, sixteen).pixels, expected, atol=1e-6)
    # segments (C.7.9.2): 0 n v... is n literal values; 1 n v is n linear steps up to v
    line = struct.pack("<7H", 0, 1, 0, 1, 3, 65535, 0)[:12]  # 0, 21845, 43690, 65535
    ds = palette(dataset(stored), "Segmented", line, line, line, bits=16)
    grey = np.array([0, 1 / 3, 1, 1])
    np.testing.assert_allclose(
        read(tmp_path, ds).pixels, np.stack([grey] * 3, axis=-1)[None], atol=1e-6
    )


def test_a_window_is_refused_on_colour(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="window applies to grey"):
        read(tmp_path, dataset(np.zeros((2, 2, 3), np.uint8)), window=(1, 2))


# ---- encodings ---------------------------------------------------------------------------------


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
    full = save(tmp_path / "x.dcm", dataset(RAMP, 12), uid.DeflatedExplicitVRLittleEndian)
    (tmp_path / "y").write_bytes(full.read_bytes()[132:])
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
    """Pairs of pydicom's test files: the same image uncompressed and compressed."""
    if not (SAMPLES / compressed).is_file():
        pytest.skip("this pydicom has no sample files")
    pixels = read_image(SAMPLES / compressed).pixels
    assert abs(pixels - read_image(SAMPLES / plain).pixels).max() <= tolerance


@needs_libjpeg
def test_12_bit_jpeg_sample() -> None:
    if not (SAMPLES / "JPGExtended.dcm").is_file():
        pytest.skip("this pydicom has no sample files")
    image = read_image(SAMPLES / "JPGExtended.dcm")
    assert (image.bits, image.pixels.shape) == (12, (1024, 256))


def test_missing_plug_in_error_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData = encapsulate([b"\xff\xd8" + b"\0" * 20 + b"\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    path = save(tmp_path / "x.dcm", ds, uid.JPEGLSLossless)
    monkeypatch.setattr(get_decoder(uid.JPEGLSLossless), "_available", {})
    with pytest.raises(ImageError, match=r"JPEG-LS Lossless.*pip install 'xraygpt\[jpeg\]'"):
        read_image(path)


def test_error_names_the_extra_if_only_pillow_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = jpeg_baseline(100, tmp_path)
    path.write_bytes(path.read_bytes().replace(b"\xff\xc0", b"\xff\xc3"))  # claims to be lossless
    decoder = get_decoder(uid.JPEGBaseline8Bit)
    pillow_only = {name: func for name, func in decoder._available.items() if name == "pillow"}
    monkeypatch.setattr(decoder, "_available", pillow_only)
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
    """Two MONOCHROME1 PA chests: the spine is brighter than the lungs, the lungs than air."""
    path = DATA / "dicom" / name
    if not path.is_file():
        pytest.skip(f"no real DICOM files under {DATA}; set XRAYGPT_DATA")
    image = read_image(path)
    assert (image.pixels.shape, image.bits) == (size, bits)
    assert (image.meta["view_position"], image.meta["photometric"]) == ("PA", "MONOCHROME1")

    def mean(top: float, bottom: float, left: float, right: float) -> float:
        rows, columns = size
        region = image.pixels[
            int(top * rows) : int(bottom * rows), int(left * columns) : int(right * columns)
        ]
        return float(region.mean())

    spine = mean(0.45, 0.75, 0.44, 0.52)
    lungs = [mean(0.24, 0.33, 0.22, 0.32), mean(0.24, 0.33, 0.66, 0.74)]
    air = mean(0.03, 0.07, 0.95, 0.99)
    assert spine > max(lungs) + 0.15
    assert min(lungs) > air + 0.1
