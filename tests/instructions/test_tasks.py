"""Questions and answers are true of the record, and their English is right."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from xraygpt.common.errors import DataError
from xraygpt.instructions.records import ImageRecord, ImageRow, Located
from xraygpt.instructions.tasks import TASKS, Asked, TaskOptions
from xraygpt.instructions.wording import Wording, is_plural, load_wording, lower_first

BOX, OTHER = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
IMAGE = ImageRow(1, "i1", "i1.png", "s1", "p/1", "train", "PA", "F", 1000, 800)
WORDING = load_wording()


def ask(task: str, record: ImageRecord, *, key: str = "0/toy/i1", repeat: int = 0, **options):
    asked = Asked(record, TaskOptions(**options), WORDING, key, repeat)
    return list(TASKS[task](asked))


def answers(task: str, record: ImageRecord, **options) -> set[str]:
    """Return the answers in many wordings."""
    return {
        draft.turns[-1][1]
        for key in range(60)
        for draft in ask(task, record, key=str(key), **options)
    }


def test_line_breaks_of_a_report_become_spaces():
    """RadVLM deletes them, which joins words (fault 12)."""
    record = ImageRecord(IMAGE, report="The heart is\nnormal.\n\nNo  effusion. ")
    (draft,) = ask("report", record)
    assert draft.turns[0][1] == "The heart is normal. No effusion."
    assert ask("report", ImageRecord(IMAGE)) == []


def test_classification_names_the_positive_labels():
    record = ImageRecord(
        IMAGE,
        labels={"Lung Opacity": "positive", "Edema": "positive", "Fracture": "negative"},
    )
    (draft,) = ask("classification", record)
    assert draft.labels == ("Edema", "Lung Opacity")
    assert draft.pathologies == ("Edema", "Fracture", "Lung Opacity")
    for text in answers("classification", record):
        assert "edema and a lung opacity." in text and "racture" not in text


def test_an_image_is_called_normal_only_if_someone_said_so():
    negative = ImageRecord(IMAGE, labels={"Edema": "negative"})
    assert ask("classification", negative) == [], "it may be abnormal in another way"
    assert ask("classification", ImageRecord(IMAGE)) == []
    for record in (replace(negative, healthy=True), replace(negative, complete=True)):
        (draft,) = ask("classification", record)
        assert draft.labels == () and "no" in draft.turns[0][1].lower()


def test_uncertain_labels_follow_the_policy():
    record = ImageRecord(IMAGE, labels={"Edema": "uncertain", "Fracture": "positive"})
    positives = {
        policy: [draft.labels for draft in ask("classification", record, uncertain=policy)]
        for policy in ("positive", "negative", "skip")
    }
    assert positives == {
        "positive": [("Edema", "Fracture")], "negative": [("Fracture",)], "skip": []
    }  # fmt: skip
    only = ImageRecord(IMAGE, labels={"Edema": "uncertain"})
    assert ask("classification", only, uncertain="negative") == [], "uncertain is not healthy"


def test_regions_are_drawn_by_the_image_and_not_by_chance():
    regions = tuple(Located(f"zone {i}", (BOX,)) for i in range(9))
    record = ImageRecord(IMAGE, regions=regions)
    first = [draft.part for draft in ask("region_grounding", record, per_image=1)]
    assert first == [draft.part for draft in ask("region_grounding", record, per_image=1)]
    assert len(first) == 1
    assert (
        len({ask("region_grounding", record, per_image=1, key=str(k))[0].part for k in range(80)})
        == 9
    )
    assert len(ask("region_grounding", record)) == 9
    repeated = ask("region_grounding", record, per_image=1, repeat=1)
    assert [draft.part for draft in repeated] == first, "a repeat asks the same in other words"


def test_singular_and_plural():
    lung = ImageRecord(IMAGE, regions=(Located("Right Lung", (BOX,)),))
    hilum = ImageRecord(IMAGE, regions=(Located("left hilar structures", (BOX,)),))
    assert "The right lung is at <boxes:0>." in answers("region_grounding", lung)
    assert "The left hilar structures are at <boxes:0>." in answers("region_grounding", hilum)
    one = ImageRecord(IMAGE, findings=(Located("Nodule/Mass", (BOX,)),))
    two = ImageRecord(IMAGE, findings=(Located("Nodule/Mass", (BOX, OTHER)),))
    many = ImageRecord(IMAGE, findings=(Located("ILD", (BOX, OTHER)),))
    task = "abnormality_grounding"
    assert "There is a nodule or mass at <boxes:0>." in answers(task, one)
    assert "There are nodules or masses at <boxes:0>." in answers(task, two)
    assert "There is interstitial lung disease at <boxes:0>." in answers(task, many)
    assert not any(re.search(r"\b(is|are) (is|are)\b|\{|\}|  ", a) for a in answers(task, two))


def test_absent_findings_are_asked_in_the_same_words_and_only_if_someone_looked():
    record = ImageRecord(
        IMAGE, findings=(Located("ILD", (BOX,)),), searched=("ILD", "Pneumothorax", "Nodule/Mass")
    )
    drafts = [
        d
        for k in range(400)
        for d in ask("abnormality_grounding", record, key=str(k), negatives=0.5)
    ]
    absent = [d for d in drafts if not d.boxes[0].boxes]
    assert 150 < len(absent) < 250 and {d.part for d in absent} == {"Pneumothorax", "Nodule/Mass"}
    assert all(re.search(r"\b[Nn]o\b", d.turns[0][1]) for d in absent)
    questions = {
        d.turns[0][0].replace(name, "X")
        for d in drafts
        for name in ["interstitial lung disease"]
        if d.part == "ILD"
    }
    for draft in absent:
        name = WORDING.name(draft.part)
        asked = draft.turns[0][0].replace(name.asked(), "X").replace(name.noun, "X")
        assert asked in questions
    unknown = replace(record, searched=())
    assert all(d.boxes[0].boxes for d in ask("abnormality_grounding", unknown, negatives=3))


def test_names_that_share_their_boxes_are_listed_together():
    """In VinDr-CXR, 22 % of boxes carry several names; a model must not draw them twice."""
    record = ImageRecord(
        IMAGE,
        findings=(
            Located("Lung Opacity", (BOX,)), Located("Consolidation", (BOX,)),
            Located("Cardiomegaly", (OTHER,)),
        ),
        complete=True,
    )  # fmt: skip
    (draft,) = ask("detection", record)
    assert [each.boxes for each in draft.boxes] == [(BOX,), (OTHER,)]
    assert (
        "a lung opacity and a consolidation at <boxes:0>; cardiomegaly at <boxes:1>"
        in draft.turns[0][1]
    )
    assert draft.labels == ("Lung Opacity", "Consolidation", "Cardiomegaly")


def test_detection_claims_completeness_only_if_readers_looked_for_everything():
    finding = Located("ILD", (BOX,))
    searched = {"findings": (finding,), "searched": ("ILD",)}
    assert ask("detection", ImageRecord(IMAGE, **searched)) == [], "they looked for ILD alone"
    assert len(ask("detection", ImageRecord(IMAGE, **searched, complete=True))) == 1
    unplaced = ImageRecord(IMAGE, findings=(Located("ILD", ()),), complete=True)
    assert ask("detection", unplaced) == []
    assert ask("detection", ImageRecord(IMAGE, complete=True)) == [], "not called healthy"
    (draft,) = ask("detection", ImageRecord(IMAGE, healthy=True))
    assert draft.labels == () and draft.boxes == ()


def test_phrases_have_zero_to_many_boxes():
    record = ImageRecord(
        IMAGE,
        phrases=(Located("Bilateral\neffusions.", (BOX, OTHER)), Located("No pneumothorax.", ())),
    )
    with_boxes, without = ask("phrase_grounding", record, negatives=1)
    assert len(with_boxes.boxes[0].boxes) == 2 and "<boxes:0>" in with_boxes.turns[0][1]
    assert "Bilateral effusions." in with_boxes.turns[0][0]
    assert "<boxes" not in without.turns[0][1] and without.boxes[0].boxes == ()
    assert len(ask("phrase_grounding", record)) == 1


def test_a_grounded_report_keeps_every_sentence():
    record = ImageRecord(
        IMAGE, phrases=(Located("Effusion.", (BOX,)), Located("No pneumothorax", ()))
    )
    (draft,) = ask("grounded_report", record)
    assert draft.turns[0][1] == "Effusion <boxes:0>. No pneumothorax."
    assert draft.boxes == (record.phrases[0],)
    assert ask("grounded_report", replace(record, phrases=record.phrases[1:])) == []


def test_boxes_in_conversations_become_marks():
    turns = (("Where?", "At [0.1, 0.2, 0.3, 0.4] and [0.50, 0.60, 0.70, 0.80]."), ("Sure?", "Yes."))
    record = ImageRecord(IMAGE, conversations={"grounding": turns})
    (draft,) = ask("grounded_conversation", record)
    assert draft.turns == (("Where?", "At <boxes:0> and <boxes:1>."), ("Sure?", "Yes."))
    assert [each.boxes for each in draft.boxes] == [(BOX,), (OTHER,)]
    assert ask("conversation", record) == []


def test_labels_stay_with_their_image_when_images_are_filtered():
    """RadVLM indexed the labels of all images by position in the filtered list (fault 7)."""
    records = [
        ImageRecord(
            replace(IMAGE, image_id=f"d{i}"),
            labels={"Edema": "positive" if i % 2 else "negative"},
            conversations={"standard": (("Q", f"A{i}"),)} if i in (1, 2) else {},
        )
        for i in range(4)
    ]
    found = {r.image.image_id: [d.labels for d in ask("conversation", r)] for r in records}
    assert found == {"d0": [], "d1": [("Edema",)], "d2": [()], "d3": []}


def test_acronyms_keep_their_capitals():
    names = ("Pleural Effusion", "ILD", "Enlarged PA", "right lung", "A")
    assert [lower_first(n) for n in names] == [
        "pleural effusion",
        "ILD",
        "enlarged PA",
        "right lung",
        "a",
    ]
    assert is_plural("left costophrenic angles") and not is_plural("right hilum")


def test_every_task_has_wording_and_every_template_can_be_filled():
    words = dict.fromkeys(
        ("name", "any_name", "a_name", "A_name", "is", "boxes", "phrase", "list"), "X"
    )
    for task, kinds in WORDING.templates.items():
        assert task in TASKS
        for kind, templates in kinds.items():
            for template in [templates] if isinstance(templates, str) else templates:
                filled = template.format_map(words)
                assert (filled == filled.strip() and filled[0].isupper()) or kind == "item"
                assert kind == "item" or filled.endswith((".", "?", "X", "!")), filled
            if kind == "questions":
                assert len(set(templates)) == len(templates) >= 6


def test_own_wording_is_checked(tmp_path):
    path = tmp_path / "w.yaml"
    path.write_text("report: {questions: []}\nnames: {}\n")
    with pytest.raises(DataError, match="there are no questions for the task report"):
        load_wording(path).draw("report", "questions", 1)
    path = tmp_path / "w2.yaml"
    path.write_text("names: {ild: {nuon: x}}\n")
    with pytest.raises(DataError, match="names: ild: expected noun"):
        load_wording(path)
    assert isinstance(WORDING, Wording)
