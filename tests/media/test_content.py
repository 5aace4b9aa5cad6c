"""Digests of content, on which the random numbers of answers depend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from xraygpt.media.base import Media, MediaRef, media_from_tensor, read_digest, read_media_file
from xraygpt.media.content import MAX_VALUES, content_key, digest_values, row_key


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_equal_content_has_equal_digests(picture: Path) -> None:
    copy = picture.with_name("b.png")
    copy.write_bytes(picture.read_bytes())
    first, second = (read_media_file(MediaRef(path)) for path in (picture, copy))
    assert first.content == second.content == read_digest(MediaRef(copy))
    array = np.asarray(Image.open(picture)).astype(np.float32) / 255
    assert digest_values(torch.from_numpy(array)) == first.content
    mirrored = read_media_file(MediaRef(picture, mirrored=True))
    assert mirrored.content != first.content
    assert first.with_data(torch.zeros(3, 8, 8)).content == first.content


def test_other_content_has_other_digests() -> None:
    data = torch.rand(2, 50)
    assert digest_values(data) != digest_values(data.T)
    assert digest_values(data) != digest_values(data + 1e-3)
    for shape in ((4000, 3000), (10, 900, 800), (3, 8), (2_000_000,)):
        values = torch.rand(shape)
        assert digest_values(values) == digest_values(values.clone())
        values[(0,) * len(shape)] += 1
        assert digest_values(values) != digest_values(values - 1)
    assert MAX_VALUES > 8


def test_the_key_of_a_study_names_all_its_media() -> None:
    a, b = (media_from_tensor(torch.full((3, 4, 4), value)) for value in (0.0, 1.0))
    one = content_key([a.content_digest])
    both = content_key([a.content_digest, b.content_digest])
    assert one == digest_values(a.data) and both not in (one, content_key([b.content_digest]))
    assert content_key([]) == ""
    lazy = Media(a.data, content=lambda: "later")
    assert row_key([lazy.content_digest, "x"])() == "later x"
