"""Tables of studies: supported layouts, targets, and errors for bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import write_toy_corpus
from tests.datasets.toy_images import save_image
from xraygpt.common.errors import DataError
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.datasets.splits import SplitRule
from xraygpt.datasets.table_fields import FieldMap
from xraygpt.processors.image import ImageSpec
from xraygpt.prompting.renderer import Turn
from xraygpt.vocabulary.openi import lockbox_studies, reserved_split
from xraygpt.vocabulary.questions import CodesAsImage

SPEC = ImageSpec(image_size=16, mean=(0.5,), std=(0.5,), tokens_per_image=4)


def records(storage: Path, split_name: str = "train", **settings: object):
    config = RecordsBuilder.Config(storage=storage, **settings)
    return config.build(image_spec=SPEC).build(split_name)


def test_layout_of_the_project(tmp_path):
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


def test_openis_table_requires_the_prefix(tmp_path):
    (tmp_path / "t.csv").write_text("uid,MeSH,Problems,findings\n1004,n,n,Clear.\n7,n,n,Wide.\n")
    names = {"fields": FieldMap(study="uid"), "only_images": False}
    with pytest.raises(DataError, match="set study_prefix: CXR"):
        records(tmp_path, **names)
    data = records(tmp_path, study_prefix="CXR", **names)
    assert [r.study_id for r in data.records] == ["CXR7"]  # CXR1004 is in the published test split


def test_rows_with_questions_cannot_be_grouped(tmp_path):
    save_image(tmp_path / "a.png")
    rows = [{"image": "a.png", "study": "1", "question": q, "answer": "x"} for q in ("A?", "B?")]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert len(records(tmp_path)) == 2
    with pytest.raises(DataError, match="cannot merge rows with questions"):
        records(tmp_path, group_by_study=True)


def test_uncoded_studies_are_left_out(tmp_path):
    save_image(tmp_path / "a.png")
    codes = {"1": ["normal"], "2": ["No Indexing"], "3": []}
    rows = [{"image": "a.png", "study": s, "codes": c} for s, c in codes.items()]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert [r.study_id for r in records(tmp_path, target="codes").records] == ["1"]


def test_bad_table_names_the_line(tmp_path):
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
    code_list = records(tmp_path, target="codes")
    assert code_list[0]["turns"][1]["text"] == "cardiomegaly; pleural effusion, left."
    questions = records(tmp_path, target="code_questions", min_code_count=1)
    epochs = [questions[0, epoch]["turns"] for epoch in range(40)]
    assert {turns[0]["text"]: turns[1]["text"] for turns in epochs} == {
        "<image> Is this coded: cardiomegaly?": "yes.",
        "<image> Is this coded: pleural effusion?": "yes.",
        "<image> Is this coded: normal?": "no.",
    }


def test_answers_contain_the_coded_sides(tmp_path):
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
        expected = (f"yes, {side}." if side else "yes." for side in sides)
        present = dict(zip(headings, expected, strict=True))
        assert answers == {**present, "pneumothorax?": "no."}


def test_codes_can_be_read_from_uncoded_reports(tmp_path):
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
    labelled = records(tmp_path, target="codes", codes_from="report").records
    assert {r.study_id: r.turns[-1]["text"] for r in labelled} == {
        "1": "cardiomegaly; pleural effusion, left.",
        "2": "normal.",
        "4": "pleural effusion, bilateral; pneumothorax, right.",
        "5": "fracture, left; pleural effusion, right.",
    }
    # Evaluation still compares with the human codes.
    assert all(r.meta["codes"] == ["Mass"] for r in labelled)


def test_csv_written_by_a_spreadsheet(tmp_path, caplog):
    for study in ("s1", "s2"):
        (tmp_path / study).mkdir()
        save_image(tmp_path / study / "frontal.png")
    (tmp_path / "t.csv").write_text(
        "\ufeffimage; study; findings\ns1/frontal.png;s1;Clear, dry.\n;;\ns2/frontal.png;s2;Wet.\n"
    )
    rows = records(tmp_path).records
    assert [r.sample_id for r in rows] == ["s1/frontal", "s2/frontal"]
    assert [r.study_id for r in rows] == ["s1", "s2"]
    assert rows[0].turns[-1]["text"] == "Clear, dry."
    assert "no record has the field" not in caplog.text


def test_a_table_without_studies_logs_a_warning(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("image,Study,findings\na.png,s1,Clear.\n")
    records(tmp_path)
    assert "no record has the field 'study'" in caplog.text


def test_patients_are_in_one_split(tmp_path):
    save_image(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "study": f"{p}-{s}", "patient": p, "findings": "Clear."}
        for p in range(30)
        for s in range(3)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rule = SplitRule(val_fraction=0.3, test_fraction=0.3)
    parts = {n: records(tmp_path, n, split=rule).records for n in ("train", "val", "test")}
    patients = {n: {r.study_id.split("-")[0] for r in p} for n, p in parts.items()}
    assert all(patients.values()) and sum(map(len, patients.values())) == 30
    assert sum(len(p) for p in parts.values()) == 90


def test_few_studies_log_a_warning_about_questions(tmp_path, caplog):
    save_image(tmp_path / "a.png")
    rows = [{"image": "a.png", "study": "1", "codes": ["Mass"]}, {"image": "", "study": ""}]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    records(tmp_path, target="code_questions", on_error="skip")
    assert "nothing to ask about" in caplog.text and "25 training studies" in caplog.text


def test_reports_without_labels_are_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    save_image(tmp_path / "a.png")
    texts = ["Herz nicht vergrößert.", "Small left effusion."]
    rows = [{"image": "a.png", "study": str(i), "findings": t} for i, t in enumerate(texts)]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    assert len(records(tmp_path, target="codes", codes_from="report")) == 1
    assert "English" in caplog.text and "1 of 2 records" in caplog.text


def test_codes_replace_the_image_for_a_language_model(tmp_path):
    save_image(tmp_path / "a.png")
    row = {"images": [{"path": "a.png"}] * 2, "study": "1", "findings": "Small heart.", "codes": []}
    row["codes"] = ["Opacity/left", "Mass"]
    (tmp_path / "t.json").write_text(json.dumps([row]))
    data = records(tmp_path, target="report", codes_as_image=True)
    prompts = [data[0, epoch]["turns"][0]["text"] for epoch in range(60)]
    complete = [
        f"<image>{codes}</image>" for codes in ("mass; opacity, left", "opacity, left; mass")
    ]
    assert set(prompts) == {*complete} | {
        "<image>mass</image>",
        "<image>opacity, left</image>",
        "<image></image>",
    }
    assert sum(text in complete for text in prompts) > 30
    assert data[0]["turns"][1]["text"] == "Small heart."


def test_codes_replace_all_marks_at_the_position_of_the_first():
    turns = [Turn(role="user", text="Look: <image> <image> What?"), Turn(role="user", text="And?")]
    sample = CodesAsImage(turns, ["Mass"])
    texts = {tuple(t["text"] for t in sample(str(key))) for key in range(40)}
    assert texts == {
        ("Look: <image>mass</image> What?", "And?"),
        ("Look: <image></image> What?", "And?"),
    }


def test_several_questions_about_one_image_are_turns(tmp_path):
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


@pytest.mark.slow
@pytest.mark.data
def test_iu_xray_and_vqa_rad(real_data):
    fields = FieldMap(id="image_id", codes="mesh_major")
    iu = {"annotations": Path("reports.jsonl"), "fields": fields}
    assert len(records(real_data / "iu_xray", "val", **iu)) == 300
    assert len(records(real_data / "iu_xray", "train", **iu)) == 2142
    iu_with_extra = {**iu, "split": SplitRule(train=["train", "extra"])}
    assert len(records(real_data / "iu_xray", "train", **iu_with_extra)) == 2682
    lockbox = records(real_data / "iu_xray", "lockbox", **iu_with_extra)
    assert {r.study_id for r in lockbox.records} == lockbox_studies()
    assert len(lockbox) == 200
    ids = (real_data / "iu_xray" / "lockbox_studies.txt").read_text().split()
    assert lockbox_studies() == set(ids)
    for split in ("train", "val"):
        studies = {r.study_id for r in records(real_data / "iu_xray", split, **iu).records}
        assert not any(reserved_split(s) for s in studies)
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
