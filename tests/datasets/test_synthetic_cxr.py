"""Phantoms as a corpus: drawn on first use, split by study, coded like any other corpus."""

from __future__ import annotations

import pytest

from xraygpt.datasets.synthetic_cxr import SyntheticCxr
from xraygpt.experiment import NO_IMAGES
from xraygpt.processors.image import ImageSpec

SPEC = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=4)


def builder(tmp_path, **settings):
    config = SyntheticCxr.Config(storage=tmp_path, studies=40, picture_size=48, **settings)
    return config.build(image_spec=SPEC)


@pytest.mark.slow
def test_studies_are_drawn_once_and_splits_are_disjoint(tmp_path):
    first = builder(tmp_path)
    splits = {s: {r.study_id for r in first.build(s).records} for s in ("train", "val", "test")}
    assert sum(map(len, splits.values())) == 40 == len(set.union(*splits.values()))
    assert len(splits["train"]) > 20 and splits["val"] and splits["test"]
    (folder,) = tmp_path.iterdir()
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")}
    sample = builder(tmp_path).build("train")[0]
    assert sample["media"][0].data.shape == (3, 32, 32)
    assert sample["meta"]["source"].startswith("SYNTHETIC")
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.png")} == before


@pytest.mark.slow
def test_other_settings_use_another_folder(tmp_path):
    builder(tmp_path).build("val")
    both = SyntheticCxr.Config(
        storage=tmp_path, studies=3, picture_size=48, picture_views=["frontal", "lateral"]
    ).build(image_spec=NO_IMAGES)
    records = [r for s in ("train", "val", "test") for r in both.build(s).records]
    assert [len(r.media) for r in records] == [2, 2, 2]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_codes_can_be_asked_about(tmp_path):
    data = builder(tmp_path, target="code_questions", min_code_count=2, questions=3).build("train")
    turns = data[0]["turns"]
    assert len(turns) == 6
    assert all(t["text"] in ("yes.", "no.") for t in turns if t["role"] == "assistant")
