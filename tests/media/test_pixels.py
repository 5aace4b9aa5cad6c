"""`read_image` on PNG and JPEG, format detection, size limits and damaged files.

All files are generated. Expected values are computed by hand, with the arithmetic next to them.
"""

from __future__ import annotations

import ast
import os
import pickle
import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from tests.media.damage import check_damaged_copies
from tests.media.dicom_files import dataset, save, u8, u16
from xraygpt.common.errors import ImageError
from xraygpt.media import dicom, dicom_decode, dicom_header, dicom_lut, dicom_render, pixels
from xraygpt.media.pixels import ReadLimits, frame_count, read_image

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)  # fifths of 255
GREY_SHOWN = [[0, 0.2, 0.4], [0.6, 0.8, 1]]


def save_image(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def png(header: tuple[int, int, int, int], data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from its header (width, height, bit depth, colour type), raw scan lines and chunks."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in parts
    )


# ---- PNG and JPEG values -------------------------------------------------------------------------


def test_grey_8_bit_png(tmp_path: Path) -> None:
    image = read_image(save_image(tmp_path / "x.png", Image.fromarray(GREY)))
    np.testing.assert_allclose(image.pixels, GREY_SHOWN, atol=1e-7)
    assert (image.pixels.dtype, image.bits, image.source_format) == (np.float32, 8, "PNG")
    assert image.meta == {
        "rows": 2, "columns": 3, "frames": 1, "voi": "identity", "window": (128, 256),
        "values": (0, 255),
    }  # fmt: skip


def test_grey_16_bit_png_is_scaled_by_full_scale(tmp_path: Path) -> None:
    # 13107 / 65535 = 0.2, 32767 / 65535 = 0.49999; the image's maximum does not matter
    stored = np.array([[0, 1, 13107, 32767]], np.uint16)
    image = read_image(save_image(tmp_path / "x.png", Image.fromarray(stored)))
    expected = np.array([[0, 1 / 65535, 0.2, 32767 / 65535]], np.float32)
    np.testing.assert_array_equal(image.pixels, expected)
    assert image.bits == 16


def test_1_bit_png(tmp_path: Path) -> None:
    image = read_image(save_image(tmp_path / "x.png", Image.fromarray(GREY > 100).convert("1")))
    assert image.pixels.tolist() == [[0, 0, 1], [1, 1, 1]]
    assert image.bits == 1


def test_palette_png(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette([0, 51, 255, 102, 0, 0, 255, 255, 255])
    expected = [[[0, 0.2, 1], [0.4, 0, 0], [1, 1, 1]]]
    path = save_image(tmp_path / "x.png", image)
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-7)
    save_image(path, image, transparency=2)  # entry 2 is transparent: black, not white
    expected[0][2] = [0, 0, 0]
    np.testing.assert_allclose(read_image(path).pixels, expected, atol=1e-7)


def test_alpha_is_blended_onto_black(tmp_path: Path) -> None:
    # 255 * 51/255 -> 0.2; 102 * 0 -> 0; 204 * 255/255 -> 0.8
    la = Image.fromarray(np.array([[[255, 51], [102, 0], [204, 255]]], np.uint8), "LA")
    pixels = read_image(save_image(tmp_path / "la.png", la)).pixels
    np.testing.assert_allclose(pixels, [[0.2, 0, 0.8]], atol=1e-7)
    rgba = Image.fromarray(np.array([[[255, 0, 51, 51], [9, 9, 9, 0]]], np.uint8), "RGBA")
    pixels = read_image(save_image(tmp_path / "rgba.png", rgba)).pixels
    np.testing.assert_allclose(pixels, [[[0.2, 0, 0.04], [0, 0, 0]]], atol=1e-7)


@pytest.mark.parametrize(("depth", "transparent"), [(8, 204), (16, 52428)])
def test_a_transparent_grey_value_is_black(depth: int, transparent: int, tmp_path: Path) -> None:
    line = struct.pack(
        ">3B" if depth == 8 else ">3H", transparent // 4, transparent, transparent // 2
    )
    content = png((3, 1, depth, 0), b"\0" + line, (b"tRNS", struct.pack(">H", transparent)))
    (tmp_path / "x.png").write_bytes(content)
    np.testing.assert_allclose(read_image(tmp_path / "x.png").pixels, [[0.2, 0, 0.4]], atol=1e-6)


def test_rgb_png(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[[0, 51, 255], [102, 0, 204]]], np.uint8))
    pixels = read_image(save_image(tmp_path / "x.png", image)).pixels
    np.testing.assert_allclose(pixels, [[[0, 0.2, 1], [0.4, 0, 0.8]]], atol=1e-7)


@pytest.mark.parametrize(
    ("mode", "expected"), [("L", 0.8), ("RGB", [0.8] * 3), ("CMYK", [0.8] * 3)]
)
def test_jpeg_modes(mode: str, expected: Any, tmp_path: Path) -> None:
    image = Image.new("L", (16, 8), 204).convert("RGB").convert(mode)
    decoded = read_image(save_image(tmp_path / "x.jpg", image, quality=100))
    assert decoded.source_format == "JPEG"
    assert decoded.pixels.shape[:2] == (8, 16)
    np.testing.assert_allclose(decoded.pixels[0, 0], expected, atol=2 / 255)


