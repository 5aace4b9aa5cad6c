"""Word overlap against hand-computed values and the libraries' corpus scores."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.metrics.reports import finding_scores, report_scores
from xraygpt.metrics.statistics import bootstrap, mean_score
from xraygpt.metrics.text import bleu_scores, rouge_scores, rouge_values, split_words
from xraygpt.metrics.vqa import normalise, vqa_scores

PREDICTIONS = ["the heart is normal", "there is a small effusion on the left", "no pneumothorax"]
REFERENCES = [
    "the heart size is normal",
    "small left effusion is present",
    "there is no pneumothorax .",
]


def test_split_words():
    assert split_words("Heart size: 1.5 cm, x-ray.") == [
        "heart",
        "size",
        ":",
        "1.5",
        "cm",
        ",",
        "x-ray",
        ".",
    ]


def test_bleu_equals_sacrebleus_corpus_score():
    from sacrebleu.metrics import BLEU

    for order, score in enumerate(bleu_scores(PREDICTIONS, REFERENCES), start=1):
        bleu = BLEU(max_ngram_order=order, tokenize="none", smooth_method="none", force=True)
        expected = bleu.corpus_score(
            [" ".join(split_words(p)) for p in PREDICTIONS],
            [[" ".join(split_words(r)) for r in REFERENCES]],
        )
        assert score.value == pytest.approx(expected.score / 100, abs=1e-9)
        assert score.n == 3


def test_bleu_1_by_hand():
    """Unigrams: 4 of 4, 4 of 8 (is, small, effusion, left), 2 of 2: 10 of 14; lengths 14, 15."""
    score = bleu_scores(PREDICTIONS, REFERENCES)[0]
    assert score.value == pytest.approx(10 / 14 * np.exp(1 - 15 / 14))


def test_rouge_by_hand():
    """LCS of "the heart is normal" and "the heart size is normal" is 4: F1 = 2·4 / (4 + 5)."""
    values = rouge_values(PREDICTIONS[0], REFERENCES[0])
    assert values["ROUGE-L"] == pytest.approx(8 / 9)
    assert values["ROUGE-1"] == pytest.approx(8 / 9)
    assert values["ROUGE-2"] == pytest.approx(2 * 2 / (3 + 4))
    assert rouge_scores(PREDICTIONS, REFERENCES)[2].n == 3


def test_an_empty_prediction_scores_zero():
    assert rouge_values("", "the heart")["ROUGE-L"] == 0
    assert all(s.value == 0 for s in bleu_scores([""], ["the heart"]))


def test_finding_scores_by_hand():
    """2 hits, 3 predicted, 4 reference: precision 2/3, recall 1/2, F1 4/7; abnormal 1, 2, 3."""
    predictions = [{"edema", "fracture"}, {"no_finding"}, set()]
    references = [{"edema", "pneumothorax"}, {"no_finding"}, {"edema"}]
    by_name = {s.name: s.value for s in finding_scores(predictions, references, "text")}
    assert by_name["findings_text_precision"] == pytest.approx(2 / 3)
    assert by_name["findings_text_recall"] == pytest.approx(1 / 2)
    assert by_name["findings_text_F1"] == pytest.approx(4 / 7)
    assert by_name["abnormal_text_F1"] == pytest.approx(2 * 1 / (2 + 3))


def test_distinct_detects_a_collapsed_model():
    equal = report_scores(["Clear."] * 4, ["Clear."] * 4, [None] * 4)
    distinct = report_scores(["a", "b", "c", "d"], ["Clear."] * 4, [None] * 4)
    pick = lambda scores: next(s.value for s in scores if s.name == "distinct")  # noqa: E731
    assert pick(equal) == 0.25
    assert pick(distinct) == 1.0


@pytest.mark.slow
def test_bootstrap_has_nominal_coverage():
    rng = np.random.default_rng(0)
    inside = 0
    for k in range(200):
        values = rng.normal(1.0, 1.0, 60)
        counts = np.stack([values, np.ones(60)], axis=1)
        low, high = bootstrap(counts, lambda c: float(c[0] / c[1]), resamples=300, seed=k)
        inside += low <= 1.0 <= high
    assert 0.88 <= inside / 200 <= 0.99
    empty = mean_score("x", [], "s")
    assert empty.n == 0 and np.isnan(empty.value)


def test_samples_of_one_study_are_not_independent():
    """Ten copies of each sample must not narrow the interval; without groups they do."""
    values = np.random.default_rng(0).normal(0, 1, 30).repeat(10)
    studies = [f"s{i}" for i in range(30) for _ in range(10)]
    grouped = mean_score("x", values.tolist(), "s", studies)
    naive = mean_score("x", values.tolist(), "s")
    single = mean_score("x", values[::10].tolist(), "s")
    width = lambda s: s.high - s.low  # noqa: E731
    assert width(grouped) == pytest.approx(width(single), rel=0.05)
    assert width(naive) < 0.5 * width(grouped)


def test_vqa_answers_are_normalised():
    assert normalise("The left  lung.") == "left lung"
    scores = vqa_scores(
        ["Yes.", "no", "a left lung", "CT"],
        ["yes", "yes", "Left lung", "MRI"],
        ["CLOSED ", "CLOSED", "OPEN", "OPEN"],
    )
    assert [(s.name, s.value, s.n) for s in scores] == [
        ("accuracy", 0.5, 4),
        ("accuracy_closed", 0.5, 2),
        ("accuracy_open", 0.5, 2),
    ]
