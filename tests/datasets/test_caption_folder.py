"""XrayGPT's folder layout, and errors for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.datasets.toy_images import save_image
from xraygpt.common.errors import DataError
from xraygpt.datasets.caption_folder import CaptionFolder
from xraygpt.processors.image import ImageSpec, XrayImageTrain
from xraygpt.vocabulary.openi import (
    is_published_test,
    lockbox_studies,
    published_test_studies,
)

SPEC = ImageSpec(image_size=16, mean=(0.5,), std=(0.5,), tokens_per_image=4)


def folder(tmp_path: Path, content: object, *names: str) -> Path:
    for name in names:
        save_image(tmp_path / "image" / name)
    (tmp_path / "image").mkdir(exist_ok=True)
    (tmp_path / "filter_cap.json").write_text(json.dumps(content))
    return tmp_path


def build(storage: Path, split: str = "train", **settings: object):
    return CaptionFolder.Config(storage=storage, **settings).build(image_spec=SPEC).build(split)


def test_folder_of_xraygpt(tmp_path):
    rows = {"annotations": [{"image_id": "p1_s5", "caption": "Clear lungs."}]}
    data = build(folder(tmp_path, rows, "p1_s5.png"))
    sample = data[0]
    assert [t["text"] for t in sample["turns"]] == ["<image>", "Clear lungs."]
    assert sample["media"][0].data.shape == (3, 16, 16)
    assert sample["media"][0].data.abs().max() <= 1


def test_list_of_the_fork(tmp_path):
    rows = [{"image": "a.jpg", "prompt": "What now?", "caption": "Fine."}]
    data = build(folder(tmp_path, rows, "a.jpg"))
    assert [t["text"] for t in data[0]["turns"]] == ["<image> What now?", "Fine."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image_id": "gone", "caption": "x"}, r"record 0: image not found .*gone"),
        ({"image_id": "a", "caption": ""}, r"caption is empty or not a string \(image 'a'\)"),
        ({"image_id": "a", "caption": 3}, r"record 0: the caption is empty or not a string"),
        ({"image_id": "../../etc/passwd", "caption": "x"}, r"points outside the image folder"),
        ({"image_id": "/etc/passwd", "caption": "x"}, r"points outside the image folder"),
        ({"image_id": "link", "caption": "x"}, r"points outside the image folder"),
        ({"image_id": "zero", "caption": "x"}, r"image file is empty"),
        ({"image_id": "linked", "caption": "x"}, r"points outside the image folder"),
        ({"caption": "x"}, r"is not a valid image path"),
        ("text", r"record 0: expected an object"),
    ],
)
def test_bad_records_are_an_error_or_are_counted(tmp_path, row, message, caplog):
    outside = tmp_path / "outside.png"
    save_image(outside)
    corpus = tmp_path / "corpus"
    rows = [row, {"image_id": "a", "caption": "good"}]
    corpus.mkdir()
    folder(corpus, rows, "a.png")
    (corpus / "image" / "zero.png").write_bytes(b"")
    (corpus / "image" / "link").symlink_to(outside)
    (corpus / "image" / "linked.png").symlink_to(outside)  # requested without its suffix
    with pytest.raises(DataError, match=message):
        build(corpus)
    assert len(build(corpus, on_error="skip")) == 1
    assert "1 records skipped, 1 kept" in caplog.text


def test_dotted_names_and_several_questions_on_one_image(tmp_path):
    rows = [
        {"image": "1.2.840.7.png", "prompt": "A?", "caption": "a"},
        {"image": "1.2.840.7.png", "prompt": "B?", "caption": "b"},
        {"image": "1.2.840.8.png", "prompt": "A?", "caption": "c"},
    ]
    data = build(folder(tmp_path, rows, "1.2.840.7.png", "1.2.840.8.png"))
    assert [r.sample_id for r in data.records] == ["1.2.840.7", "1.2.840.7#2", "1.2.840.8"]
    assert len({r.study_id for r in data.records}) == 2


def test_training_crops_are_not_used_in_evaluation(tmp_path):
    rows = [{"image_id": "a", "caption": "x", "split": s} for s in ("train", "val")]
    corpus = folder(tmp_path, rows, "a.png")
    crop = {"train": XrayImageTrain.Config(fit="pad", min_scale=0.5)}
    train = build(corpus, vis_processor=crop)
    assert not train.cacheable
    assert not torch.equal(train[0, 0]["media"][0].data, train[0, 1]["media"][0].data)
    assert torch.equal(
        train[0, 1]["media"][0].data, train[0, 1]["media"][0].data
    )  # keyed, not global
    val = build(corpus, "val", vis_processor=crop)
    assert val.cacheable
    assert val.signature["fit"] == "pad"
    assert torch.equal(val[0, 0]["media"][0].data, val[0, 1]["media"][0].data)


def test_missing_folder_and_broken_json(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*nowhere"):
        build(tmp_path / "nowhere")
    (tmp_path / "image").mkdir()
    with pytest.raises(DataError, match=r"cannot read the annotations .*filter_cap\.json"):
        build(tmp_path)
    (tmp_path / "filter_cap.json").write_text("[{]")
    with pytest.raises(DataError, match=r"filter_cap\.json is not JSON: .*line 1"):
        build(tmp_path)
    (tmp_path / "filter_cap.json").write_text('{"annotation": []}')
    with pytest.raises(DataError, match="the list 'annotations'"):
        build(tmp_path)


def test_corrupt_images_are_an_error_or_are_left_out(tmp_path, caplog):
    rows = [{"image_id": "bad", "caption": "x"}, {"image_id": "a", "caption": "y"}]
    corpus = folder(tmp_path, rows, "a.png")
    (corpus / "image" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"sample bad: .*bad\.png"):
        build(corpus)[0]
    data = build(corpus, on_error="skip")
    assert data[0] is None
    assert data[1] is not None
    assert "skipped bad" in caplog.text


def test_published_test_studies_override_the_listed_split(tmp_path):
    assert len(published_test_studies()) == 590
    for name in ("CXR1004", "CXR1004_IM-0005-1001.png", "1004_IM-0005-1001.dcm.png"):
        assert is_published_test(name)
    assert not is_published_test("1004")
    rows = [{"image_id": "CXR1004_IM-0005-1001", "caption": "secret", "split": "train"}]
    corpus = folder(tmp_path, rows, "CXR1004_IM-0005-1001.png")
    assert len(build(corpus)) == 0
    assert len(build(corpus, "test")) == 1


def test_lockbox_studies_override_the_listed_split(tmp_path):
    name = f"{min(lockbox_studies())[3:]}_IM-0005-1001.dcm"
    rows = [{"image_id": name, "caption": "secret", "split": "train"}]
    corpus = folder(tmp_path, rows, f"{name}.png")
    sizes = {split: len(build(corpus, split)) for split in ("train", "val", "test", "lockbox")}
    assert sizes == {"train": 0, "val": 0, "test": 0, "lockbox": 1}
