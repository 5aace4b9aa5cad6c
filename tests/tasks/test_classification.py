"""Findings in free text: by the labeller, and by names as RadVLM counts them."""

from __future__ import annotations

import pytest

from tests.tasks.phantom_answers import predict
from xraygpt.common.errors import InputError
from xraygpt.tasks.classification import (
    AbnormalityClassification,
    findings_of_label,
    named_by_labeller,
)

CHEXPERT = ("Atelectasis", "Cardiomegaly", "Consolidation", "Lung Opacity", "Pneumothorax")


def scores(*rows: tuple[str, list[str]], pathologies=CHEXPERT) -> dict[str, float]:
    task = AbnormalityClassification.Config().build()
    predictions = [
        predict(f"s{i}", text, labels=labels, pathologies=list(pathologies))
        for i, (text, labels) in enumerate(rows)
    ]
    return {s.name: s.value for s in task.score(predictions)}


def test_negation_and_synonyms_are_read_by_the_labeller_and_not_by_substrings():
    """Fault 16: "No pneumothorax" names it, "the heart is enlarged" does not."""
    found = scores(("No pneumothorax. The heart is enlarged.", ["Cardiomegaly"]))
    assert found["labeller_F1_micro"] == 1 and found["radvlm_F1_micro"] == 0
    found = scores(("Atelectasis is seen.", ["Atelectasis"]), ("Normal.", []))
    assert found["labeller_F1_micro"] == found["radvlm_F1_micro"] == 1


def test_a_name_of_a_wider_finding_does_not_count_as_the_narrower_one():
    assert named_by_labeller("There is lung opacity.", CHEXPERT) == {"Lung Opacity"}
    assert named_by_labeller("There is consolidation.", CHEXPERT) == {
        "Consolidation", "Lung Opacity"
    }  # fmt: skip
    devices = ("pacemaker", "catheter")
    assert named_by_labeller("There is a pacemaker.", devices) == {"pacemaker"}
    assert named_by_labeller("There is a catheter.", devices) == {"catheter"}


def test_labels_that_the_labeller_does_not_know_are_listed():
    task = AbnormalityClassification.Config().build()
    found = task.score([predict("a", "Other lesion.", labels=["Other lesion"], pathologies=[])])
    assert "no name for Other lesion" in task.left_out["labeller"]
    assert {s.name: s.value for s in found}["radvlm_F1_micro"] == 1
    assert findings_of_label("Enlarged Cardiomediastinum") == {"enlarged_cardiomediastinum"}


def test_predictions_without_labels_are_refused():
    with pytest.raises(InputError, match=r"a has no labels .* builder instructions"):
        AbnormalityClassification.Config().build().score([predict("a", "x")])
