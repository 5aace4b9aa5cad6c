"""Outlines have the shapes, sizes and times of the media that the readers return."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from tests.media.dicom_files import dataset, save
from xraygpt.common.errors import DataError
from xraygpt.media.base import MediaRef, read_media_file
from xraygpt.media.frame_sampling import FrameSampling
from xraygpt.media.outline import is_constant, outline, zeros
from xraygpt.media.video import encode_mp4

STORED = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def picture(path, mode="RGB", size=(50, 30), **options):
    Image.effect_noise(size, 50).convert(mode).save(path, **options)
    return path


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(path, exif=exif)


def film(path, frames=12, size=(32, 48)):
    values = np.random.default_rng(0).integers(0, 255, (frames, *size, 3), dtype=np.uint8)
    path.write_bytes(encode_mp4(values, Fraction(10)))
    return path


def frames_of(folder, colours):
    return [picture(folder / f"f{i}.png", mode) for i, mode in enumerate(colours)]


CASES = {
    "grey": lambda p: MediaRef(picture(p / "a.png", "L")),
    "one bit": lambda p: MediaRef(picture(p / "a.png", "1")),
    "colour": lambda p: MediaRef(picture(p / "a.jpg")),
    "alpha": lambda p: MediaRef(picture(p / "a.png", "LA")),
    "palette": lambda p: MediaRef(picture(p / "a.png", "P")),
    "turned": lambda p: MediaRef(turned(p / "a.jpg", 6)),
    "upside down": lambda p: MediaRef(turned(p / "a.jpg", 3)),
    "a picture as a clip": lambda p: MediaRef(picture(p / "a.png", "L"), kind="clip"),
    "film": lambda p: MediaRef(film(p / "a.mp4")),
    "film at 4 fps": lambda p: MediaRef(film(p / "a.mp4"), sampling=FrameSampling(fps=4.0)),
    "frame of a film": lambda p: MediaRef(film(p / "a.mp4"), kind="image", index=3),
    "part of a film": lambda p: MediaRef(film(p / "a.mp4"), frames=(2, 9, 3)),
    "list of frames": lambda p: MediaRef(
        p / "f0.png", frame_files=frames_of(p, "LLL"), sampling=FrameSampling(fps=2.0)
    ),
    "list with colour": lambda p: MediaRef(p / "f0.png", frame_files=frames_of(p, ["L", "RGB"])),
    "dicom": lambda p: MediaRef(save(p / "a.dcm", dataset(STORED[0]))),
    "frames of dicom": lambda p: MediaRef(
        save(p / "a.dcm", dataset(STORED, FrameTime=40)), kind="clip"
    ),
    "volume": lambda p: MediaRef(save(p / "a.dcm", dataset(STORED)), kind="volume"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_file_without_values(name, tmp_path):
    ref = CASES[name](tmp_path)
    found, real = outline(ref), read_media_file(ref)
    assert found.data.shape == real.data.shape and found.data.dtype == real.data.dtype
    assert (found.kind, found.size, found.frame_times) == (real.kind, real.size, real.frame_times)
    assert found.clip == real.clip
    assert found.data.untyped_storage().nbytes() == 4


def test_a_large_jpeg_is_as_small_as_the_decoder_makes_it(tmp_path):
    ref = MediaRef(picture(tmp_path / "a.jpg", size=(640, 480)))
    small = outline(ref, min_side=100).data.shape
    assert small == read_media_file(ref, min_side=100).data.shape == (120, 160, 3)


def test_arrays_are_read(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 3), np.float32))
    assert outline(MediaRef(tmp_path / "a.npy")).data.sum() == 12


def test_damage_in_the_header_is_an_error_and_pixels_are_not_decoded(tmp_path):
    path = picture(tmp_path / "a.png", size=(400, 300))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert outline(MediaRef(path)).size == (300, 400)
    with pytest.raises(DataError, match=r"a\.png"):
        read_media_file(MediaRef(path))
    path.write_bytes(whole[:12])
    with pytest.raises(DataError, match=r"a\.png"):
        outline(MediaRef(path))
    with pytest.raises(DataError, match="no such file"):
        outline(MediaRef(tmp_path / "gone.png"))


def test_frames_of_different_sizes_are_an_error(tmp_path):
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", size=(50, 31))]
    with pytest.raises(DataError, match=r"b\.png.* same size"):
        outline(MediaRef(files[0], frame_files=files))


def test_constants_are_recognised():
    assert is_constant(zeros((3, 4, 5))) and is_constant(zeros((1, 3))[:1])
    assert not is_constant(torch.zeros(3, 4)) and not is_constant(torch.zeros(1, 4).expand(3, 4))
