"""The vocabulary of echocardiograms: our own sentences, sections, contradictions, invariances."""

from __future__ import annotations

import json
import pickle
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.traits import GRADES, TraitValue

ECHO = get_vocabulary("echo")
TRAITS = {trait.name: trait for trait in ECHO.traits}
LINES = (Path(__file__).parent / "echo_sentences.jsonl").read_text("utf-8").splitlines()
SENTENCES = [json.loads(line) for line in LINES]


def written(name: str, value: TraitValue) -> Any:
    """A value in the notation of the test file."""
    if value.bounds is not None:
        low, high = value.bounds
        return value.number if low == high else [low, value.number, high]
    if TRAITS[name].kind == "present":
        return {"positive": "yes", "negative": "no", "uncertain": "maybe"}[value.status]
    if value.status == "negative" and value.high > 0:
        return f"<={GRADES[value.high]}"
    return ("?" if value.status == "uncertain" else "") + (value.grade or "any")


@pytest.mark.parametrize("case", SENTENCES, ids=[case["text"][:60] for case in SENTENCES])
def test_sentence(case: dict):
    reading = ECHO.read_traits(case["text"])
    assert {name: written(name, v) for name, v in reading.values.items()} == case["traits"]
    assert {c.about for c in reading.contradictions} == set(case.get("contradictions", ()))


def test_sentences_are_distinct_and_of_every_kind():
    assert len({case["text"] for case in SENTENCES}) == len(SENTENCES) >= 200
    counts = Counter(case["kind"] for case in SENTENCES)
    assert set(counts) == {
        "device", "severity", "negation", "hedge", "number", "history", "section", "motion",
        "contradiction", "consistent",
    } and min(counts.values()) >= 8  # fmt: skip
    assert {name for case in SENTENCES for name in case["traits"]} == set(TRAITS)


@pytest.mark.parametrize("name", list(TRAITS))
def test_every_trait_is_affirmed_and_denied_or_has_numbers(name: str):
    values = {str(case["traits"].get(name)) for case in SENTENCES} - {"None"}
    if TRAITS[name].is_number:
        assert len(values) > 4
        return
    grades = {v for v in values if v not in {"none", "no", "<=mild"} and v[0] != "?"}
    assert grades - {"maybe"}
    denied = {"none", "no", "<=mild"} & values
    assert denied or name in {"tavr", "mitraclip", "rv_systolic_function_depressed",
                              "pulmonic_valve_regurgitation"}  # fmt: skip


def test_traits_are_those_of_the_published_table_in_its_order():
    assert list(TRAITS) == [
        "pacemaker", "impella", "tavr", "mitraclip", "aortic_root_dilation",
        "bicuspid_aov_morphology", "aortic_stenosis", "tricuspid_stenosis", "aortic_regurgitation",
        "dilated_ivc", "left_atrium_dilation", "ejection_fraction",
        "mitral_annular_calcification", "mitral_stenosis", "mitral_regurgitation",
        "pericardial_effusion", "pulmonary_artery_pressure_continuous", "right_atrium_dilation",
        "rv_systolic_function_depressed", "right_ventricle_dilation",
        "tricuspid_valve_regurgitation", "pulmonic_valve_regurgitation",
        "elevated_left_atrial_pressure", "wall_motion_hypokinesis", "atrial_septum_hypertrophy",
    ]  # fmt: skip
    for trait in ECHO.traits:
        assert trait.criterion and trait.views and trait.modes and trait.source
        assert trait.question.endswith("?") != trait.is_number


def test_grades_are_ordered_and_thresholds_are_moderate():
    trait = TRAITS["aortic_stenosis"]
    readings = {
        words: ECHO.read_traits(f"{words} aortic stenosis.").values["aortic_stenosis"]
        for words in ("No", "Trace", "Mild", "Mild to moderate", "Moderate", "Moderate to severe",
                      "Severe")
    }  # fmt: skip
    assert [value.grade for value in readings.values()] == list(GRADES)
    positive = [value.is_positive(trait) for value in readings.values()]
    assert positive == [False, False, False, False, True, True, True]
    open_value = ECHO.read_traits("Aortic stenosis is present.").values["aortic_stenosis"]
    assert open_value.is_positive(trait) is None and open_value.grade is None
    at_least = ECHO.read_traits("At least moderate aortic stenosis.").values["aortic_stenosis"]
    assert at_least.is_positive(trait) is True


