"""Scores of the rule-based labeller's findings."""

from __future__ import annotations

import pytest

from xraygpt.metrics.labelled_findings import labelled_finding_scores

PREDICTIONS = [
    {"edema": "positive", "pneumonia": "negative"},
    {"edema": "uncertain"},
    {"pneumonia": "positive"},
    {"edema": "positive", "pneumonia": "positive"},
]
REFERENCES = [
    {"edema": "positive"},
    {"edema": "positive", "pneumonia": "positive"},
    {"pneumonia": "negative"},
    {"edema": "negative", "pneumonia": "positive"},
]


@pytest.mark.parametrize(
    ("policy", "edema", "pneumonia", "micro"),
    [
        # edema: predicted in 0, 1, 3, present in 0, 1; pneumonia: in 2, 3 and in 1, 3
        ("positive", (2 / 3, 1.0, 0.8), (0.5, 0.5, 0.5), (3 / 5, 3 / 4, 2 / 3)),
        # edema is not predicted in report 1
        ("negative", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (2 / 4, 2 / 4, 0.5)),
        # report 1 is left out for edema
        ("ignore", (0.5, 1.0, 2 / 3), (0.5, 0.5, 0.5), (2 / 4, 2 / 3, 4 / 7)),
    ],
)
def test_scores_by_hand(policy, edema, pneumonia, micro):
    scores = labelled_finding_scores(PREDICTIONS, REFERENCES, uncertain=policy)
    for name, expected in (("edema", edema), ("pneumonia", pneumonia)):
        row = scores["findings"][name]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(expected)
    row = scores["micro"]
    assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(micro)
    assert scores["macro"]["f1"] == pytest.approx((edema[2] + pneumonia[2]) / 2)
    assert scores["averaged"] == ["edema", "pneumonia"]
    assert scores["n"] == 4


def test_texts_and_sets_and_rare_findings():
    texts = ["Small effusion.", "No effusion. Cardiomegaly.", "Possible effusion."]
    references = [{"pleural_effusion"}, {"pleural_effusion"}, frozenset[str]()]
    scores = labelled_finding_scores(texts, references, min_support=2)
    effusion = scores["findings"]["pleural_effusion"]
    assert (effusion["support"], effusion["predicted"], effusion["f1"]) == (2, 2, 0.5)
    assert scores["findings"]["cardiomegaly"]["predicted"] == 1
    assert scores["averaged"] == ["pleural_effusion"]
    assert scores["micro"]["f1"] == scores["macro"]["f1"] == 0.5
    assert labelled_finding_scores(texts, texts)["micro"]["f1"] == 1.0
    assert labelled_finding_scores([], [])["micro"]["f1"] == 0.0
    with pytest.raises(ValueError, match="3 predictions for 1"):
        labelled_finding_scores(texts, references[:1])
