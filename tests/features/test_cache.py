"""The feature cache: same features as encoding, correct keys, and clear errors."""

from __future__ import annotations

import shutil

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from tests.conftest import toy_image
from tests.models.qformer_llm.test_model import tiny
from xraygpt.common.errors import TrainingError
from xraygpt.common.paths import cache_root
from xraygpt.datasets import controls
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.features import cache as feature_cache
from xraygpt.features.cache import CachedReader, FeatureStore, use_cache
from xraygpt.media.base import MediaRef
from xraygpt.media.content import content_key
from xraygpt.processors.image import XrayImageTrain


@pytest.fixture
def model():
    return tiny().eval()


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "cache"))


def dataset(toy, model, split="train", **settings):
    config = RecordsBuilder.Config(storage=toy, **settings)
    return config.build(image_spec=model.image_spec).build(split)


def cached(data, model, settings=None):
    return use_cache(data, model, model.feature_key(), Accelerator(cpu=True), settings)


def test_stored_features_equal_encoded_ones(toy, model, monkeypatch):
    plain = dataset(toy, model)
    expected = model.encode_frozen(torch.stack([plain[i]["media"][0].data for i in range(5)]))
    data = cached(dataset(toy, model), model)
    features = torch.stack([data[i]["media"][0].data for i in range(5)])
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(model, "encode_frozen", lambda _: pytest.fail("encoded a second time"))
    again = cached(dataset(toy, model), model)
    assert torch.equal(again[3]["media"][0].data, features[3])


def test_content_is_the_same_with_and_without_the_cache(toy, model):
    """Also for black images; random numbers of answers depend on it."""
    for change in (lambda data: data, controls.blanked, controls.mirrored):
        plain, data = change(dataset(toy, model)), cached(change(dataset(toy, model)), model)
        keys = [[content_key([d[i]["media"][0].content_digest]) for i in range(3)]
                for d in (plain, data)]  # fmt: skip
        assert keys[0] == keys[1]
        assert len(set(keys[0])) == (1 if change is controls.blanked else 3)
        assert data[0]["media"][0].kind == "embedding"


def test_a_changed_file_or_processor_is_encoded_again(toy, model):
    data = cached(dataset(toy, model), model)
    before = data[0]["media"][0].data
    Image.fromarray(toy_image("right", 99)).save(toy / "images" / "s0.png")
    assert not torch.equal(cached(dataset(toy, model), model)[0]["media"][0].data, before)
    other = RecordsBuilder.Config(
        storage=toy, vis_processor={"train": XrayImageTrain.Config(min_scale=1.0, mean=[0.1])}
    )
    assert not torch.equal(
        cached(other.build(image_spec=model.image_spec).build("train"), model)[1]["media"][0].data,
        data[1]["media"][0].data,
    )


def test_random_crops_are_never_stored(toy, model):
    data = dataset(toy, model, vis_processor={"train": XrayImageTrain.Config()})
    assert not isinstance(cached(data, model).read_media, CachedReader)
    assert data[0]["media"][0].data.dim() == 3


def feature_files():
    return sorted(cache_root().rglob("*.safetensors"))


def test_a_damaged_file_is_replaced(toy, model, caplog):
    before = cached(dataset(toy, model), model)[0]["media"][0].data.clone()  # it is mapped
    (path,) = feature_files()
    path.write_bytes(path.read_bytes()[:-40])
    data = cached(dataset(toy, model), model)
    assert "is damaged" in caplog.text and str(path) in caplog.text
    assert torch.equal(data[0]["media"][0].data, before)
    assert data.read_media.name(data.records[0].media[0], 0) in data.read_media.store


def test_half_precision_halves_the_size(toy, model):
    single = cached(dataset(toy, model), model)
    (large,) = feature_files()
    half = cached(dataset(toy, model), model, FeatureStore(dtype="float16"))
    (small,) = [path for path in feature_files() if path != large]
    assert 0.5 < small.stat().st_size / large.stat().st_size < 0.65  # both contain the names
    features, expected = half[2]["media"][0].data, single[2]["media"][0].data
    assert features.dtype == torch.float32 and not torch.equal(features, expected)
    torch.testing.assert_close(features, expected, rtol=1e-3, atol=1e-3)


def test_views_of_an_augmented_image_are_stored(toy, model, monkeypatch):
    settings = {"vis_processor": {"train": XrayImageTrain.Config()}}
    cached(dataset(toy, model, **settings), model, FeatureStore(views=3))
    monkeypatch.setattr(model, "encode_frozen", _only_black(model))
    data = cached(dataset(toy, model, **settings), model, FeatureStore(views=3))
    features = [data[0, epoch]["media"][0].data for epoch in range(24)]
    views = {x.numpy().tobytes() for x in features}
    assert len(views) == 3
    again = [data[0, epoch]["media"][0].data for epoch in range(24)]
    assert all(map(torch.equal, features, again))
    assert not views & {data[1, e]["media"][0].data.numpy().tobytes() for e in range(24)}


def _only_black(model):
    encode = model.encode_frozen

    def check(images):
        assert images.unique().numel() == 1, "encoded a second time"
        return encode(images)

    return check


