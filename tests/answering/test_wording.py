"""Answers in words."""

from __future__ import annotations

import pytest

from xraygpt.answering import wording
from xraygpt.models.abilities import Abilities
from xraygpt.models.findings import HeldOutCounts, PredictedFinding, percent
from xraygpt.tasks.payload import Prediction, payload_notes
from xraygpt.tasks.report_review import NORMAL_NOTE, report_payload, review
from xraygpt.vocabulary import get_vocabulary

CHEST = get_vocabulary("chest_xray")
EFFUSION = "pleural_effusion"


def answer(question, probability, threshold=0.3, name=EFFUSION, sides=None):
    finding = PredictedFinding(name, probability, threshold)
    return wording.finding_answer(question.lower(), [finding], sides or {}, CHEST)


@pytest.mark.parametrize(
    ("probability", "first"), [(0.9, "Yes."), (0.4, "Possibly."), (0.1, "No.")]
)
def test_yes_and_no_follow_the_threshold(probability, first):
    text = answer("Is there a pleural effusion?", probability)
    assert text.startswith(first) and f"{100 * probability:.0f} %" in text


@pytest.mark.parametrize(
    ("probability", "first"), [(0.9, "No."), (0.4, "Possibly not."), (0.1, "Yes.")]
)
def test_questions_for_absence_are_answered_the_other_way_round(probability, first):
    assert answer("Are the costophrenic angles clear?", probability).startswith(first)


def test_the_answer_has_the_side_the_threshold_and_what_cannot_be_told():
    text = answer("How large is the effusion?", 0.4, sides={EFFUSION: "on the left"})
    assert text == (
        "Pleural effusion is possible: 40 %, most likely on the left (the model reports it from "
        "30 %). This model cannot measure sizes."
    )
    assert answer("Has it grown since the last film?", 0.1).endswith(
        "This model cannot compare with earlier images."
    )


def test_percentages_never_claim_certainty():
    assert [percent(p) for p in (0.0, 0.004, 0.01, 0.5, 0.996)] == [
        "under 1 %", "under 1 %", "1 %", "50 %", "over 99 %",
    ]  # fmt: skip


def test_many_absent_findings_share_a_sentence():
    findings = [PredictedFinding(n, 0.02 * i, 0.5) for i, n in enumerate(("edema", "scar", "mass"))]
    findings[2] = PredictedFinding("fracture", 0.04, 0.5)
    text = wording.finding_answer("are the lungs clear?", findings, {}, CHEST)
    assert text == "Yes. Unlikely: fracture (4 %), scar (2 %), edema (under 1 %)."


def test_an_overview_without_findings_does_not_call_the_image_normal():
    findings = [PredictedFinding("edema", 0.2, 0.5), PredictedFinding("scar", 0.1, 0.2)]
    text = wording.overview("is the image normal?", findings, {}, CHEST)
    assert text.startswith("None of the 2 findings")
    assert "closest is scar (10 %)" in text and "does not mean that the image is normal" in text


def test_what_a_model_cannot_answer_is_followed_by_what_it_can():
    text = wording.unsupported("which drug?", Abilities(), CHEST.askable_findings, CHEST)
    assert text.startswith("This model was not trained to answer that. It can write a report and")
    assert "cardiomegaly, pleural effusion, pneumothorax, lung lesion and " in text
    assert f"and {len(CHEST.askable_findings) - 4} more" in text
    text = wording.unsupported("what was it before, compared with this?", Abilities(), [], CHEST)
    assert text == "This model cannot compare with earlier images. It can write a report."


def test_an_answer_from_the_report_quotes_the_sentence():
    report = "The heart is normal. There is a small left pleural effusion."
    text = wording.from_report([EFFUSION], report, CHEST)
    assert "“There is a small left pleural effusion.”" in text and "heart" not in text
    assert "does not mention pneumothorax" in wording.from_report(["pneumothorax"], report, CHEST)


POSSIBLE = PredictedFinding("fracture", 0.2, 0.1)


@pytest.mark.parametrize(
    ("question", "start"),
    [
        ("Is this chest X-ray normal? Yes or no?", "Possibly not. Fracture is possible"),
        ("Is there anything abnormal?", "Possibly. Fracture"),
        ("Which findings are there?", "Fracture is possible"),
        ("Has anything changed since the previous film?", "This model cannot compare with earlier"),
    ],
)
def test_an_overview_begins_with_the_answer_to_the_question(question, start):
    assert wording.overview(question.lower(), [POSSIBLE], {}, CHEST).startswith(start)


