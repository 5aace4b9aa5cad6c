"""Corpora: every layout that is read, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import toy_image, write_toy_corpus
from xraygpt.common.errors import DataError
from xraygpt.datasets.caption_folder import CaptionFolder
from xraygpt.datasets.records import FieldMap, RecordsBuilder
from xraygpt.datasets.splits import SplitRule
from xraygpt.processors.image import ImageSpec, XrayImageTrain
from xraygpt.processors.text import ReportText
from xraygpt.prompting.renderer import Turn
from xraygpt.vocabulary.openi import is_published_test, published_test_studies
from xraygpt.vocabulary.questions import CodesAsImage

SPEC = ImageSpec(image_size=16, mean=(0.5,), std=(0.5,), tokens_per_image=4)


def save_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(toy_image("left", seed)).save(path)


def folder(tmp_path: Path, content: object, *names: str) -> Path:
    for name in names:
        save_image(tmp_path / "image" / name)
    (tmp_path / "image").mkdir(exist_ok=True)
    (tmp_path / "filter_cap.json").write_text(json.dumps(content))
    return tmp_path


def build(storage: Path, split: str = "train", **settings: object):
    return CaptionFolder.Config(storage=storage, **settings).build(image_spec=SPEC).build(split)


def test_the_folder_of_xraygpt(tmp_path):
    rows = {"annotations": [{"image_id": "p1_s5", "caption": "Clear lungs."}]}
    data = build(folder(tmp_path, rows, "p1_s5.png"))
    sample = data[0]
    assert [t["text"] for t in sample["turns"]] == ["<image>", "Clear lungs."]
    assert sample["media"][0].data.shape == (3, 16, 16)
    assert sample["media"][0].data.abs().max() <= 1


def test_the_list_of_the_fork(tmp_path):
    rows = [{"image": "a.jpg", "prompt": "What now?", "caption": "Fine."}]
    data = build(folder(tmp_path, rows, "a.jpg"))
    assert [t["text"] for t in data[0]["turns"]] == ["<image> What now?", "Fine."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image_id": "gone", "caption": "x"}, r"record 0: image not found .*gone"),
        ({"image_id": "a", "caption": ""}, r"record 0: caption is empty or no text \(image 'a'\)"),
        ({"image_id": "a", "caption": 3}, r"record 0: caption is empty or no text"),
        ({"image_id": "../../etc/passwd", "caption": "x"}, r"leaves the image folder"),
        ({"image_id": "/etc/passwd", "caption": "x"}, r"leaves the image folder"),
        ({"image_id": "link", "caption": "x"}, r"leaves the image folder"),
        ({"image_id": "zero", "caption": "x"}, r"image file is empty"),
        ({"image_id": "linked", "caption": "x"}, r"leaves the image folder"),
        ({"caption": "x"}, r"is not a path"),
        ("text", r"record 0: expected an object"),
    ],
)
def test_bad_records_stop_or_are_counted(tmp_path, row, message, caplog):
    outside = tmp_path / "outside.png"
    save_image(outside)
    corpus = tmp_path / "corpus"
    rows = [row, {"image_id": "a", "caption": "good"}]
    folder_ = corpus
    corpus.mkdir()
    folder(folder_, rows, "a.png")
    (corpus / "image" / "zero.png").write_bytes(b"")
    (corpus / "image" / "link").symlink_to(outside)
    (corpus / "image" / "linked.png").symlink_to(outside)  # asked for without its ending
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


def test_a_training_crop_is_no_crop_in_evaluation(tmp_path):
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


def test_corrupt_image_stops_or_is_left_out(tmp_path, caplog):
    rows = [{"image_id": "bad", "caption": "x"}, {"image_id": "a", "caption": "y"}]
    corpus = folder(tmp_path, rows, "a.png")
    (corpus / "image" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    with pytest.raises(DataError, match=r"sample bad: .*bad\.png"):
        build(corpus)[0]
    data = build(corpus, on_error="skip")
    assert data[0] is None
    assert data[1] is not None
    assert "skipped bad" in caplog.text


def test_published_test_studies_are_test_whatever_the_file_says(tmp_path):
    assert len(published_test_studies()) == 590
    for name in ("CXR1004", "CXR1004_IM-0005-1001.png", "1004_IM-0005-1001.dcm.png"):
        assert is_published_test(name)
    assert not is_published_test("1004")
    rows = [{"image_id": "CXR1004_IM-0005-1001", "caption": "secret", "split": "train"}]
    corpus = folder(tmp_path, rows, "CXR1004_IM-0005-1001.png")
    assert len(build(corpus)) == 0
    assert len(build(corpus, "test")) == 1


def test_hashed_split_is_by_study_and_stable():
    rule = SplitRule(val_fraction=0.2, test_fraction=0.1)
    said = [rule.of(f"study{i}", None) for i in range(3000)]
    assert said == [rule.of(f"study{i}", None) for i in range(3000)]
    assert 0.17 < said.count("val") / 3000 < 0.23
    assert 0.08 < said.count("test") / 3000 < 0.12
    other = SplitRule(val_fraction=0.2, test_fraction=0.1, seed=1)
    assert [other.of(f"study{i}", None) for i in range(3000)] != said


def records(storage: Path, of: str = "train", **settings: object):
    return RecordsBuilder.Config(storage=storage, **settings).build(image_spec=SPEC).build(of)


def test_own_layout(tmp_path):
    data = records(write_toy_corpus(tmp_path, 8, text_only=1), only_images=False)
    assert len(data) == 7
    first = data[0]
    assert first["turns"][0]["text"] == "<image> What is there?"
    assert first["meta"]["views"] == ["frontal"]
    assert data[6]["media"] == []


def test_csv_with_fields_sections_and_views(tmp_path):
    for i in range(3):
        save_image(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text(
        "file,uid,findings,impression,projection\n"
        "0.png,1,Clear.,Normal.,Frontal\n1.png,1,Clear.,Normal.,Lateral\n"
        "2.png,2,Wide heart.,,Frontal\n"
    )
    names = FieldMap(image="file", study="uid", view="projection")
    data = records(tmp_path, fields=names, headings=True, group_by_study=True)
    assert [len(s["media"]) for s in (data[0], data[1])] == [2, 1]
    assert data[0]["turns"][0]["text"] == "<image> <image>"
    assert data[0]["turns"][1]["text"] == "Findings: Clear. Impression: Normal."
    assert data[1]["turns"][1]["text"] == "Findings: Wide heart."
    frontal = records(tmp_path, fields=names, views=["Frontal"], sections=["findings"])
    assert [r.sample_id for r in frontal.records] == ["0", "2"]


def test_misspelt_field_is_named(tmp_path):
    write_toy_corpus(tmp_path, 4)
    with pytest.raises(
        DataError, match=r"no record has the field 'stduy' \(fields.study\).*'study'"
    ):
        records(tmp_path, fields=FieldMap(study="stduy"))


def test_openis_own_table_needs_its_prefix(tmp_path):
    (tmp_path / "t.csv").write_text("uid,MeSH,Problems,findings\n1004,n,n,Clear.\n7,n,n,Wide.\n")
    names = {"fields": FieldMap(study="uid"), "only_images": False}
    with pytest.raises(DataError, match="set study_prefix: CXR"):
        records(tmp_path, **names)
    data = records(tmp_path, study_prefix="CXR", **names)
    assert [r.study_id for r in data.records] == ["CXR7"]  # CXR1004 is of the published test split


def test_grouping_refuses_what_it_would_lose(tmp_path):
    save_image(tmp_path / "a.png")
    rows = [{"image": "a.png", "study": "1", "question": q, "answer": "x"} for q in ("A?", "B?")]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert len(records(tmp_path)) == 2
    with pytest.raises(DataError, match="cannot merge rows with questions"):
        records(tmp_path, group_by_study=True)


def test_studies_without_coding_are_not_asked_about(tmp_path):
    save_image(tmp_path / "a.png")
    codes = {"1": ["normal"], "2": ["No Indexing"], "3": []}
    rows = [{"image": "a.png", "study": s, "codes": c} for s, c in codes.items()]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert [r.study_id for r in records(tmp_path, target="codes").records] == ["1"]


def test_bad_table_says_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": "1"}\n{"id": \n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 is not JSON"):
        records(tmp_path)
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(DataError, match=r"record 1: expected an object, got list"):
        records(tmp_path)


def test_codes_and_questions(tmp_path):
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "b.png", 1)
    rows = [
        {"image": "a.png", "study": "1", "codes": ["Pleural Effusion/left", "Cardiomegaly"]},
        {"image": "b.png", "study": "2", "codes": ["normal"]},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    listed = records(tmp_path, target="codes")
    assert listed[0]["turns"][1]["text"] == "cardiomegaly; pleural effusion, left."
    asked = records(tmp_path, target="code_questions", min_code_count=1)
    seen = {
        asked[0, epoch]["turns"][0]["text"]: asked[0, epoch]["turns"][1]["text"]
        for epoch in range(40)
    }
    assert seen == {
        "<image> Is this coded: cardiomegaly?": "yes.",
        "<image> Is this coded: pleural effusion?": "yes.",
        "<image> Is this coded: normal?": "no.",
    }


def test_questions_answer_with_the_sides_that_are_coded(tmp_path):
    save_image(tmp_path / "a.png")
    codes = ["Effusion/left/small", "Edema/bilateral", "Mass/lobe/right", "Mass/Left", "Hernia"]
    rows = [{"image": "a.png", "study": "1", "codes": codes}]
    rows.append({"image": "a.png", "study": "2", "codes": ["Pneumothorax/left"]})
    (tmp_path / "t.json").write_text(json.dumps(rows))
    settings = {"target": "code_questions", "min_code_count": 1, "questions": 5}
    for with_sides, sides in [
        (True, ("left", "left and right", "left and right", "")),
        (False, [""] * 4),
    ]:
        turns = records(tmp_path, **settings, question_sides=with_sides)[0]["turns"]
        answers = {
            q["text"].split("coded: ")[1]: a["text"]
            for q, a in zip(turns[::2], turns[1::2], strict=True)
        }
        headings = ("effusion?", "edema?", "mass?", "hernia?")
        wanted = (f"yes, {side}." if side else "yes." for side in sides)
        there = dict(zip(headings, wanted, strict=True))
        assert answers == {**there, "pneumothorax?": "no."}


def test_codes_can_be_read_in_reports_nobody_coded(tmp_path):
    save_image(tmp_path / "a.png")
    reports = {
        "1": ("Small left pleural effusion. No pneumothorax.", "Cardiomegaly."),
        "2": ("Heart size normal. Lungs clear.", ""),
        "3": ("Patient did not show up.", ""),
        "4": ("Bilateral effusions, possible right pneumothorax.", ""),
        "5": ("History of left effusion. Small right pleural effusion. Old left rib fracture.", ""),
    }
    rows = [
        {"image": "a.png", "study": s, "findings": f, "impression": i, "codes": ["Mass"]}
        for s, (f, i) in reports.items()
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = records(tmp_path, target="codes", codes_from="report").records
    assert {r.study_id: r.turns[-1]["text"] for r in found} == {
        "1": "cardiomegaly; pleural effusion, left.",
        "2": "normal.",
        "4": "pleural effusion, bilateral; pneumothorax, right.",
        "5": "fracture, left; pleural effusion, right.",
    }
    # What people coded stays what evaluation compares with.
    assert all(r.meta["codes"] == ["Mass"] for r in found)


def test_a_table_as_spreadsheets_write_it(tmp_path, caplog):
    for folder in ("s1", "s2"):
        (tmp_path / folder).mkdir()
        save_image(tmp_path / folder / "frontal.png")
    (tmp_path / "t.csv").write_text(
        "\ufeffimage; study; findings\ns1/frontal.png;s1;Clear, dry.\n;;\ns2/frontal.png;s2;Wet.\n"
    )
    found = records(tmp_path).records
    assert [r.sample_id for r in found] == ["s1/frontal", "s2/frontal"]
    assert [r.study_id for r in found] == ["s1", "s2"]
    assert found[0].turns[-1]["text"] == "Clear, dry."
    assert "no record has the field" not in caplog.text


def test_a_table_without_studies_is_warned_of(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,Study,findings\na.png,s1,Clear.\n")
    records(tmp_path)
    assert "no record has the field 'study'" in caplog.text


def test_patients_are_split_whole_where_they_are_known(tmp_path):
    save_image(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "study": f"{p}-{s}", "patient": p, "findings": "Clear."}
        for p in range(30)
        for s in range(3)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rule = SplitRule(val_fraction=0.3, test_fraction=0.3)
    parts = {n: records(tmp_path, of=n, split=rule).records for n in ("train", "val", "test")}
    patients = {n: {r.study_id.split("-")[0] for r in p} for n, p in parts.items()}
    assert all(patients.values()) and sum(map(len, patients.values())) == 30
    assert sum(len(p) for p in parts.values()) == 90


def test_few_studies_leave_little_to_ask_about(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    rows = [{"image": "a.png", "study": "1", "codes": ["Mass"]}, {"image": "", "study": ""}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    records(tmp_path, target="code_questions", on_error="skip")
    assert "nothing to ask about" in caplog.text and "25 training studies" in caplog.text


def test_reports_the_labeller_cannot_read_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    save_image(tmp_path / "a.png")
    texts = ["Herz nicht vergrößert.", "Small left effusion."]
    rows = [{"image": "a.png", "study": str(i), "findings": t} for i, t in enumerate(texts)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert len(records(tmp_path, target="codes", codes_from="report")) == 1
    assert "English" in caplog.text and "1 of 2 records" in caplog.text


def test_codes_stand_where_the_image_would_for_a_language_model(tmp_path):
    save_image(tmp_path / "a.png")
    row = {"images": [{"path": "a.png"}] * 2, "study": "1", "findings": "Small heart.", "codes": []}
    row["codes"] = ["Opacity/left", "Mass"]
    (tmp_path / "t.json").write_text(json.dumps([row]))
    data = records(tmp_path, target="report", codes_as_image=True)
    asked = [data[0, epoch]["turns"][0]["text"] for epoch in range(60)]
    whole = [f"<image>{words}</image>" for words in ("mass; opacity, left", "opacity, left; mass")]
    assert set(asked) == {*whole} | {
        "<image>mass</image>",
        "<image>opacity, left</image>",
        "<image></image>",
    }
    assert sum(text in whole for text in asked) > 30
    assert data[0]["turns"][1]["text"] == "Small heart."


def test_told_codes_take_the_first_mark_wherever_it_stands():
    turns = [Turn(role="user", text="Look: <image> <image> What?"), Turn(role="user", text="And?")]
    told = CodesAsImage(turns, ["Mass"])
    asked = {tuple(t["text"] for t in told(str(draw))) for draw in range(40)}
    assert asked == {
        ("Look: <image>mass</image> What?", "And?"),
        ("Look: <image></image> What?", "And?"),
    }


def test_several_questions_are_turns_about_one_image(tmp_path):
    save_image(tmp_path / "a.png")
    codes = ["Edema", "Mass/lung", "Hernia"]
    rows = [{"image": "a.png", "study": str(i), "codes": [c]} for i, c in enumerate(codes)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    data = records(tmp_path, target="code_questions", min_code_count=1, questions=3)
    turns = data[1]["turns"]
    assert [t["role"] for t in turns] == ["user", "assistant"] * 3
    assert [t["text"].count("<image>") for t in turns] == [1, 0, 0, 0, 0, 0]
    answers = {
        q["text"].split(": ")[1]: a["text"] for q, a in zip(turns[::2], turns[1::2], strict=True)
    }
    assert answers == {"edema?": "no.", "mass?": "yes.", "hernia?": "no."}
    assert data[1, 1]["turns"] != data[1, 2]["turns"] or data[1, 3]["turns"] != turns


def test_precomputed_features_and_clips(tmp_path):
    np.save(tmp_path / "f.npy", np.ones((7, 5), np.float32))
    rows = [
        {
            "id": "f",
            "study": "f",
            "images": ["f.npy"],
            "turns": [{"role": "user", "text": "?"}, {"role": "assistant", "text": "!"}],
        }
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert records(tmp_path)[0]["media"][0].data.shape == (7, 5)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Normal chest x-XXXX.", "Normal chest x-ray."),
        ("There are no XXXX of a pleural effusion.", "There are no signs of a pleural effusion."),
        ("The XXXX are clear.", "The are clear."),
        ("Heart ___ normal , lungs clear.", "Heart normal, lungs clear."),
        ("XXXX-year-old male.", "male."),
        ("a\n b", "a b"),
    ],
)
def test_masks_are_restored_or_removed(before, after):
    assert ReportText(ReportText.Config())(before) == after


def test_masked_sentences_can_be_dropped():
    clean = ReportText(ReportText.Config(masks="drop_sentence"))
    assert clean("The XXXX is big. Lungs are clear.") == "Lungs are clear."
    assert ReportText(ReportText.Config(max_words=3))("One two. Three four.") == "One two."


@pytest.mark.slow
@pytest.mark.data
def test_iu_xray_and_vqa_rad_are_one_stanza_each(real_data):
    fields = FieldMap(id="image_id", codes="mesh_major")
    iu = {"annotations": Path("reports.jsonl"), "fields": fields}
    assert len(records(real_data / "iu_xray", "val", **iu)) == 300
    assert len(records(real_data / "iu_xray", "train", **iu)) == 2142
    for split in ("train", "val"):
        studies = {r.study_id for r in records(real_data / "iu_xray", split, **iu).records}
        assert not any(is_published_test(s) for s in studies)
    vqa = {
        "annotations": Path("trainset.json"),
        "images": Path("images"),
        "fields": FieldMap(id="qid", study="image_name", image="image_name"),
        "split": SplitRule(val_fraction=0.2),
    }
    sizes = {s: records(real_data / "vqa_rad", s, **vqa) for s in ("train", "val")}
    assert sum(len(d) for d in sizes.values()) == 3064
    studies = [{r.study_id for r in d.records} for d in sizes.values()]
    assert not studies[0] & studies[1]


def test_folds_part_all_studies_and_each_is_val_once():
    names = [f"s{i}" for i in range(500)]
    rules = [SplitRule(folds=5, fold=k) for k in range(5)]
    said = [[rule.of(n, None) for n in names] for rule in rules]
    assert all(row.count("val") == 1 and row.count("train") == 4 for row in zip(*said, strict=True))
    sizes = [one.count("val") for one in said]
    assert min(sizes) > 70 and sum(sizes) == 500
    assert rules[0].of("s1", "test") == "test"  # what the corpus says stands
    with pytest.raises(ValueError, match=r"fold: must be at least 0 and below folds \(5\), got 5"):
        SplitRule(folds=5, fold=5)
    with pytest.raises(ValueError, match="goes without val_fraction"):
        SplitRule(folds=5, val_fraction=0.1)