def test_the_least_recently_used_features_are_evicted(toy, model, caplog):
    caplog.set_level("INFO")
    rows = len(dataset(toy, model))
    feature_bytes = 16 * 16 * 4
    for mean in (0.1, 0.2, 0.3):
        feature_cache._IN_USE.clear()  # as in another process
        processor = {"train": XrayImageTrain.Config(min_scale=1.0, mean=[mean])}
        settings = FeatureStore(max_gb=2.9 * rows * feature_bytes / 1e9)
        data = cached(dataset(toy, model, vis_processor=processor), model, settings)
        assert len(data.read_media.store) == rows
    folders = [p for p in (cache_root() / "features").iterdir() if files_in(p)]
    assert len(folders) == 2 and "to make room" in caplog.text
    assert data.read_media.store.folder in folders


def test_a_run_does_not_evict_its_own_features(toy, model, caplog):
    rows = len(dataset(toy, model))
    settings = FeatureStore(max_gb=1.7 * rows * 16 * 16 * 4 / 1e9)
    train = cached(dataset(toy, model), model, settings)
    other = {"train": XrayImageTrain.Config(min_scale=1.0, mean=[0.1])}
    second = cached(dataset(toy, model, vis_processor=other), model, settings)
    assert len(files_in(train.read_media.store.folder)) == 1
    assert 0 < len(second.read_media.store) < rows and "max_gb is reached" in caplog.text


def test_a_complete_store_may_be_read_only(toy, model, monkeypatch):
    before = cached(dataset(toy, model), model)[0]["media"][0].data

    def refused(_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(feature_cache, "mark_used", refused)
    assert torch.equal(cached(dataset(toy, model), model)[0]["media"][0].data, before)


def test_a_rank_with_one_image_more_stores_all_of_its_images(toy, model, monkeypatch, caplog):
    data = dataset(toy, model)
    data.records = data.records[:3]
    first = Accelerator(cpu=True)
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    stored = use_cache(data, model, model.feature_key(), first)
    assert len(stored.read_media.store) == 2 and "max_gb" not in caplog.text


def test_files_with_the_same_name_have_different_views(toy, model):
    for folder in ("p1", "p2"):
        (toy / folder).mkdir()
        shutil.copy(toy / "images" / "s0.png", toy / folder / "view1.png")
    data = dataset(toy, model, vis_processor={"train": XrayImageTrain.Config()})
    refs = [MediaRef(toy / folder / "view1.png") for folder in ("p1", "p2")]

    def views(view: int) -> list[torch.Tensor]:
        return [feature_cache.read_pixels(data.read_media, ref, view, 5) for ref in refs]

    # Two random crops of a picture this small are the same one in a hundred.
    assert any(not torch.equal(*views(view)) for view in range(5))


def files_in(folder):
    return list(folder.glob("*.safetensors"))


def test_images_beyond_the_limit_are_encoded_on_every_read(toy, model, caplog):
    full = dataset(toy, model)
    expected = [cached(full, model)[i]["media"][0].data for i in range(len(full))]
    settings = FeatureStore(max_gb=20 * 16 * 16 * 4 / 1e9)
    for path in feature_files():
        path.unlink()
    data = cached(dataset(toy, model), model, settings)
    assert len(data.read_media.store) == 16  # one batch; there is no room for the second
    assert "max_gb is reached; features of 20 images are not stored" in caplog.text
    for i, features in enumerate(expected):
        torch.testing.assert_close(data[i]["media"][0].data, features)


def test_a_full_disk_is_reported_before_encoding(toy, model, monkeypatch):
    usage = shutil.disk_usage(toy)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(TrainingError, match=r"GB are needed, but only 0\.0 GB are free"):
        cached(dataset(toy, model), model)
    assert not feature_files()


def test_workers_give_the_same_features(toy, model):
    plain = cached(dataset(toy, model), model)
    for path in feature_files():
        path.unlink()
    data = use_cache(
        dataset(toy, model), model, model.feature_key(), Accelerator(cpu=True), workers=2
    )
    for i in range(len(data)):
        assert torch.equal(data[i]["media"][0].data, plain[i]["media"][0].data)
    state = torch.random.get_rng_state()
    other = {"train": XrayImageTrain.Config(min_scale=1.0, mean=[0.7])}
    cached(dataset(toy, model, vis_processor=other), model)
    assert len(feature_files()) == 2
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_unwritable_cache_is_not_blamed_on_an_image(toy, model, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XRAYGPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(TrainingError, match=r"cannot store features in .*XRAYGPT_CACHE"):
        cached(dataset(toy, model, on_error="skip"), model)


def test_an_unreadable_image_is_skipped(toy, model, caplog):
    (toy / "images" / "s1.png").write_bytes(b"no image")
    data = cached(dataset(toy, model, on_error="skip"), model)
    assert data[1] is None
    assert data[0]["media"][0].data.shape == (16, 16)
    assert "cannot encode" in caplog.text


def test_black_images_give_the_same_features_with_and_without_a_cache(toy, model):
    plain = controls.blanked(dataset(toy, model))
    stored = controls.blanked(cached(dataset(toy, model), model))
    early = cached(dataset(toy, model, blank_images=True), model)
    expected = model.encode_frozen(plain[0]["media"][0].data[None])[0]
    for data in (stored, early):
        torch.testing.assert_close(data[2]["media"][0].data, expected)
    assert plain[0]["media"][0].data.unique().numel() == 1
    assert str(cache_root()).endswith("cache")
