"""`read_image` on PNG and JPEG, and what it refuses of any format: sizes, damage, leaks.

All files are made here. Expected values are written out; the arithmetic stands beside them.
"""

from __future__ import annotations

import ast
import logging
import os
import pickle
import random
import struct
import threading
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate

from tests.media.test_dicom import (
    EXPLICIT,
    MONO1,
    RAMP,
    dataset,
    jpeg_baseline,
    lut,
    read,
    rescale,
    save,
    u8,
    u16,
    voi,
    window,
)
from xraygpt.common.errors import ImageError
from xraygpt.media import dicom, pixels
from xraygpt.media.pixels import ReadLimits, frame_count, read_image

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)  # fifths of 255
GREY_SHOWN = [[0, 0.2, 0.4], [0.6, 0.8, 1]]


def put(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png(header: tuple[int, int, int, int], data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: (width, height, bit depth, colour type), raw scan lines, extra chunks."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


# ---- PNG and JPEG values -------------------------------------------------------------------------


def test_grey_8_bit_png(tmp_path: Path) -> None:
    image = read_image(put(tmp_path / "x.png", Image.fromarray(GREY)))
    np.testing.assert_allclose(image.pixels, GREY_SHOWN, atol=1e-7)
    assert (image.pixels.dtype, image.bits, image.source_format) == (np.float32, 8, "PNG")
    assert image.meta == {
        "rows": 2, "columns": 3, "frames": 1, "voi": "identity", "window": (128, 256),
        "values": (0, 255),
    }  # fmt: skip


def test_grey_16_bit_png_is_scaled_by_full_scale(tmp_path: Path) -> None:
    # 13107 / 65535 = 0.2, 32767 / 65535 = 0.49999; the image's own maximum plays no part
    stored = np.array([[0, 1, 13107, 32767]], np.uint16)
    image = read_image(put(tmp_path / "x.png", Image.fromarray(stored)))
    expected = np.array([[0, 1 / 65535, 0.2, 32767 / 65535]], np.float32)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.bits == 16


def test_1_bit_png(tmp_path: Path) -> None:
    image = read_image(put(tmp_path / "x.png", Image.fromarray(GREY > 100).convert("1")))
    assert image.pixels.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert image.bits == 1


def test_palette_png(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 51, 255, 102, 0, 0, 255, 255, 255])
    expected = [[[0, 0.2, 1], [0.4, 0, 0], [1, 1, 1]]]
    path = put(tmp_path / "x.png", image)
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-7)
    put(path, image, transparency=2)  # entry 2 is clear: black, not white
    expected[0][2] = [0, 0, 0]
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-7)


def test_alpha_is_laid_on_black(tmp_path: Path) -> None:
    # 255 * 51/255 -> 0.2; 102 * 0 -> 0; 204 * 255/255 -> 0.8
    la = Image.fromarray(np.array([[[255, 51], [102, 0], [204, 255]]], np.uint8), "LA")
    pixels = read_image(put(tmp_path / "la.png", la)).pixels
    np.testing.assert_allclose(pixels, [[0.2, 0, 0.8]], atol=1e-7)
    rgba = Image.fromarray(np.array([[[255, 0, 51, 51], [9, 9, 9, 0]]], np.uint8), "RGBA")
    pixels = read_image(put(tmp_path / "rgba.png", rgba)).pixels
    np.testing.assert_allclose(pixels, [[[0.2, 0, 0.04], [0, 0, 0]]], atol=1e-7)


@pytest.mark.parametrize(("depth", "clear"), [(8, 204), (16, 52428)])
def test_a_clear_grey_value_is_black(depth: int, clear: int, tmp_path: Path) -> None:
    line = struct.pack(">3B" if depth == 8 else ">3H", clear // 4, clear, clear // 2)
    content = png((3, 1, depth, 0), b"\0" + line, (b"tRNS", struct.pack(">H", clear)))
    (tmp_path / "x.png").write_bytes(content)
    np.testing.assert_allclose(read_image(tmp_path / "x.png").pixels, [[0.2, 0, 0.4]], atol=1e-6)


def test_rgb_png(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[0, 51, 255], [102, 0, 204]]], np.uint8))
    pixels = read_image(put(tmp_path / "x.png", image)).pixels
    np.testing.assert_allclose(pixels, [[[0, 0.2, 1], [0.4, 0, 0.8]]], atol=1e-7)


