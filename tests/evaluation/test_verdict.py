"""The verdict in words: a model that reads images, one that ignores them, and small samples."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from xraygpt.evaluation.scoring import score_rows
from xraygpt.evaluation.verdict import MIN_STUDIES, judge, studies_needed
from xraygpt.tasks.base import Prediction
from xraygpt.tasks.contrastive import ImageTextContrastive
from xraygpt.tasks.language_modeling import LanguageModeling
from xraygpt.tasks.report_generation import ReportGeneration
from xraygpt.tasks.vqa import Vqa
from xraygpt.tasks.yes_no import YesNo

REPORT, VQA = ReportGeneration(ReportGeneration.Config()), Vqa(Vqa.Config())
SIDES = ("left", "right", "upper", "lower")


def answers(texts: list[str], references: list[str]) -> list[Prediction]:
    rows = enumerate(zip(texts, references, strict=True))
    return [Prediction(f"s{i}", f"p{i}", "Where?", t, r, 0) for i, (t, r) in rows]


def vqa_result(n: int, right: float, right_shuffled: float) -> dict:
    """Scores of injected answers, of which a given share is right with each image."""
    rng = np.random.default_rng(0)
    references = [SIDES[i] for i in rng.integers(0, 4, n)]

    def predict(share: float) -> list[Prediction]:
        hits = rng.random(n) < share
        texts = [r if hit else "nowhere" for r, hit in zip(references, hits, strict=True)]
        return answers(texts, references)

    predictions = {"true": predict(right), "shuffled-0": predict(right_shuffled)}
    predictions["most_common"] = answers(["left"] * n, references)
    predictions["nearest"] = predict(0.99)
    scores, _ = score_rows(VQA, predictions)
    return {"scores": scores, "losses": [], "studies": n}


def test_a_model_that_follows_the_image_reads_it():
    result = vqa_result(200, 0.8, 0.25)
    verdict = judge(VQA, result)
    row = next(r for r in result["scores"] if r["condition"] == "shuffled")["true_minus"]
    assert (verdict.outcome, verdict.score, verdict.control) == (
        "reads the image", "accuracy", "shuffled",
    )  # fmt: skip
    assert verdict.sentences[0] == (
        f"The model reads the image: its accuracy is {row['value']:.3f} ({row['low']:.3f} to "
        f"{row['high']:.3f}) higher than with another study's image."
    )
    assert verdict.sentences[1].startswith(
        "It is worse than the answer of the most similar training image (difference in accuracy -0."
    )
    assert verdict.sentences[2].startswith("It beats the most common answer of the training split")


def test_a_model_that_answers_the_same_for_every_image_ignores_it():
    n = 200
    references = [SIDES[i % 4] for i in range(n)]
    same = answers(["left"] * n, references)
    scores, _ = score_rows(VQA, {"true": same, "shuffled-0": same, "most_common": same})
    verdict = judge(VQA, {"scores": scores, "losses": [], "studies": n})
    assert verdict.outcome == "ignores the image"
    assert verdict.sentences == (
        "The model does not beat another study's image (difference in accuracy 0.000, 0.000 to "
        "0.000): it ignores the image.",
        "It is not clearly better than the most common answer of the training split (difference "
        "in accuracy 0.000, 0.000 to 0.000).",
    )


def test_a_tiny_sample_decides_nothing_even_if_every_answer_is_right():
    verdict = judge(VQA, vqa_result(6, 1.0, 0.0))
    assert verdict.outcome == "undecided"
    assert "6 studies are too few" in verdict.sentences[0]
    assert verdict.sentences[0].endswith(f"Evaluate about {MIN_STUDIES} studies.")


def test_a_wide_interval_is_undecided_and_says_how_many_studies_are_needed():
    result = vqa_result(40, 0.5, 0.45)
    verdict = judge(VQA, result)
    row = next(r for r in result["scores"] if r["condition"] == "shuffled")["true_minus"]
    assert row["low"] < 0 < row["high"] and verdict.outcome == "undecided"
    needed = int(re.search(r"about (\d+) studies", verdict.sentences[0])[1])
    target = max(abs(row["value"]), 0.05 - row["value"])
    exact = 40 * ((row["high"] - row["low"]) / 2 / target) ** 2
    assert exact <= needed <= 1.1 * exact + 1 and needed > 40


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "needed"),
    [
        (0.1, -0.1, 0.3, 100, 400),  # half as wide: four times as many
        (0.0, -0.1, 0.1, 100, 400),  # to lie below 0.05
        (0.5, -0.01, 1.0, 5, MIN_STUDIES),
        (0.03, -0.02, 0.08, 1234, 3500),
    ],
)
def test_the_number_of_studies_follows_from_the_width(value, low, high, n, needed):
    assert studies_needed(value, low, high, 0.05, n) == needed


def true_minus(name: str, condition: str, value: float, low: float, high: float) -> dict:
    gap = {"value": value, "low": low, "high": high}
    return {"name": name, "condition": condition, "value": 0.3, "true_minus": gap}


def test_the_task_names_the_score_that_decides_and_undefined_scores_are_passed_over():
    rows = [
        true_minus("ROUGE-L", "shuffled", 0.2, 0.1, 0.3),
        true_minus("frequent_coding_macro_F1", "shuffled", math.nan, math.nan, math.nan),
        true_minus("frequent_text_macro_F1", "shuffled", 0.219, 0.177, 0.259),
        true_minus("frequent_text_macro_F1", "nearest", -0.0001, -0.01, 0.01),
        true_minus("AUROC_macro", "blank", 0.2, 0.1, 0.3),
    ]
    result = {"scores": rows, "losses": [], "studies": 300}
    report = judge(REPORT, result)
    assert report.score == "frequent_text_macro_F1"
    assert report.sentences == (
        "The model reads the image: its macro F1 of findings is 0.219 (0.177 to 0.259) higher "
        "than with another study's image.",
        "It is not clearly better than the report of the most similar training image (difference "
        "in macro F1 of findings 0.000, -0.010 to 0.010).",
    )
    yes_no = judge(YesNo(YesNo.Config()), result)
    assert (yes_no.score, yes_no.control) == ("AUROC_macro", "blank")
    assert yes_no.sentences[0].endswith("higher than with a black image.")


def test_a_score_of_zero_in_every_condition_does_not_decide():
    """As F1 of findings in a corpus in which the labeller recognises no finding."""
    references = [f"The {SIDES[i % 4]} lamp is lit." for i in range(60)]
    same = answers(references[:1] * 60, references)
    predictions = {"true": answers(references, references), "shuffled-0": same}
    scores, _ = score_rows(REPORT, predictions)
    f1 = [row["value"] for row in scores if row["name"] == "findings_text_F1"]
    assert f1 == [0.0, 0.0]
    verdict = judge(REPORT, {"scores": scores, "losses": [], "studies": 60})
    assert (verdict.outcome, verdict.score) == ("reads the image", "ROUGE-L")


def test_without_a_score_the_loss_decides():
    def row(name: str, value: float, low: float, high: float) -> dict:
        signature = "nats per reference character"
        return {"name": name, "value": value, "low": low, "high": high, "signature": signature}

    true = row("loss_true", 0.5, 0.4, 0.6)
    task = ImageTextContrastive(ImageTextContrastive.Config())
    cases = {
        "reads the image": (0.0444, 0.0425, 0.0463),
        "ignores the image": (0.0001, -0.002, 0.002),
        "undecided": (0.01, -0.02, 0.04),
        "worse than the control": (-0.02, -0.03, -0.01),
    }
    for outcome, limits in cases.items():
        losses = [true, row("loss_shuffled_minus_true", *limits)]
        verdict = judge(task, {"scores": [], "losses": losses, "studies": 100})
        assert verdict.outcome == outcome
        assert "-0.0000" not in verdict.sentences[0]
    assert verdict.sentences[0].startswith("The model does worse with the true image")


def test_without_a_control_nothing_is_claimed():
    empty = {"scores": [], "losses": [], "studies": 100}
    assert "add shuffled to run.controls" in judge(VQA, empty).sentences[0]
    equal = {"value": 0.0, "low": 0.0, "high": 0.0, "signature": "nats"}
    losses = [
        {**equal, "name": "loss_true", "value": 0.5},
        {**equal, "name": "loss_shuffled_minus_true"},
    ]
    text_only = judge(LanguageModeling(LanguageModeling.Config()), {**empty, "losses": losses})
    assert text_only.sentences == (
        "This task reads no images, so there is no control to compare it with.",
    )
