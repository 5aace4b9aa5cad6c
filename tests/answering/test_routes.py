"""Which part of a model answers a question."""

from __future__ import annotations

import pytest

from xraygpt.answering.routes import Kind, find_route
from xraygpt.models.abilities import Abilities
from xraygpt.vocabulary import get_vocabulary

CHEST = get_vocabulary("chest_xray")
PROMPT = "<image> Describe this study."
MINI = Abilities(questions="findings", needs_image=True)
REPORTS_ONLY = Abilities(questions="none", needs_image=True)
UNKNOWN = Abilities()
ALL = tuple(CHEST.askable_findings)


def route(question, abilities=MINI, num_media=1, predictable=ALL):
    return find_route(
        question, num_media, abilities, CHEST, prompts=[PROMPT], predictable=predictable
    )


@pytest.mark.parametrize(("question", "findings"), [
    ("Is there a pneumothorax?", ["pneumothorax"]),
    ("Is there a pleural effusion, and on which side?", ["pleural_effusion"]),
    ("How large is the heart?", ["cardiomegaly"]),
    ("Is any bone broken?", ["fracture"]),
    ("Which tubes, lines or devices are there?", ["support_devices"]),
    ("Is there a nodule or a mass, and where?", ["lung_lesion"]),
    ("Can you see signs of COPD?", ["emphysema"]),
    ("Has the effusion grown?", ["pleural_effusion"]),
    ("Is the spine straight?", ["scoliosis", "degenerative_spine"]),
])  # fmt: skip
def test_questions_about_findings_go_to_the_classifier(question, findings):
    found = route(question)
    assert found.kind is Kind.FINDINGS and list(found.findings) == findings


def test_a_question_about_the_lungs_covers_all_their_findings():
    found = route("Are the lungs clear?").findings
    assert {"lung_opacity", "consolidation", "pneumothorax", "lung_lesion"} <= set(found)
    assert "cardiomegaly" not in found and "fracture" not in found


@pytest.mark.parametrize(("question", "kind"), [
    ("", Kind.REPORT),
    ("Describe this study.", Kind.REPORT),
    ("  describe THIS   study. ", Kind.REPORT),
    ("Please write a report", Kind.REPORT),
    ("Which findings are there?", Kind.OVERVIEW),
    ("What is normal in this image?", Kind.OVERVIEW),
    ("What should a reader check first?", Kind.OVERVIEW),
    ("Hello", Kind.UNSUPPORTED),
    ("What is the patient's age?", Kind.UNSUPPORTED),
    ("Is there free air under the diaphragm?", Kind.UNSUPPORTED),
    ("Is there subcutaneous emphysema?", Kind.UNSUPPORTED),  # not the emphysema of the lung
])  # fmt: skip
def test_other_questions(question, kind):
    assert route(question).kind is kind


def test_without_an_image_every_question_asks_for_one():
    for question in ("", "Hello", "Is there a pneumothorax?", "Describe this study."):
        assert route(question, num_media=0).kind is Kind.NO_IMAGE
        assert route(question, UNKNOWN, num_media=0, predictable=()).kind is not Kind.NO_IMAGE


def test_a_model_of_which_nothing_is_known_is_asked_as_it_is():
    for question in ("Is there a pneumothorax?", "Hello", "Which findings are there?"):
        assert route(question, UNKNOWN, predictable=()).kind is Kind.FREE
    # A classifier answers what it knows, and the language model everything else.
    assert route("Is there a pneumothorax?", UNKNOWN).kind is Kind.FINDINGS
    assert route("What colour is it?", UNKNOWN).kind is Kind.FREE


def test_a_model_that_only_writes_reports_answers_from_its_report():
    found = route("Is there a pneumothorax?", REPORTS_ONLY, predictable=())
    assert found.kind is Kind.FINDINGS and found.findings == ("pneumothorax",)
    assert route("What is wrong here?", REPORTS_ONLY, predictable=()).kind is Kind.REPORT
    assert route("How old is she?", REPORTS_ONLY, predictable=()).kind is Kind.UNSUPPORTED


def test_findings_that_the_classifier_lacks_are_not_answered():
    assert route("Is there a fracture?", predictable=("edema",)).kind is Kind.UNSUPPORTED


@pytest.mark.parametrize(
    "question",
    ["Is this chest normal?", "Is this chest X-ray normal? Yes or no?", "Anything in the chest?"],
)
def test_the_chest_as_a_whole_is_not_only_the_lungs(question):
    assert CHEST.asked_findings(question) == []
    assert CHEST.asks_for_overview(question)
