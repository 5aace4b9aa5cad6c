"""Instruction sets as a corpus: questions, answers, true boxes, and dialogues answer by answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.instructions.toy import toy_writer
from xraygpt.common.errors import DataError
from xraygpt.common.registry import BUILDERS
from xraygpt.datasets import controls
from xraygpt.datasets.instruction_items import _meta
from xraygpt.instructions.items import Item
from xraygpt.instructions.records import Located
from xraygpt.processors.image import ImageSpec

SPEC = ImageSpec(image_size=8, mean=(0.0,), std=(1.0,), tokens_per_image=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    writer = toy_writer(tmp_path_factory.mktemp("toy"))
    writer.write()
    return writer.out


def build(folder, split="train", **keys):
    builder = BUILDERS.get("instructions").Config(storage=folder, **keys).build(image_spec=SPEC)
    return builder.build(split, "eval")


def of_task(data, task: str) -> list:
    return [record for record in data.records if record.meta["task"] == task]


def test_a_question_has_its_true_boxes_phrase_patient_and_labels(folder):
    data = build(folder)
    record = of_task(data, "region_grounding")[0]
    assert record.meta["phrase"] in ("right lung", "left hilar structures")
    right = record.meta["phrase"] == "right lung"
    box = [0.1, 0.2, 0.3, 0.4] if right else [0.55, 0.2, 0.75, 0.4]
    assert record.meta["boxes"] == [{"label": record.meta["phrase"], "box": box}]
    assert record.meta["patient"].startswith("toy/") and record.study_id.startswith("si")
    turns = record.get_turns("")
    assert [t["role"] for t in turns] == ["user", "assistant"]
    assert turns[0]["text"].startswith("<image>\n") and turns[1]["text"].count("[") == 1
    labelled = of_task(data, "classification")[0]
    assert set(labelled.meta["pathologies"]) == {"Edema", "Cardiomegaly"}


def test_boxes_shared_by_findings_belong_to_each_of_them(folder):
    record = of_task(build(folder), "detection")[0]
    names = sorted({box["label"] for box in record.meta["boxes"]})
    assert names == ["ILD", "Nodule/Mass"] and "phrase" not in record.meta


def test_only_questions_about_one_thing_say_what_they_ask_for(folder):
    """For a detection with one finding, it would be the answer."""
    asked = {r.meta["task"] for r in build(folder).records if "phrase" in r.meta}
    assert asked <= {"region_grounding", "abnormality_grounding", "phrase_grounding"}
    item = Item(
        item_id="i", image="a.png", collection="toy", task="detection", split="test",
        study_id="s", patient_id="p", image_id="a", width=8, height=8,
        turns=(("What is abnormal?", "Cardiomegaly <boxes:0>."),),
        boxes=(Located("Cardiomegaly", ((0.1, 0.2, 0.3, 0.4),)),),
    )  # fmt: skip
    assert "phrase" not in _meta(item, 1)
    assert _meta(replace(item, task="abnormality_grounding"), 1)["phrase"] == "Cardiomegaly"


def test_samples_say_how_boxes_are_written_and_how_large_the_image_is(folder):
    meta = build(folder, boxes="pixels", tasks=["region_grounding"]).records[0].meta
    assert meta["spelling"] == "pixels" and len(meta["image_size"]) == 2


def test_questions_about_something_absent_have_no_box(folder):
    records = of_task(build(folder), "abnormality_grounding")
    absent = [r for r in records if not r.meta["boxes"]]
    assert absent and all(r.meta["phrase"] for r in absent)


def test_boxes_are_written_in_the_chosen_spelling(folder):
    data = build(folder, tasks=["region_grounding"], boxes="maira")
    assert "<box><x" in data.records[0].get_turns("")[1]["text"]
    assert {r.meta["task"] for r in data.records} == {"region_grounding"}


def test_a_dialogue_is_one_sample_or_one_for_each_answer(folder):
    whole = of_task(build(folder), "conversation")
    each = of_task(build(folder, dialogue="each_answer"), "conversation")
    assert len(each) == 2 * len(whole) and len({r.sample_id for r in each}) == len(each)
    second = each[1]
    assert second.meta["answer_number"] == 2 and second.meta["question"] == "Of whom?"
    assert [t["text"] for t in second.get_turns("")][1:] == [
        "A chest X-ray.", "Of whom?", "Unknown."
    ]  # fmt: skip
    assert second.meta["dialogue"] == whole[0].sample_id
    assert second.meta["facts"]["view"] == "PA"


def test_another_patients_image_is_never_one_of_the_same_patient(folder):
    data = build(folder, tasks=["region_grounding"])
    patient = {r.media[0].path: r.meta["patient"] for r in data.records}
    for seed in range(5):
        for mine, other in zip(data.records, controls.shuffled(data, seed).records, strict=True):
            assert patient[other.media[0].path] != mine.meta["patient"]


def test_another_patients_image_is_the_same_for_a_whole_dialogue(folder):
    data = build(folder, dialogue="each_answer", tasks=["conversation"])
    images = {}
    for record in controls.shuffled(data, 1).records:
        images.setdefault(record.meta["dialogue"], set()).add(record.media[0].path)
    assert len(images) > 1 and all(len(paths) == 1 for paths in images.values())


def test_a_question_without_its_image_has_no_mark(folder):
    data = controls.question_only(build(folder, tasks=["region_grounding"]))
    record = data.records[0]
    assert record.media == () and "<image>" not in record.get_turns("")[0]["text"]


def test_missing_and_damaged_files_are_named(folder, tmp_path):
    with pytest.raises(DataError, match=r"no train.jsonl, .*prepare_instructions"):
        (tmp_path / "items").mkdir()
        build(tmp_path)
    (tmp_path / "items/train.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match="line 1 is no item"):
        build(tmp_path)
    line = (folder / "items/train.jsonl").read_text().splitlines()[0]
    (tmp_path / "items/train.jsonl").write_text(line.replace(".png", ".gone"))
    with pytest.raises(DataError, match=r"there is no image .*\.gone"):
        build(tmp_path)