@pytest.mark.parametrize(("mode", "shown"), [("L", 0.8), ("RGB", [0.8] * 3), ("CMYK", [0.8] * 3)])
def test_jpeg_modes(mode: str, shown: Any, tmp_path: Path) -> None:
    image = Image.new("L", (16, 8), 204).convert("RGB").convert(mode)
    read_back = read_image(put(tmp_path / "x.jpg", image, quality=100))
    assert read_back.source_format == "JPEG"
    assert read_back.pixels.shape[:2] == (8, 16)
    np.testing.assert_allclose(read_back.pixels[0, 0], shown, atol=2 / 255)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    """The file holds what a camera stores when turned; upright it is always the same scene."""
    upright = np.zeros((16, 32), np.uint8)
    upright[:8, :16] = 255  # bright: upper left
    upright[8:, :16] = 128
    stored = {
        1: upright,
        2: upright[:, ::-1],  # row 0 top, column 0 right
        3: upright[::-1, ::-1],  # bottom, right
        4: upright[::-1],  # bottom, left
        5: upright.T,  # left, top
        6: upright.T[::-1],  # right, top
        7: upright.T[::-1, ::-1],  # right, bottom
        8: upright.T[:, ::-1],  # left, bottom
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"x.{kind}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=100)
    pixels = read_image(path).pixels
    np.testing.assert_allclose(pixels, upright / 255, atol=3 / 255)
    assert read_image(path).meta["columns"] == 32


def test_exif_orientation_of_16_bit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored's first row is the right side upright
    path = put(tmp_path / "x.png", Image.fromarray(u16(0, 65535)), exif=exif)
    assert read_image(path).pixels.tolist() == [[0], [1]]


@pytest.mark.parametrize("kind", ["png", "jpg"])  # Pillow raises on the one and not on the other
def test_an_unreadable_exif_block_turns_nothing(kind: str, tmp_path: Path) -> None:
    path = put(tmp_path / f"x.{kind}", Image.fromarray(GREY), exif=b"Exif\0\0no TIFF header")
    assert read_image(path).pixels.shape == (2, 3)


def test_window_on_stored_values(tmp_path: Path) -> None:
    path = put(tmp_path / "x.png", Image.fromarray(GREY))
    # LINEAR c 102.5 w 205: (x - 102) / 204 + 0.5 = x / 204
    image = read_image(path, window=(102.5, 205))
    np.testing.assert_allclose(image.pixels, [[0, 0.25, 0.5], [0.75, 1, 1]], atol=1e-6)
    assert image.meta["voi"] == "argument"
    sixteen = put(tmp_path / "y.png", Image.fromarray(u16(100, 300, 501)))
    # c 301 w 401: (x - 300.5) / 400 + 0.5: 100 -> -0.00125, 300 -> 0.49875, 501 -> 1.00125
    shown = read_image(sixteen, window=(301, 401)).pixels
    np.testing.assert_allclose(shown, [[0, 0.49875, 1]], atol=1e-6)
    color = put(tmp_path / "z.png", Image.new("RGB", (2, 2)))
    with pytest.raises(ImageError, match="window applies to grey"):
        read_image(color, window=(1, 2))


def test_frames_of_a_png(tmp_path: Path) -> None:
    path = put(tmp_path / "x.png", Image.fromarray(GREY))
    assert frame_count(path) == 1
    assert read_image(path, frame=None).pixels.shape == (1, 2, 3)
    with pytest.raises(ImageError, match="has only frame 0"):
        read_image(path, frame=1)


# ---- formats are told by content -----------------------------------------------------------------


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    misnamed = put(tmp_path / "x.dcm", Image.fromarray(GREY), format="PNG")
    assert read_image(misnamed).source_format == "PNG"
    ds = save(tmp_path / "x.png", dataset(u8(0, 255)))
    assert read_image(str(ds)).source_format == "DICOM"
    data = bytearray(ds.read_bytes())
    data[:8] = b"\x89PNG\r\n\x1a\n"  # a preamble is free for other formats' marks (PS3.10 7.1)
    ds.write_bytes(data)
    assert read_image(ds).source_format == "DICOM"
    assert frame_count(ds) == 1


@pytest.mark.parametrize(
    "content",
    [b"no image", b"GIF89a" + b"\0" * 300, b"II*\0" + b"\0" * 300, b"\x08\0", b"%PDF-1.7" * 99],
)
def test_other_content(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(content)
    for reader in (read_image, frame_count):
        with pytest.raises(ImageError, match="not a PNG, JPEG or DICOM file; convert"):
            reader(tmp_path / "x.png")


def test_no_file(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "none.png", "no such file"),
        (tmp_path, "not a regular file"),
        (tmp_path / "none.png" / "x", "no such file"),
        ("nul\0.png", "cannot be decoded"),
    ]:
        with pytest.raises(ImageError, match=message) as caught:
            read_image(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.dcm"])
def test_empty_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ImageError, match="is empty"):
        read_image(tmp_path / name)


@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "x.png")


