"""Answers in words."""

from __future__ import annotations

import pytest

from xraygpt.answering import wording
from xraygpt.models.abilities import Abilities
from xraygpt.models.findings import PredictedFinding, percent
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
        "Pleural effusion is possible: 40 %, most likely on the left; the model reports it from "
        "30 %. This model cannot measure sizes."
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
    text = wording.overview(findings, {}, CHEST)
    assert "closest is scar (10 %)" in text and "does not mean that the image is normal" in text


def test_what_a_model_cannot_answer_is_followed_by_what_it_can():
    text = wording.unsupported(Abilities(), CHEST.askable_findings, CHEST)
    assert "write a report" in text and "pneumothorax" not in text.split("and")[0]
    assert f"and {len(CHEST.askable_findings) - 8} more findings" in text


def test_an_answer_from_the_report_quotes_the_sentence():
    report = "The heart is normal. There is a small left pleural effusion."
    text = wording.from_report([EFFUSION], report, CHEST)
    assert "“There is a small left pleural effusion.”" in text and "heart" not in text
    assert "does not mention pneumothorax" in wording.from_report(["pneumothorax"], report, CHEST)


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


def test_a_normal_report_has_the_note_and_another_has_none():
    normal = "The heart is normal in size. The lungs are clear. No pleural effusion."
    assert report_payload(normal, [], CHEST)["note"] == NORMAL_NOTE
    assert "note" not in report_payload("There is cardiomegaly.", [], CHEST)


def test_the_result_page_lists_findings_and_doubts():
    payload = report_payload(REPORT, [PredictedFinding("edema", 0.7, 0.3)], CHEST)
    notes = payload_notes(Prediction("a", "a", "", REPORT, "", 0, payload=payload))
    assert notes[0] == "Predicted from the image: edema 70%."
    assert notes[-1].startswith("“No pleural effusion.”: contradicts")
