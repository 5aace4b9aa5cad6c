"""Large JPEGs decoded at a reduced size give nearly the same picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from xraygpt.datasets.base import read_media
from xraygpt.media.base import MediaRef
from xraygpt.media.pixels import read_image
from xraygpt.processors.image import ImageSpec, XrayImage, XrayImageTrain

SPEC = ImageSpec(image_size=224, mean=(0.5,), std=(1.0,), tokens_per_image=4)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A picture of 2000 x 2400 with edges, ramps and noise as JPEG and PNG; a JPEG of 400 x 480."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:2400, 0:2000] / 2400
    values = 90 + 80 * np.sin(9 * x) * np.cos(7 * y) + 50 * ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.05)
    values = np.clip(values + rng.normal(0, 6, values.shape), 0, 255).astype(np.uint8)
    folder = tmp_path_factory.mktemp("pictures")
    image = Image.fromarray(values)
    image.save(folder / "large.jpg", quality=95)
    image.save(folder / "large.png")
    image.resize((400, 480)).save(folder / "small.jpg", quality=95)
    return folder


def process(path, processor):
    return read_media(MediaRef(path), "rng_key", processor).data


def test_a_large_jpeg_decoded_at_reduced_size_looks_the_same(pictures):
    draft, full = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (True, False))
    assert read_image(pictures / "large.jpg", min_side=448).pixels.shape == (600, 500)
    expected = process(pictures / "large.jpg", full)
    difference = (process(pictures / "large.jpg", draft) - expected).abs()
    assert 0 < difference.mean() < 0.003 and difference.max() < 0.03
    shifted = expected.roll(1, dims=-1)
    assert (shifted - expected).abs().mean() > 5 * difference.mean()


@pytest.mark.parametrize("name", ["small.jpg", "large.png"])
def test_small_jpegs_and_pngs_are_not_affected(pictures, name):
    draft, full = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (True, False))
    assert np.array_equal(process(pictures / name, draft), process(pictures / name, full))


def test_draft_is_off_by_default_and_part_of_the_signature():
    full, draft = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (False, True))
    assert XrayImage.Config().build(image_spec=SPEC).min_side is None
    assert full.signature() != draft.signature()
    assert XrayImageTrain.Config(draft=True).for_eval().draft


def test_the_smallest_crop_still_has_enough_pixels():
    train = XrayImageTrain.Config(draft=True, min_scale=0.25).build(image_spec=SPEC)
    assert train.min_side >= 2 * 224 / (0.25 * 0.75) ** 0.5