# ---- sizes and damage ----------------------------------------------------------------------------


def test_file_size_limit(tmp_path: Path) -> None:
    path = put(tmp_path / "x.png", Image.fromarray(GREY))
    size = path.stat().st_size
    read_image(path, limits=ReadLimits(max_file_bytes=size))
    with pytest.raises(ImageError, match=f"has {size} bytes, over the limit of {size - 1}"):
        read_image(path, limits=ReadLimits(max_file_bytes=size - 1))


def test_pixel_limit(tmp_path: Path) -> None:
    path = put(tmp_path / "x.png", Image.new("RGB", (10, 20)))
    read_image(path, limits=ReadLimits(max_pixels=600))
    with pytest.raises(ImageError, match=r"10 x 20 pixels of 3 sample.*over the limit of 599"):
        read_image(path, limits=ReadLimits(max_pixels=599))


@pytest.mark.parametrize("side", [30_000, 9_700])  # past Pillow's error, past its warning
def test_huge_header_is_refused_without_decoding(side: int, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png((side, side, 8, 0), b"\0" * 1000))
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(ImageError, match="more than Pillow's limit"):
        read_image(tmp_path / "x.png", limits=ReadLimits(max_pixels=10**12))
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 2
    assert peak < 5e6


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8))
    path = put(tmp_path / f"x.{kind}", noise)
    data = path.read_bytes()
    for kept in (0.7, 0.3, 0.05):
        path.write_bytes(data[: int(len(data) * kept)])
        with pytest.raises(ImageError, match="corrupt"):
            read_image(path)


def test_reading_is_refused_while_truncated_images_are_let_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path / "x.png", Image.fromarray(GREY))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES is on"):
        read_image(path)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_random_damage_of_a_raster(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = random.Random(11)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8))
    data = put(tmp_path / f"x.{kind}", noise, exif=exif).read_bytes()
    check_damage(tmp_path / f"x.{kind}", data, rng, start=0)