def test_yes_or_no_is_left_out_where_it_could_be_wrong():
    """The question's polarity is unknown, or yes would claim more than a probability can."""
    text = answer("Do the costophrenic angles look pointed?", 0.01)
    assert text == "Pleural effusion is unlikely: 1 %."
    text = answer("Can you rule out a pleural effusion?", 0.01)
    assert text == "Pleural effusion is unlikely: 1 %. This model cannot rule out findings."
    assert answer("Are the costophrenic angles sharp?", 0.01).startswith("Yes.")
    assert answer("Are the angles blunted?", 0.01).startswith("No.")


def test_answers_say_how_often_the_model_was_right_on_held_out_images():
    counts = HeldOutCounts(present=37, reported=33, correct=13)
    for probability, said in (
        (
            0.4,
            "possible: 40 % (the model reports it from 30 %; 13 of 33 such predictions were right ",
        ),
        (0.1, "unlikely: 10 % (the model found 13 of 37 cases "),
    ):
        finding = PredictedFinding(EFFUSION, probability, 0.3, counts)
        text = wording.finding_answer("is there an effusion?", [finding], {}, CHEST)
        assert f"Pleural effusion is {said}on held-out images)." in text


def test_no_is_left_out_if_the_model_misses_most_cases():
    for correct, first in ((18, "Pleural effusion is unlikely"), (19, "No. Pleural")):
        finding = PredictedFinding(EFFUSION, 0.1, 0.3, HeldOutCounts(37, 40, correct))
        text = wording.finding_answer("is there an effusion?", [finding], {}, CHEST)
        assert text.startswith(first)


REPORT = "There is a large left pleural effusion. The heart is normal in size. No pleural effusion."


def test_sentences_that_contradict_each_other_are_marked():
    remarks = review(REPORT, [], CHEST)
    marked = [REPORT[r["start"] : r["end"]] for r in remarks]
    assert marked == ["There is a large left pleural effusion.", "No pleural effusion."]
    assert "contradicts “No pleural effusion.”" in remarks[0]["text"]
    sides = "There is a left pleural effusion. There is no right pleural effusion."
    assert review(sides, [], CHEST) == []


def test_sentences_that_contradict_the_image_are_marked():
    findings = [PredictedFinding("cardiomegaly", 0.8, 0.3), PredictedFinding(EFFUSION, 0.02, 0.3)]
    report = "The heart is normal in size. There is a left pleural effusion. No pneumothorax."
    remarks = review(report, findings, CHEST)
    assert ["cardiomegaly likely (80 %)" in remarks[0]["text"], len(remarks)] == [True, 2]
    assert "pleural effusion unlikely (2 %)" in remarks[1]["text"]
    agreeing = [PredictedFinding("cardiomegaly", 0.1, 0.3), PredictedFinding(EFFUSION, 0.8, 0.3)]
    assert review(report, agreeing, CHEST) == []


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("The are intact.", "a word is missing"),
        ("There mild atelectasis.", "a word is missing"),
        ("The mediastinum is stable.", "has not seen an earlier image"),
        ("No change from the prior study.", "has not seen an earlier image"),
        ("There is prior granulomatous disease.", ""),
        ("There has been surgery of the spine.", ""),
        ("Opacity in the left lung is increased in density.", ""),
    ],
)
def test_incomplete_sentences_and_comparisons_are_marked(sentence, reason):
    assert [reason] * bool(reason) == [
        reason for remark in review(sentence, [], CHEST) if reason in remark["text"]
    ]


def test_a_normal_report_says_which_predicted_findings_it_leaves_out():
    note = report_payload("The lungs are clear.", [POSSIBLE], CHEST)["note"]
    assert note == f"{NORMAL_NOTE} This one leaves out findings that it predicts: fracture."


def test_a_normal_report_has_the_note_and_another_has_none():
    normal = "The heart is normal in size. The lungs are clear. No pleural effusion."
    assert report_payload(normal, [], CHEST)["note"] == NORMAL_NOTE
    assert "note" not in report_payload("There is cardiomegaly.", [], CHEST)


def test_the_result_page_lists_findings_and_doubts():
    payload = report_payload(REPORT, [PredictedFinding("edema", 0.7, 0.3)], CHEST)
    notes = payload_notes(Prediction("a", "a", "", REPORT, "", 0, payload=payload))
    assert notes[0] == "Predicted from the image: edema 70%."
    assert notes[-1].startswith("“No pleural effusion.”: contradicts")
