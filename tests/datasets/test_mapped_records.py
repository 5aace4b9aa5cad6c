"""Records in a mapped file are the records, and cost no memory."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from xraygpt.common.paths import cache_root
from xraygpt.datasets.base import Record, StudyDataset, read_media
from xraygpt.datasets.builder import RecordError, image_in, inside
from xraygpt.datasets.mapped_records import MappedRecords, RecordFile
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.media.base import MediaRef
from xraygpt.processors.image import ImageSpec
from xraygpt.vocabulary import questions, vocabulary_of

SPEC = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=4)


def record(i: int) -> Record:
    return Record(
        sample_id=f"r{i}",
        study_id=f"s{i}",
        media=(MediaRef(Path(f"{i}.png"), "PA", kind="clip"),),
        turns=questions.PromptFindings(
            questions.pair("<image>", f"Report {i}."),
            ["Edema"],
            0.5,
            "image",
            vocabulary=vocabulary_of("chest_xray"),
        ),
        meta={"codes": ["Edema"], "box": [0.1, i]},
    )


def test_they_are_what_was_put_in():
    packed = MappedRecords(record(i) for i in range(10))
    assert len(packed) == 10 and not len(MappedRecords())
    assert [r.sample_id for r in packed] == [f"r{i}" for i in range(10)]
    one, same = packed[3], record(3)
    assert replace(one, turns=()) == replace(same, turns=())
    assert one.turns("draw") == same.turns("draw")
    assert packed[-1].study_id == "s9"
    part = packed[2:8:2][1:]
    assert [r.sample_id for r in part] == ["r4", "r6"]
    with pytest.raises(IndexError):
        packed[10]
    packed.append(record(10))  # also after they were read
    assert packed[10].sample_id == "r10"


def test_several_share_a_file_and_none_is_left_behind():
    file = RecordFile()
    train, val = MappedRecords(file=file), MappedRecords(file=file)
    for i in range(20):
        (val if i % 4 == 3 else train).append(record(i))
    assert [r.sample_id for r in val] == ["r3", "r7", "r11", "r15", "r19"]
    assert train[5].sample_id == "r6"
    assert not [p for p in cache_root().iterdir() if p.is_file()]


def test_images_alone_can_be_asked_for_and_each_comes_once():
    records = [replace(record(i), media=record(i % 3).media) for i in range(6)]
    packed = MappedRecords(records)
    assert [r.media for r in packed[1:4]] == [*list(packed.media())[1:], record(0).media]
    for held in (packed, records):
        refs = StudyDataset(held, read_media).media_refs()
        assert refs == [MediaRef(Path(f"{i}.png"), "PA", kind="clip") for i in range(3)]


def test_a_process_that_does_not_inherit_the_file_gets_them():
    packed = MappedRecords(record(i) for i in range(10))[5:]
    moved = pickle.loads(pickle.dumps(packed))
    assert [r.sample_id for r in moved] == [f"r{i}" for i in range(5, 10)]


def test_datasets_hold_them_so(toy):
    builder = RecordsBuilder.Config(storage=toy).build(image_spec=SPEC)
    train, val = builder.build("train"), builder.build("val")
    assert isinstance(train.records, MappedRecords) and len(train) == 36 and len(val) == 12
    few = RecordsBuilder.Config(storage=toy, max_samples=5).build(image_spec=SPEC)
    assert [r.sample_id for r in few.build("train").records] == ["s0", "s1", "s2", "s4", "s5"]
    assert isinstance(StudyDataset([record(1)], read_media).records, list)


def test_one_reading_serves_splits_with_one_text_processor(toy, monkeypatch):
    read = []
    records = RecordsBuilder.records

    def counted(self, clean):
        read.append(clean)
        return records(self, clean)

    monkeypatch.setattr(RecordsBuilder, "records", counted)
    builder = RecordsBuilder.Config(storage=toy).build(image_spec=SPEC)
    builder.build("train"), builder.build("val")
    assert len(read) == 1


def test_links_out_of_the_folder_are_still_found(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "out.png").write_bytes(b"x")
    (tmp_path / "images" / "link.png").symlink_to(tmp_path / "out.png")
    (tmp_path / "images" / "deep").symlink_to(tmp_path)
    (tmp_path / "images" / "here.png").write_bytes(b"x")
    (tmp_path / "images" / "twin.png").symlink_to(tmp_path / "images" / "here.png")
    root = tmp_path / "images"
    for name in (
        "link.png",
        "deep/out.png",
        "../out.png",
        "..",
        "deep/..",
        str(tmp_path / "out.png"),
    ):
        with pytest.raises(RecordError, match="leaves the image folder"):
            inside(root, name)
        with pytest.raises(RecordError, match="leaves the image folder"):
            image_in(root, name)
    (root / "empty.png").touch()
    for name, reason in (
        ("a caption where a path should stand " * 20, "not found"),
        ("empty.png", "is empty"),
        ("nul\0.png", "not a path"),
        (None, "not a path"),
    ):
        with pytest.raises(RecordError, match=reason):
            image_in(root, name)
    for name in ("here.png", "twin.png", "./here.png"):
        assert inside(root, name).exists()
        assert image_in(root, name) == str(inside(root, name))
