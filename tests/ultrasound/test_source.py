"""Videos and NIfTI files, and files that are neither."""

from __future__ import annotations

import numpy as np
import pytest

from tests.media.video_files import write_video
from tests.ultrasound.scans import scan
from xraygpt.common.errors import DataError, InputError
from xraygpt.ultrasound.clip import NotUltrasound
from xraygpt.ultrasound.source import find_files, read_clip

nibabel = pytest.importorskip("nibabel")


@pytest.mark.parametrize("suffix", ["mp4", "avi", "mov", "mkv"])
def test_videos(tmp_path, suffix: str):
    frames = list(np.repeat(scan(frames=4)[..., None], 3, axis=-1))
    clip = read_clip(write_video(tmp_path / f"x.{suffix}", frames, rate=25))
    assert clip.form == "video" and clip.pixels.shape[:3] == (4, 240, 320)
    assert clip.fps == pytest.approx(25, rel=0.02)
    grey = clip.pixels if clip.pixels.ndim == 3 else clip.pixels[..., 0]
    assert np.abs(grey.astype(int) - scan(frames=4)).mean() < 6  # lossy


def test_webm(tmp_path):
    frames = list(np.repeat(scan(frames=3)[..., None], 3, axis=-1))
    path = write_video(tmp_path / "x.webm", frames, rate=25, codec="libvpx-vp9")
    assert read_clip(path).pixels.shape[:3] == (3, 240, 320)


def write_nifti(path, values: np.ndarray, *, seconds: float = 0.0, mm: float = 0.3):
    image = nibabel.Nifti1Image(values, np.diag([mm, mm, 1.0, 1.0]))
    image.header.set_xyzt_units("mm", "sec")
    if seconds:
        image.header["pixdim"][4] = seconds
    nibabel.save(image, path)
    return path


def test_nifti_of_columns_rows_frames(tmp_path):
    pixels = scan(frames=5)
    clip = read_clip(write_nifti(tmp_path / "x.nii.gz", pixels.transpose(2, 1, 0)))
    assert np.array_equal(clip.pixels, pixels)
    assert clip.times is None and any("third dimension" in w for w in clip.warnings)
    assert clip.spacing_mm == pytest.approx((0.3, 0.3))


def test_nifti_frames_keep_their_order_if_the_affine_points_back(tmp_path):
    pixels = scan(frames=5)
    image = nibabel.Nifti1Image(pixels.transpose(2, 1, 0), np.diag([0.3, 0.3, -1.0, 1.0]))
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "x.nii")
    assert np.array_equal(read_clip(tmp_path / "x.nii").pixels, pixels)


def test_nifti_with_times(tmp_path):
    values = scan(frames=20).transpose(2, 1, 0)[:, :, None]
    clip = read_clip(write_nifti(tmp_path / "x.nii", values, seconds=0.04))
    assert clip.times is not None and clip.fps == pytest.approx(25)


def test_nifti_values_in_0_to_1_are_stretched(tmp_path):
    values = (scan(frames=3) / 255).astype(np.float32)
    clip = read_clip(write_nifti(tmp_path / "x.nii", values.transpose(2, 1, 0)))
    assert clip.pixels.max() == 255 and any("stretched" in w for w in clip.warnings)


def test_label_maps_and_volumes_over_time_are_refused(tmp_path):
    labels = np.zeros((20, 20, 4), np.uint8)
    labels[5:9] = 2
    with pytest.raises(NotUltrasound, match="label map"):
        read_clip(write_nifti(tmp_path / "x_gt.nii", labels))
    with pytest.raises(DataError, match="3 slices at 4 times"):
        read_clip(write_nifti(tmp_path / "y.nii", np.full((9, 9, 3, 4), 90, np.uint8)))


def test_other_files(tmp_path):
    (tmp_path / "README.txt").write_text("about this study")
    with pytest.raises(NotUltrasound, match="no DICOM, video or NIfTI"):
        read_clip(tmp_path / "README.txt")
    (tmp_path / "x.mp4").write_text("no video at all")
    with pytest.raises(DataError, match="whatever its name says"):
        read_clip(tmp_path / "x.mp4")


def test_hidden_files_are_not_found(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").write_text("x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "y.mp4").write_text("y")
    assert find_files(tmp_path) == [tmp_path / "a" / "x.mp4"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files"):
        find_files(tmp_path / "empty")