def test_findings_are_labelled_by_their_criterion():
    labels = ECHO.label("Mild mitral regurgitation. Severe aortic stenosis. LVEF 55 %. "
                        "Aortic regurgitation is present. Possible TAVR.")  # fmt: skip
    assert labels == {
        "mitral_regurgitation": "negative",
        "aortic_stenosis": "positive",
        "aortic_regurgitation": "uncertain",
        "tavr": "uncertain",
    }
    assert "ejection_fraction" not in ECHO.findings and len(ECHO.findings) == 23
    assert ECHO.findings_of(["Mitral regurgitation/moderate", "impella", "x"]) == {
        "mitral_regurgitation", "impella"
    }  # fmt: skip
    question = ECHO.question("mitral_regurgitation")
    assert "moderate or severe" in question
    assert ECHO.finding_of_question(question.upper()) == "mitral_regurgitation"


def test_contradictions_give_the_positions_of_both_sentences():
    text = "Findings: LVEF 65 %. The valves are normal. Systolic function is severely reduced."
    (found,) = ECHO.contradictions(text)
    assert text[slice(*found.first)] == "LVEF 65 %."
    assert text[slice(*found.second)] == "Systolic function is severely reduced."
    assert found.about == "ejection_fraction" and "65" in found.reason


@pytest.mark.parametrize("case", SENTENCES[::3], ids=[case["text"][:60] for case in SENTENCES[::3]])
def test_the_layout_of_a_text_does_not_matter(case: dict):
    """Windows line ends, long dashes, repeated spaces and other sentences change nothing."""
    text = case["text"]
    expected = ECHO.read_traits(text).values
    for other in (
        text.replace("\n", "\r\n"),
        text.replace("-", "\u2013"),
        f"The study is of good quality.\n{text}\nThank you for the referral.",
    ):
        values = ECHO.read_traits(other).values
        assert {k: written(k, v) for k, v in values.items()} == {
            k: written(k, v) for k, v in expected.items()
        }, other


def test_any_text_can_be_read():
    """Shuffled words, long texts and other alphabets neither fail nor take long."""
    words = [word for case in SENTENCES for word in case["text"].split()]
    rng = random.Random(0)
    for _ in range(200):
        ECHO.read_traits(" ".join(rng.sample(words, 30)))
    for text in (
        "",
        "\n\n",
        ":",
        "EF",
        "EF %",
        "İstanbul \u0130 mild MR",
        "no " * 2000,
        "1" * 5000,
    ):
        ECHO.read_traits(text)
    start = time.perf_counter()
    ECHO.read_traits("Mild mitral and " * 400)
    ECHO.read_traits(("Moderate aortic stenosis, " * 60 + ". ") * 5)
    assert time.perf_counter() - start < 20


def test_offsets_hold_for_letters_that_change_their_length_in_lower_case():
    text = "\u0130. LVEF 65 %. Systolic function is severely reduced."
    (found,) = ECHO.contradictions(text)
    assert text[slice(*found.first)] == "LVEF 65 %."


def test_the_vocabulary_is_pickled_by_name():
    assert pickle.loads(pickle.dumps(ECHO)) is ECHO


def test_the_page_lists_every_trait_with_its_criterion_views_and_modes():
    page = (REPO / "docs" / "echo_traits.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for trait, row in zip(ECHO.traits, rows[: len(TRAITS)], strict=True):
        name, criterion, views, modes, source = (
            cell.strip() for cell in row.strip("| ").split("|")
        )
        assert name == f"`{trait.name}`" and criterion == trait.criterion
        assert views == ", ".join(trait.views) and modes == ", ".join(trait.modes)
        assert trait.source.startswith(source) or source == "none"