@pytest.mark.parametrize("kind", ["png", "jpg"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int, kind: str, tmp_path: Path) -> None:
    """Files of a rotated camera; all show the same upright scene."""
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
    exif[0x0112] = 6  # the first stored row is the right side
    path = save_image(tmp_path / "x.png", Image.fromarray(u16(0, 65535)), exif=exif)
    assert read_image(path).pixels.tolist() == [[0], [1]]


@pytest.mark.parametrize("kind", ["png", "jpg"])  # Pillow raises on only one of them
def test_an_unreadable_exif_block_is_ignored(kind: str, tmp_path: Path) -> None:
    path = save_image(tmp_path / f"x.{kind}", Image.fromarray(GREY), exif=b"Exif\0\0no TIFF header")
    assert read_image(path).pixels.shape == (2, 3)


def test_window_on_stored_values(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", Image.fromarray(GREY))
    # LINEAR c 102.5 w 205: (x - 102) / 204 + 0.5 = x / 204
    image = read_image(path, window=(102.5, 205))
    np.testing.assert_allclose(image.pixels, [[0, 0.25, 0.5], [0.75, 1, 1]], atol=1e-6)
    assert image.meta["voi"] == "argument"
    sixteen = save_image(tmp_path / "y.png", Image.fromarray(u16(100, 300, 501)))
    # c 301 w 401: (x - 300.5) / 400 + 0.5: 100 -> -0.00125, 300 -> 0.49875, 501 -> 1.00125
    pixels = read_image(sixteen, window=(301, 401)).pixels
    np.testing.assert_allclose(pixels, [[0, 0.49875, 1]], atol=1e-6)
    color = save_image(tmp_path / "z.png", Image.new("RGB", (2, 2)))
    with pytest.raises(ImageError, match="window applies to grey"):
        read_image(color, window=(1, 2))


def test_frames_of_a_png(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", Image.fromarray(GREY))
    assert frame_count(path) == 1
    assert read_image(path, frame=None).pixels.shape == (1, 2, 3)
    with pytest.raises(ImageError, match="has only frame 0"):
        read_image(path, frame=1)


# ---- format detection --------------------------------------------------------------------------


def test_the_file_name_does_not_matter(tmp_path: Path) -> None:
    misnamed = save_image(tmp_path / "x.dcm", Image.fromarray(GREY), format="PNG")
    assert read_image(misnamed).source_format == "PNG"
    ds = save(tmp_path / "x.png", dataset(u8(0, 255)))
    assert read_image(str(ds)).source_format == "DICOM"
    data = bytearray(ds.read_bytes())
    data[:8] = b"\x89PNG\r\n\x1a\n"  # allowed in a preamble (PS3.10 7.1)
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
def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read_image(tmp_path / "x.png")


# ---- sizes and damage ----------------------------------------------------------------------------


def test_file_size_limit(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", Image.fromarray(GREY))
    size = path.stat().st_size
    read_image(path, limits=ReadLimits(max_file_bytes=size))
    with pytest.raises(ImageError, match=f"has {size} bytes, over the limit of {size - 1}"):
        read_image(path, limits=ReadLimits(max_file_bytes=size - 1))


def test_pixel_limit(tmp_path: Path) -> None:
    path = save_image(tmp_path / "x.png", Image.new("RGB", (10, 20)))
    read_image(path, limits=ReadLimits(max_pixels=600))
    with pytest.raises(ImageError, match=r"10 x 20 pixels of 3 sample.*over the limit of 599"):
        read_image(path, limits=ReadLimits(max_pixels=599))


@pytest.mark.parametrize("side", [30_000, 9_700])  # past Pillow's error, past its warning
def test_huge_header_is_refused_without_decoding(side: int, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png((side, side, 8, 0), b"\0" * 1000))
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(ImageError, match="more than Pillow's limit"):
        read_image(tmp_path / "x.png", limits=ReadLimits(max_pixels=10**12))
    elapsed, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert elapsed < 2
    assert peak < 5e6


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_truncated(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8))
    path = save_image(tmp_path / f"x.{kind}", noise)
    data = path.read_bytes()
    for fraction in (0.7, 0.3, 0.05):
        path.write_bytes(data[: int(len(data) * fraction)])
        with pytest.raises(ImageError, match="corrupt"):
            read_image(path)


def test_reading_is_refused_while_pillow_accepts_truncated_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_image(tmp_path / "x.png", Image.fromarray(GREY))
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES is on"):
        read_image(path)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_random_damage_of_a_raster(kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = random.Random(11)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8))
    data = save_image(tmp_path / f"x.{kind}", noise, exif=exif).read_bytes()
    check_damaged_copies(tmp_path / f"x.{kind}", data, rng, start=0)


def test_image_error_can_be_sent_from_a_worker() -> None:
    """torch rebuilds a worker's exception from its message alone."""
    error = pickle.loads(pickle.dumps(ImageError("x.png: is empty")))
    assert isinstance(error, ValueError)
    assert str(error) == "x.png: is empty"


def top_level_imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return names


def test_imports_are_light() -> None:
    """No module-level import of torch, Pillow or pydicom, which PNG users may not have."""
    light = {"common.errors", "media.picture", "media.grey", "media.dicom_lut"}
    light |= {"media.dicom_header", "media.dicom_decode", "media.dicom_render"}
    for module in (pixels, dicom, dicom_header, dicom_decode, dicom_render, dicom_lut):
        names = top_level_imports(Path(module.__file__))
        assert not {name.split(".")[0] for name in names} & {"torch", "PIL", "pydicom"}
        ours = {name for name in names if name.startswith("xraygpt")}
        assert ours <= {f"xraygpt.{name}" for name in light}