def check_damage(path: Path, data: bytes, rng: random.Random, start: int) -> None:
    """100 damaged copies: each is an image in [0, 1], or an ImageError."""
    outcomes = {"image": 0, "error": 0}
    for _ in range(100):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 2, 20])):
            damaged[rng.randrange(start, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            shown = read_image(path).pixels
        except ImageError:
            outcomes["error"] += 1
            continue
        outcomes["image"] += 1
        assert shown.dtype == np.float32
        assert 0 <= shown.min() <= shown.max() <= 1
    assert min(outcomes.values()) > 0, outcomes  # both ways were tried


def test_image_error_survives_the_way_from_a_worker() -> None:
    """torch rebuilds a worker's exception from its message alone."""
    error = pickle.loads(pickle.dumps(ImageError("x.png: is empty")))
    assert isinstance(error, ValueError)
    assert str(error) == "x.png: is empty"


def test_imports_are_light() -> None:
    """Neither torch nor, for PNG users, pydicom or Pillow: not at module level."""
    for module in (pixels, dicom):
        tree = ast.parse(Path(module.__file__).read_text())
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {a.name for n in top if isinstance(n, ast.Import) for a in n.names}
        names |= {str(n.module) for n in top if isinstance(n, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & {"torch", "PIL", "pydicom"}
        ours = {name for name in names if name.startswith("xraygpt")}
        light = {"common.errors", "media.picture", "media.grey", "media.dicom_lut"}
        assert ours <= {f"xraygpt.{name}" for name in light}


# ---- DICOM that is refused ---------------------------------------------------------------------


def without(keyword: str) -> Dataset:
    ds = dataset(u8(0, 1))
    delattr(ds, keyword)
    return ds


REFUSED: dict[str, tuple[Dataset, str]] = {
    "no pixel data": (without("PixelData"), "no PixelData"),
    "no photometric": (without("PhotometricInterpretation"), "lacks PhotometricInterpretation"),
    "no rows": (without("Rows"), "lacks Rows"),
    "zero rows": (dataset(u8(0, 1), Rows=0), "Rows that is no whole number"),
    "short": (dataset(u8(0, 1), Rows=9), r"cut short: PixelData has 2 of 18 bytes"),
    "frames missing": (dataset(u8(0, 1), NumberOfFrames=5), "cut short: PixelData has 2 of 10"),
    "negative frames": (dataset(u8(0, 1), NumberOfFrames=-1), "NumberOfFrames that is no whole"),
    "unknown photometric": (
        dataset(u8(0, 1), PhotometricInterpretation="HSV"), "unknown Photometric"
    ),
    "samples": (dataset(u8(0, 1), SamplesPerPixel=3), "3 samples per pixel, which MONOCHROME2"),
    "bits": (dataset(u8(0, 1), BitsStored=12), r"bits stored, high bit \+ 1, allocated of \[12, 8"),
    "high bit": (dataset(u16(0, 1), 16, HighBit=11), r"\[16, 12, 16\]"),
    "slope 0": (dataset(u8(0, 1), RescaleSlope=0), "RescaleSlope of 0"),
    "table without descriptor": (
        dataset(u8(0, 1), VOILUTSequence=[Dataset()]), "without its descriptor"
    ),
    "table cut short": (
        dataset(u8(0, 1), **voi([9, 0, 16], [1, 2, 3])), "of 3 entries, not 9"
    ),
    "table of 17 bits": (
        dataset(u8(0, 1), ModalityLUTSequence=lut([2, 0, 17], [1, 2])), "of 17 bits"
    ),
    "unknown voi function": (
        dataset(u8(0, 1), **window(1, 2, "LOG")), "VOI LUT Function"
    ),
    "ybr of 16 bits": (
        dataset(np.zeros((1, 2, 3), np.uint16), PhotometricInterpretation="YBR_FULL"), "YBR of more"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    ds, message = REFUSED[name]
    path = save(tmp_path / "x.dcm", ds)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(str(path))
    assert "ecret" not in str(caught.value)
    assert caught.value.__suppress_context__  # nobody is shown pydicom's traceback


def test_narrow_window_argument_is_refused(tmp_path: Path) -> None:
    for narrow in ((1.0, 0.5), (1.0, 0.0), (float("nan"), 5.0), (0.0, float("inf"))):
        with pytest.raises(ImageError, match=r"window"):
            read(tmp_path, dataset(u8(0, 1)), window=narrow)


@pytest.mark.parametrize(
    "content", [b"a report and no image\n" * 9, b"<!DOCTYPE html><html></html>" * 9, b"\0" * 500]
)
@pytest.mark.parametrize("name", ["x.dcm", "x.DICOM"])
def test_other_content_named_dicom(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match="no DICOM image") as caught:
        read_image(tmp_path / name)
    assert "report" not in str(caught.value).removeprefix(str(tmp_path))


def test_dicomdir(tmp_path: Path) -> None:
    ds = dataset(u8(0, 1))
    ds.SOPClassUID = uid.MediaStorageDirectoryStorage
    with pytest.raises(ImageError, match="is a DICOMDIR"):
        read(tmp_path, ds)


def test_unknown_transfer_syntax(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(u8(0, 1)))
    known = b"1.2.840.10008.1.2.1\0"
    path.write_bytes(path.read_bytes().replace(known, b"1.2.840.10008.1.2.9\0"))
    with pytest.raises(ImageError, match="no known transfer syntax"):
        read_image(path)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.9\0", b"1.2.840.99999.1.2.1\0"))
    with pytest.raises(ImageError, match="no known transfer syntax"):
        read_image(path)


def test_video_is_not_supported(tmp_path: Path) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData = encapsulate([b"\0" * 8])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match=r"MPEG2.*not supported; export it uncompressed"):
        read(tmp_path, ds, uid.MPEG2MPML)


def test_huge_header_is_refused_before_decoding(tmp_path: Path) -> None:
    huge = dataset(u8(0, 1), Rows=30_000, Columns=30_000)
    with pytest.raises(ImageError, match=r"30000 x 30000 pixels of 1 sample.*100,000,000"):
        read(tmp_path, huge)
    # 65535 * 65535 * 3 * (2**31 - 1) is about 2.8e19, past 64 bits
    ds = dataset(np.zeros((1, 1, 3), np.uint8), NumberOfFrames=2**31 - 1, Rows=65535, Columns=65535)
    with pytest.raises(ImageError, match="over the limit"):
        read(tmp_path, ds, frame=None)


def test_frames_count_towards_the_limit_only_when_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(np.zeros((10, 4, 5), np.uint8)))
    limits = ReadLimits(max_pixels=199)
    assert read_image(path, frame=9, limits=limits).pixels.shape == (4, 5)
    with pytest.raises(ImageError, match=r"in 10 frame"):
        read_image(path, frame=None, limits=limits)
    assert read_image(path, frame=None, limits=ReadLimits(max_pixels=200)).pixels.shape[0] == 10


def test_deflate_bomb(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.dcm",
        dataset(np.zeros((1000, 1000), np.uint8)),
        uid.DeflatedExplicitVRLittleEndian,
    )
    assert path.stat().st_size < 5_000
    with pytest.raises(ImageError, match=r"inflates to more than the limit of 500,000 bytes"):
        read_image(path, limits=ReadLimits(max_file_bytes=500_000))
    with pytest.raises(ImageError, match="inflates"):
        frame_count(path, limits=ReadLimits(max_file_bytes=500_000))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="deflated DICOM that is cut short"):
        read_image(path)


def compressed(folder: Path, syntax: uid.UID = uid.JPEG2000Lossless) -> Path:
    ds = dataset(RAMP, 12)
    ds.compress(syntax, generate_instance_uid=False)
    return save(folder / "x.dcm", ds, syntax)


def test_codestream_larger_than_its_header_is_refused_undecoded(tmp_path: Path) -> None:
    path = compressed(tmp_path)
    data = bytearray(path.read_bytes())
    siz = data.index(b"\xff\x4f\xff\x51")
    assert struct.unpack(">II", data[siz + 8 : siz + 16]) == (32, 32)
    data[siz + 8 : siz + 16] = struct.pack(">II", 60_000, 60_000)
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"\(60000, 60000, 1\).*inside, but the header says"):
        read_image(path)
    path = jpeg_baseline(9, tmp_path)
    path.write_bytes(
        path.read_bytes().replace(b"\x08\0\x10\0\x10\x01", b"\x08\xff\xff\xff\xff\x01")
    )
    with pytest.raises(ImageError, match=r"\(65535, 65535, 1\).*inside"):
        read_image(path)


def test_codestream_cut_short_is_refused(tmp_path: Path) -> None:
    """openjpeg decodes half a codestream into half an image without a word."""
    ds = dataset(RAMP, 12)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    frame = ds.PixelData[16:]  # after the empty offset table and the item's own header
    ds.PixelData = encapsulate([frame[: len(frame) // 2]])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(ImageError, match="no end marker"):
        read(tmp_path, ds, uid.JPEG2000Lossless)


@pytest.mark.parametrize("syntax", [EXPLICIT, uid.JPEG2000Lossless, uid.RLELossless])
@pytest.mark.parametrize("kept", [0.3, 0.7, 0.97])
def test_truncated_files(syntax: uid.UID, kept: float, tmp_path: Path) -> None:
    path = compressed(tmp_path, syntax) if syntax.is_encapsulated else None
    path = path or save(tmp_path / "x.dcm", dataset(RAMP, 12))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ImageError, match=r"cut short|lacks"):
        read_image(path)


# ---- nothing leaks -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*VR CS")  # pydicom, on writing it
def test_meta_tells_of_the_picture_and_not_of_the_patient(tmp_path: Path) -> None:
    ds = dataset(RAMP, 12, **MONO1)
    ds.Modality, ds.ViewPosition, ds.ImageLaterality = "DX", "PA", "U"
    ds.BodyPartExamined = "Mr Doe's chest"  # not a code string, so free text, so dropped
    ds.PixelSpacing, ds.ImagerPixelSpacing = [0.14, 0.15], [0, 0]
    assert dict(read(tmp_path, ds).meta) == {
        "rows": 32,
        "columns": 32,
        "frames": 1,
        "photometric": "MONOCHROME1",
        "transfer_syntax": "Explicit VR Little Endian",
        "modality": "DX",
        "view_position": "PA",
        "laterality": "U",
        "pixel_spacing": (0.14, 0.15),
        "voi": "range",
        "window": (2040.5, 4081),
        "values": (0, 4080),
    }


@pytest.mark.filterwarnings("ignore:.*VR CS")  # pydicom, on writing it
def test_no_warning_and_no_log_line_leaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ds = dataset(RAMP, 12)
    ds.PixelData += b"\0" * 6  # pydicom warns of excess padding
    ds.Modality = "secret, and longer than a code string"  # and of this
    path = save(tmp_path / "x.dcm", ds)
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(compressed(tmp_path / "..").read_bytes().replace(b"\xff\x93", b"\xff\x00"))
    before = list(warnings.filters)
    caplog.clear()
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        read_image(path)
        with pytest.raises(ImageError):
            read_image(broken)  # pydicom logs the decoder's traceback
    assert not seen
    assert not [record for record in caplog.records if record.name != "asyncio"]
    assert warnings.filters == before
    assert logging.getLogger("pydicom").propagate


def test_threads_leave_the_warning_filters_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "x.dcm", dataset(RAMP, 12))
    before, results = list(warnings.filters), []

    def work() -> None:
        for _ in range(10):
            results.append(read_image(path).pixels)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 60
    assert all((pixels == results[0]).all() for pixels in results)
    assert warnings.filters == before
    assert logging.getLogger("pydicom").propagate


@pytest.mark.parametrize("syntax", [EXPLICIT, uid.RLELossless, uid.JPEG2000Lossless])
def test_random_damage_of_a_dicom(syntax: uid.UID, tmp_path: Path) -> None:
    elements = voi([3, 0, 12], [0, 9, 99]) | window(9, 9) | rescale(1, 0)
    ds = dataset(RAMP, 12, **elements)
    if syntax.is_encapsulated:
        ds.compress(syntax, generate_instance_uid=False)
    path = save(tmp_path / "x.dcm", ds, syntax)
    check_damage(path, path.read_bytes(), random.Random(20), start=128)
