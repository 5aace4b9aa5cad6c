"""Reading of media, their metadata, and the geometry of processed pictures."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from xraygpt.common.errors import DataError
from xraygpt.media.base import Media, MediaRef, read_media_file
from xraygpt.media.geometry import MIRRORED, Geometry, crop_geometry, rotation
from xraygpt.media.masks import mask_to_processed
from xraygpt.processors.image import ImageSpec, XrayImage, XrayImageTrain

SPEC = ImageSpec(image_size=96, mean=(0.0,), std=(1.0,), tokens_per_image=1)


def test_media_ref_infers_its_kind_and_can_be_pickled():
    assert MediaRef("a.png") == MediaRef("a.png", index=0) and MediaRef("a.png").kind == "image"
    assert MediaRef("a.npy").kind == "embedding" and MediaRef("a.npy").index is None
    clip = MediaRef("a.dcm", "A4C", frames=(0, 30, 4), fps=25.0)
    assert clip.kind == "clip" and pickle.loads(pickle.dumps(clip)) == clip
    assert type(pickle.loads(pickle.dumps(clip))) is MediaRef
    assert clip._replace(mirrored=True) != clip
    assert MediaRef("a.png", "PA").selection == "" == MediaRef("a.npy").selection
    assert MediaRef("a.npy", index=3, tensor="b").selection == "index 3, tensor b"


def test_rows_of_array_files(tmp_path):
    matrix = np.arange(60, dtype=np.float32).reshape(5, 3, 4)
    save_file({"a": matrix, "b": matrix[:, 0]}, tmp_path / "m.safetensors")
    np.save(tmp_path / "m.npy", matrix[:, 0])
    row = read_media_file(MediaRef(tmp_path / "m.safetensors", tensor="a", index=3))
    assert np.array_equal(row.data, matrix[3]) and row.kind == "embedding"
    assert read_media_file(
        MediaRef(tmp_path / "m.safetensors", tensor="b", index=2)
    ).data.shape == (1, 4)
    assert np.array_equal(
        read_media_file(MediaRef(tmp_path / "m.npy", index=4)).data[0], matrix[4, 0]
    )
    assert read_media_file(MediaRef(tmp_path / "m.npy")).data.shape == (5, 4)
    for ref, message in (
        (MediaRef(tmp_path / "m.safetensors", index=0), "set `tensor` to one of: a, b"),
        (MediaRef(tmp_path / "m.safetensors", tensor="c"), "no tensor 'c'; it contains a, b"),
        (
            MediaRef(tmp_path / "m.npy", index=5),
            "row 5 was requested, but the file has 5",
        ),
        (MediaRef(tmp_path / "m.safetensors", tensor="a"), r"features must be \(L, D\)"),
        (MediaRef(tmp_path / "m.npy", kind="clip", frames=(2, 9, 1)), "frames 2 to 9"),
        (MediaRef(tmp_path / "m.npy", mirrored=True), "cannot be mirrored"),
        (MediaRef(tmp_path / "none.npy"), "none.npy: cannot be read"),
    ):
        with pytest.raises(DataError, match=message):
            read_media_file(ref)


def test_an_image_from_an_array_is_one_frame_or_the_full_array(tmp_path):
    stack = np.arange(5 * 8 * 9, dtype=np.float32).reshape(5, 8, 9)
    np.save(tmp_path / "s.npy", stack)
    np.save(tmp_path / "c.npy", np.zeros((8, 9, 3), np.float32))
    np.save(tmp_path / "w.npy", np.zeros((6, 8, 9, 4), np.float32))
    frame = read_media_file(MediaRef(tmp_path / "s.npy", kind="image", index=3))
    assert np.array_equal(frame.data, stack[3]) and frame.size == (8, 9)
    assert np.array_equal(
        read_media_file(MediaRef(tmp_path / "s.npy", kind="image")).data, stack[0]
    )
    assert read_media_file(MediaRef(tmp_path / "c.npy", kind="image")).data.shape == (8, 9, 3)
    with pytest.raises(DataError, match="a clip is"):
        read_media_file(MediaRef(tmp_path / "w.npy", kind="clip"))


def test_processing_keeps_frame_times_and_spacing(tmp_path):
    frames = np.stack([np.full((4, 6), f / 10, np.float32) for f in range(10)])
    np.save(tmp_path / "c.npy", frames)
    ref = MediaRef(
        tmp_path / "c.npy", "A4C", kind="clip", frames=(1, 8, 3), fps=20.0, spacing=(0.5, 0.4)
    )
    clip = read_media_file(ref)
    assert clip.data[:, 0, 0].tolist() == pytest.approx([0.1, 0.4, 0.7])
    assert clip.frame_times == pytest.approx((0.05, 0.2, 0.35))
    assert clip.fps == pytest.approx(20 / 3) and clip.spacing == (0.5, 0.4) and clip.view == "A4C"
    processed = XrayImage.Config().build(image_spec=SPEC).process(clip)
    assert processed.data.shape == (3, 3, 96, 96)
    assert (processed.frame_times, processed.spacing) == (clip.frame_times, clip.spacing)


def test_mirrored_pictures_in_colour_and_grey(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(grey).save(tmp_path / "g.png")
    Image.fromarray(np.stack([grey, grey // 2, grey], -1)).save(tmp_path / "c.png")
    for name in ("g.png", "c.png"):
        plain, flipped = (
            read_media_file(MediaRef(tmp_path / name, mirrored=m)) for m in (False, True)
        )
        assert torch.equal(flipped.data, plain.data.flip(1)) and flipped.geometry == MIRRORED


def test_geometry():
    cropped = crop_geometry(0.25, 0.5, 0.5, 0.5)
    assert cropped.map_point(0.5, 0.75) == (0.5, 0.5)
    both = cropped.then(MIRRORED)
    assert both.map_point(0.25, 0.5) == pytest.approx((1, 0))
    back = both.inverse()
    assert back.map_point(*both.map_point(0.3, 0.9)) == pytest.approx((0.3, 0.9))
    assert rotation(90).map_point(1.0, 0.5) == pytest.approx((0.5, 0.0))  # right becomes top
    assert cropped.map_box((0.0, 0.0, 0.2, 0.2)) is None  # outside the window
    assert cropped.map_box((0.0, 0.5, 0.5, 1.0)) == (0.0, 0.0, 0.5, 1.0)
    assert cropped.map_boxes([(0.0, 0.5, 0.5, 1.0)], min_visible=0.6) == [None]  # half remains


@pytest.mark.parametrize("fit", ["squash", "pad", "crop"])
@pytest.mark.parametrize("shape", [(160, 120), (120, 161)])
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_box_follows_its_pixels(tmp_path, fit, shape, mirrored):
    """The geometry predicts a bright square's box after crop, padding, rotation, mirroring."""
    height, width = shape
    picture = np.zeros(shape, np.uint8)
    box = (50, 60, 74, 82)  # x0, y0, x1, y1 in pixels
    picture[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(picture).save(tmp_path / "p.png")
    normalised = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
    source = read_media_file(MediaRef(tmp_path / "p.png", mirrored=mirrored))
    train = XrayImageTrain.Config(min_scale=0.6, degrees=8.0, fit=fit).build(image_spec=SPEC)
    for processor, repeats in ((XrayImage.Config(fit=fit).build(image_spec=SPEC), 1), (train, 8)):
        for rng_key in range(repeats):
            processed = processor.process(source, str(rng_key))
            expected = processed.geometry.map_box(normalised)
            bright = (processed.data[0] > 0.5).nonzero()
            if expected is None or not len(bright):
                x0, y0, x1, y1 = expected or (0, 0, 0, 0)
                assert (x1 - x0) * (y1 - y0) < 0.01
                continue
            low, high = bright.min(0).values / 96, (bright.max(0).values + 1) / 96
            observed = (float(low[1]), float(low[0]), float(high[1]), float(high[0]))
            assert observed == pytest.approx(expected, abs=0.045), rng_key
            mask = mask_to_processed((picture > 0).astype(np.uint8), processed)
            agree = (torch.from_numpy(mask) > 0) == (processed.data[0] > 0.5)
            assert agree.float().mean() > 0.985


def test_a_processor_without_geometry():
    class NoGeometry(XrayImage):
        def geometry(self, height, width, rng_key=""):
            return None

    processor = NoGeometry(XrayImage.Config(), image_spec=SPEC)
    processed = processor.process(Media(torch.rand(20, 30), geometry=Geometry()))
    assert processed.geometry is None
    with pytest.raises(DataError, match="no geometry"):
        mask_to_processed(np.zeros((20, 30), np.uint8), processed)
