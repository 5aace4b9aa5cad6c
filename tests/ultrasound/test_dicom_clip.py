"""Pixels, times and scale of DICOM ultrasound."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate

from tests.media.dicom_files import dataset, save
from tests.ultrasound.scans import a4c, cine, region, scan
from xraygpt.common.errors import DataError
from xraygpt.ultrasound.clip import NotUltrasound
from xraygpt.ultrasound.source import read_clip

COLOURS = np.array(
    [[0, 0, 0], [255, 255, 255], [200, 30, 30], [30, 30, 200], [30, 180, 60], [128, 128, 128]],
    np.uint8,
)
PICTURE = np.repeat(np.repeat(COLOURS[None], 64, axis=0), 16, axis=1)  # (64, 96, 3), flat patches
CLIP = np.stack([PICTURE, PICTURE[:, ::-1]])


def to_ybr(rgb: np.ndarray) -> np.ndarray:
    """YBR_FULL of PS3.3 C.7.6.3.1.2, rounded to whole numbers."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]])
    return np.clip(np.rint(rgb @ matrix.T + [0, 128, 128]), 0, 255).astype(np.uint8)


def subsampled(ybr: np.ndarray) -> bytes:
    """YBR_FULL_422: Y Y Cb Cr for each pair of pixels."""
    pairs = ybr.reshape(*ybr.shape[:-2], -1, 2, 3)
    quads = np.concatenate([pairs[..., 0], pairs[..., :1, 1], pairs[..., :1, 2]], axis=-1)
    return quads.tobytes()


def jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=100, subsampling="4:2:2")
    return buffer.getvalue()


def colour_file(path: Path, form: str) -> Path:
    elements: dict[str, Any] = {"Modality": "US", "FrameTime": 40}
    ds = dataset(CLIP, **elements)
    if form == "YBR_FULL":
        ds.PixelData, ds.PhotometricInterpretation = to_ybr(CLIP).tobytes(), "YBR_FULL"
    elif form == "YBR_FULL planar":
        planes = to_ybr(CLIP).transpose(0, 3, 1, 2)
        ds.PixelData, ds.PhotometricInterpretation = planes.tobytes(), "YBR_FULL"
        ds.PlanarConfiguration = 1
    elif form == "YBR_FULL_422":
        ds.PixelData, ds.PhotometricInterpretation = subsampled(to_ybr(CLIP)), "YBR_FULL_422"
    elif form == "JPEG":
        ds.PixelData = encapsulate([jpeg(frame) for frame in CLIP])
        ds["PixelData"].is_undefined_length = True
        ds.PhotometricInterpretation = "YBR_FULL_422"
        return save(path, ds, uid.JPEGBaseline8Bit)
    elif form in ("JPEG 2000", "RLE"):
        syntax = uid.JPEG2000Lossless if form == "JPEG 2000" else uid.RLELossless
        ds.compress(syntax, generate_instance_uid=False)
        return save(path, ds, syntax)
    return save(path, ds)


@pytest.mark.parametrize(
    ("form", "tolerance"),
    [
        ("RGB", 0),
        ("YBR_FULL", 2),
        ("YBR_FULL planar", 2),
        ("YBR_FULL_422", 2),
        ("JPEG", 4),
        ("JPEG 2000", 0),
        ("RLE", 0),
    ],
)
def test_colours_are_converted_exactly_once(tmp_path, form: str, tolerance: int):
    clip = read_clip(colour_file(tmp_path / "x.dcm", form))
    assert clip.pixels.shape == CLIP.shape and clip.pixels.dtype == np.uint8
    inner = np.isin(np.arange(96) % 16, range(3, 13))  # JPEG spreads colours over edges
    difference = np.abs(clip.pixels.astype(int) - CLIP)[:, :, inner]
    assert difference.max() <= tolerance
    once_more = np.abs(to_ybr(clip.pixels).astype(int) - CLIP)
    assert once_more.max() > 50  # what a second conversion would do


def test_the_real_cine_has_the_colours_of_pydicom():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = pydicom.dcmread(a4c()).pixel_array  # RGB
    clip = read_clip(a4c())
    assert np.array_equal(clip.pixels, expected)
    tissue = clip.pixels[:, 60:200, 100:220].astype(int)  # grey: all channels alike
    assert np.abs(tissue - tissue.mean(-1, keepdims=True)).mean() < 2
    assert len(clip.warnings) == 1 and "x 84 to 595" in clip.warnings[0]
    assert clip.heart_rate is None  # the header says 0
    assert clip.times is not None and clip.times[-1] == pytest.approx(29 * 0.033333)


@pytest.mark.data
def test_reversible_and_irreversible_jpeg_2000_show_the_same(real_data):
    folder = real_data / "echo" / "dicom"
    one, two = (read_clip(folder / f"US1_J2K{kind}.dcm").pixels.astype(int) for kind in "IR")
    assert one.shape == two.shape == (1, 480, 640, 3)
    assert np.abs(one - two).mean() < 6
    bar = two[0, 165:175, 32:38].reshape(-1, 3).mean(0)  # orange, in the colour bar
    assert bar[0] > 180 and bar[0] > bar[1] + 60 > bar[2] + 120


def palette_file(path: Path) -> Path:
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    ds = dataset(levels, PhotometricInterpretation="PALETTE COLOR", Modality="US")
    for name, values in (("Red", 1024 * np.arange(64)), ("Green", np.zeros(64)),
                         ("Blue", 1024 * np.arange(63, -1, -1))):  # fmt: skip
        setattr(ds, f"{name}PaletteColorLookupTableDescriptor", [64, 0, 16])
        setattr(ds, f"{name}PaletteColorLookupTableData", values.astype("<u2").tobytes())
    return save(path, ds)


