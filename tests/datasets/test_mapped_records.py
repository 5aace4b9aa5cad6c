"""Records in a memory-mapped file."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from xraygpt.common.paths import cache_root
from xraygpt.datasets.base import Record, StudyDataset, read_media
from xraygpt.datasets.mapped_records import MappedRecords, RecordFile
from xraygpt.datasets.media_paths import RecordError, resolve_image, resolve_within
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.media.base import MediaRef
from xraygpt.processors.image import ImageSpec
from xraygpt.vocabulary import get_vocabulary, questions

SPEC = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=4)


def record(i: int) -> Record:
    return Record(
        sample_id=f"r{i}",
        study_id=f"s{i}",
        media=(MediaRef(Path(f"{i}.png"), "PA", kind="clip"),),
        turns=questions.PromptFindings(
            questions.qa_turns("<image>", f"Report {i}."),
            ["Edema"],
            0.5,
            "image",
            vocabulary=get_vocabulary("chest_xray"),
        ),
        meta={"codes": ["Edema"], "box": [0.1, i]},
    )


def test_records_are_unchanged():
    mapped = MappedRecords(record(i) for i in range(10))
    assert len(mapped) == 10 and not len(MappedRecords())
    assert [r.sample_id for r in mapped] == [f"r{i}" for i in range(10)]
    actual, expected = mapped[3], record(3)
    assert replace(actual, turns=()) == replace(expected, turns=())
    assert actual.turns("key") == expected.turns("key")
    assert mapped[-1].study_id == "s9"
    part = mapped[2:8:2][1:]
    assert [r.sample_id for r in part] == ["r4", "r6"]
    with pytest.raises(IndexError):
        mapped[10]
    mapped.append(record(10))  # also after reading
    assert mapped[10].sample_id == "r10"


def test_sequences_share_a_file_which_is_not_left_behind():
    file = RecordFile()
    train, val = MappedRecords(file=file), MappedRecords(file=file)
    for i in range(20):
        (val if i % 4 == 3 else train).append(record(i))
    assert [r.sample_id for r in val] == ["r3", "r7", "r11", "r15", "r19"]
    assert train[5].sample_id == "r6"
    assert not [p for p in cache_root().iterdir() if p.is_file()]


def test_distinct_media_without_other_fields():
    records = [replace(record(i), media=record(i % 3).media) for i in range(6)]
    mapped = MappedRecords(records)
    assert [r.media for r in mapped[1:4]] == [*list(mapped.media())[1:], record(0).media]
    for sequence in (mapped, records):
        refs = StudyDataset(sequence, read_media).media_refs()
        assert refs == [MediaRef(Path(f"{i}.png"), "PA", kind="clip") for i in range(3)]


def test_pickling_copies_the_content():
    mapped = MappedRecords(record(i) for i in range(10))[5:]
    copy = pickle.loads(pickle.dumps(mapped))
    assert [r.sample_id for r in copy] == [f"r{i}" for i in range(5, 10)]


def test_datasets_use_mapped_records(toy):
    builder = RecordsBuilder.Config(storage=toy).build(image_spec=SPEC)
    train, val = builder.build("train"), builder.build("val")
    assert isinstance(train.records, MappedRecords) and len(train) == 36 and len(val) == 12
    few = RecordsBuilder.Config(storage=toy, max_samples=5).build(image_spec=SPEC)
    assert [r.sample_id for r in few.build("train").records] == ["s0", "s1", "s2", "s4", "s5"]
    assert isinstance(StudyDataset([record(1)], read_media).records, list)


def test_splits_with_one_text_processor_share_one_reading(toy, monkeypatch):
    calls = []
    records = RecordsBuilder.records

    def counting_records(self, clean):
        calls.append(clean)
        return records(self, clean)

    monkeypatch.setattr(RecordsBuilder, "records", counting_records)
    builder = RecordsBuilder.Config(storage=toy).build(image_spec=SPEC)
    builder.build("train"), builder.build("val")
    assert len(calls) == 1


def test_links_out_of_the_folder_are_refused(tmp_path):
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
        with pytest.raises(RecordError, match="points outside the image folder"):
            resolve_within(root, name)
        with pytest.raises(RecordError, match="points outside the image folder"):
            resolve_image(root, name)
    (root / "empty.png").touch()
    for name, reason in (
        ("a caption instead of a path " * 20, "not found"),
        ("empty.png", "is empty"),
        ("nul\0.png", "not a valid image path"),
        (None, "not a valid image path"),
    ):
        with pytest.raises(RecordError, match=reason):
            resolve_image(root, name)
    for name in ("here.png", "twin.png", "./here.png"):
        assert resolve_within(root, name).exists()
        assert resolve_image(root, name) == str(resolve_within(root, name))
