"""The cache gives what encoding gives, is keyed by what decides it, and blames the right thing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.conftest import toy_image
from tests.models.test_xraygpt import tiny
from xraygpt.common.errors import TrainingError
from xraygpt.common.paths import cache_root
from xraygpt.datasets import controls
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.processors.image import XrayImageTrain
from xraygpt.runners.feature_cache import CachedReader, use_cache


@pytest.fixture
def model():
    return tiny().eval()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))


def dataset(toy, model, split="train", **settings):
    config = RecordsBuilder.Config(storage=toy, **settings)
    return config.build(image_spec=model.image_spec).build(split)


def cached(data, model):
    return use_cache(data, model, model.feature_key(), Accelerator(cpu=True))


def test_stored_is_encoded(toy, model, monkeypatch):
    plain = dataset(toy, model)
    expected = model.encode_frozen(torch.stack([plain[i]["images"][0] for i in range(5)]))
    data = cached(dataset(toy, model), model)
    got = torch.stack([data[i]["images"][0] for i in range(5)])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(model, "encode_frozen", lambda _: pytest.fail("encoded a second time"))
    again = cached(dataset(toy, model), model)
    assert torch.equal(again[3]["images"][0], got[3])


def test_a_changed_file_or_processor_is_encoded_anew(toy, model):
    data = cached(dataset(toy, model), model)
    before = data[0]["images"][0]
    Image.fromarray(toy_image("right", 99)).save(toy / "images" / "s0.png")
    assert not torch.equal(cached(dataset(toy, model), model)[0]["images"][0], before)
    other = RecordsBuilder.Config(
        storage=toy, vis_processor={"train": XrayImageTrain.Config(min_scale=1.0, mean=[0.1])}
    )
    assert not torch.equal(
        cached(other.build(image_spec=model.image_spec).build("train"), model)[1]["images"][0],
        data[1]["images"][0],
    )


def test_random_crops_are_never_stored(toy, model):
    data = dataset(toy, model, vis_processor={"train": XrayImageTrain.Config()})
    assert not isinstance(cached(data, model).read_image, CachedReader)
    assert data[0]["images"][0].dim() == 3


def test_a_cut_off_file_is_mended(toy, model):
    data = cached(dataset(toy, model), model)
    before = data[0]["images"][0]
    path = data.read_image.path(data.records[0].images[0])
    path.write_bytes(path.read_bytes()[:40])
    assert torch.equal(data[0]["images"][0], before)
    assert np.load(path).shape == before.shape


def test_a_cache_that_cannot_be_written_is_no_bad_image(toy, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(TrainingError, match=r"cannot store features under .*XRAYGPT_CACHE"):
        cached(dataset(toy, model, on_error="skip"), model)


def test_a_bad_image_is_left_out_and_the_rest_encoded(toy, model, caplog):
    (toy / "images" / "s1.png").write_bytes(b"no picture")
    data = cached(dataset(toy, model, on_error="skip"), model)
    assert data[1] is None
    assert data[0]["images"][0].shape == (16, 16)
    assert "cannot encode" in caplog.text


def test_black_is_the_same_with_and_without_a_cache(toy, model):
    plain = controls.blanked(dataset(toy, model))
    stored = controls.blanked(cached(dataset(toy, model), model))
    early = cached(dataset(toy, model, blank_images=True), model)
    expected = model.encode_frozen(plain[0]["images"][0][None])[0]
    for data in (stored, early):
        torch.testing.assert_close(data[2]["images"][0], expected)
    assert plain[0]["images"][0].unique().numel() == 1
    assert str(cache_root()).endswith("cache")
