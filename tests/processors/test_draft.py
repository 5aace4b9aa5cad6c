"""Large JPEGs decoded at less than their size: the same picture, nearly."""

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
def films(tmp_path_factory):
    """A film of 2000 x 2400 with edges, ramps and grain, as JPEG and PNG; and one of 400 x 480."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:2400, 0:2000] / 2400
    film = 90 + 80 * np.sin(9 * x) * np.cos(7 * y) + 50 * ((x - 0.4) ** 2 + (y - 0.5) ** 2 < 0.05)
    film = np.clip(film + rng.normal(0, 6, film.shape), 0, 255).astype(np.uint8)
    folder = tmp_path_factory.mktemp("films")
    image = Image.fromarray(film)
    image.save(folder / "large.jpg", quality=95)
    image.save(folder / "large.png")
    image.resize((400, 480)).save(folder / "small.jpg", quality=95)
    return folder


def read(films, name, processor):
    return read_media(MediaRef(films / name), "draw", processor).data


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(films):
    config = XrayImage.Config(draft=True)
    quick, whole = (c.build(image_spec=SPEC) for c in (config, XrayImage.Config()))
    assert read_image(films / "large.jpg", at_least=448).pixels.shape == (600, 500)
    apart = (read(films, "large.jpg", quick) - read(films, "large.jpg", whole)).abs()
    assert 0 < apart.mean() < 0.003 and apart.max() < 0.03
    shifted = read(films, "large.jpg", whole).roll(1, dims=-1)
    assert (shifted - read(films, "large.jpg", whole)).abs().mean() > 5 * apart.mean()


@pytest.mark.parametrize("name", ["small.jpg", "large.png"])
def test_other_files_are_read_as_ever(films, name):
    quick, whole = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (True, False))
    assert np.array_equal(read(films, name, quick), read(films, name, whole))


def test_it_is_off_unless_asked_for_and_part_of_the_signature():
    whole, quick = (XrayImage.Config(draft=d).build(image_spec=SPEC) for d in (False, True))
    assert XrayImage.Config().build(image_spec=SPEC).at_least is None
    assert whole.signature() != quick.signature()
    assert XrayImageTrain.Config(draft=True).for_eval().draft


def test_a_narrow_crop_still_has_pixels_enough():
    train = XrayImageTrain.Config(draft=True, min_scale=0.25).build(image_spec=SPEC)
    assert train.at_least >= 2 * 224 / (0.25 * 0.75) ** 0.5