def test_palette_colours(tmp_path):
    pixels = read_clip(palette_file(tmp_path / "x.dcm")).pixels
    assert pixels.shape == (1, 8, 8, 3)
    level = np.arange(64).reshape(8, 8)
    assert np.abs(pixels[0, ..., 0] - level * 1024 * 255 / 65535).max() <= 0.5
    assert pixels[0, ..., 1].max() == 0
    assert np.abs(pixels[0, ..., 2] - (63 - level) * 1024 * 255 / 65535).max() <= 0.5


def test_grey_clips_of_8_bits_are_not_stretched(tmp_path):
    """A frame with another range of values must not get brighter: the clip would flicker."""
    stored = np.full((3, 8, 8), 40, np.uint8)
    stored[1, 0, 0] = 90
    clip = read_clip(cine(tmp_path / "x.dcm", stored))
    assert np.array_equal(clip.pixels, stored)
    inverted = read_clip(cine(tmp_path / "y.dcm", stored, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(inverted.pixels, 255 - stored)


def test_grey_clips_of_more_bits_share_one_range(tmp_path):
    stored = np.full((2, 8, 8), 1000, np.uint16)
    stored[0, 0, 0], stored[1, 0, 0] = 0, 4000
    pixels = read_clip(cine(tmp_path / "x.dcm", stored, BitsStored=12, HighBit=11)).pixels
    assert pixels[0, 1, 1] == pixels[1, 1, 1] == round(255 * 1000 / 4000)
    assert pixels[0, 0, 0] == 0 and pixels[1, 0, 0] == 255


@pytest.mark.parametrize(
    ("elements", "times", "source"),
    [
        ({"FrameTime": 40}, (0, 0.04, 0.08), "Frame Time"),
        ({"FrameTime": None, "FrameTimeVector": [0, 30, 70]}, (0, 0.03, 0.1), "Frame Time Vector"),
        ({"FrameTime": None, "CineRate": 50}, (0, 0.02, 0.04), "Cine Rate"),
        ({"FrameTime": None, "RecommendedDisplayFrameRate": 20}, (0, 0.05, 0.1),
         "Recommended Display Rate"),
        ({"FrameTime": None}, None, ""),
        ({"FrameTime": 0}, None, ""),
        ({"FrameTime": None, "FrameTimeVector": [0, 30, 0]}, None, ""),
    ],
)  # fmt: skip
def test_frame_times(tmp_path, elements: dict[str, Any], times: Any, source: str):
    clip = read_clip(cine(tmp_path / "x.dcm", np.zeros((3, 8, 8), np.uint8), **elements))
    assert clip.times == (times if times is None else pytest.approx(times))
    assert clip.times_from == source
    assert any("when the frames" in w for w in clip.warnings) is (times is None)


@pytest.mark.parametrize(("stated", "rate"), [(77, 77.0), (0, None), (999, None), (None, None)])
def test_heart_rate(tmp_path, stated: int | None, rate: float | None):
    clip = read_clip(cine(tmp_path / "x.dcm", np.zeros((2, 8, 8), np.uint8), HeartRate=stated))
    assert clip.heart_rate == rate


def test_scale_comes_from_the_regions_or_else_pixel_spacing(tmp_path):
    pixels = scan(frames=2)
    spaced = {"PixelSpacing": [0.3, 0.3]}
    valid = read_clip(cine(tmp_path / "a.dcm", pixels, region(), **spaced))
    assert (valid.spacing_mm, valid.spacing_from) == ((0.5, 0.5), "region table")
    none = read_clip(cine(tmp_path / "b.dcm", pixels, **spaced))
    assert (none.spacing_mm, none.spacing_from) == ((0.3, 0.3), "Pixel Spacing")
    wrong = read_clip(cine(tmp_path / "c.dcm", pixels, region((0, 0, 639, 479)), **spaced))
    assert (wrong.spacing_mm, wrong.spacing_from) == (None, "")


def test_other_modalities_are_no_ultrasound(tmp_path):
    ct = cine(tmp_path / "x.dcm", np.zeros((2, 8, 8), np.uint8), Modality="CT", SOPClassUID="1.2")
    with pytest.raises(NotUltrasound, match="modality is CT"):
        read_clip(ct)
    captured = cine(tmp_path / "y.dcm", np.zeros((2, 8, 8), np.uint8), Modality="OT")
    assert len(read_clip(captured).pixels) == 2


def test_damaged_files_are_refused_without_their_name(tmp_path):
    whole = cine(tmp_path / "Quimby.dcm", scan(frames=3)).read_bytes()
    for content in (b"", whole[:4000], whole[: len(whole) // 2], b"\0" * 128 + b"DICM"):
        (tmp_path / "Quimby.dcm").write_bytes(content)
        with pytest.raises(DataError) as error:
            read_clip(tmp_path / "Quimby.dcm")
        assert "Quimby" not in str(error.value)


def test_a_file_over_the_limit_is_refused_before_decoding(tmp_path):
    from dataclasses import replace

    from xraygpt.ultrasound.source import LIMITS

    path = cine(tmp_path / "x.dcm", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(DataError, match="more than the limit"):
        read_clip(path, replace(LIMITS, max_clip_samples=100))
