"""Findings in free text: by the labeller, and by names as RadVLM counts them."""

from __future__ import annotations

import pytest

from tests.tasks.phantom_answers import predict
from xraygpt.common.errors import InputError
from xraygpt.instructions.collections.labels import COLUMNS
from xraygpt.instructions.wording import load_wording
from xraygpt.tasks.classification import (
    AbnormalityClassification,
    findings_of_label,
    named_by_labeller,
    unreadable,
)

CHEXPERT = ("Atelectasis", "Cardiomegaly", "Consolidation", "Lung Opacity", "Pneumothorax")
VOCABULARIES = {
    "chexpert": COLUMNS,
    "vindr": (
        "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture",
        "Consolidation", "COPD", "Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration",
        "Lung Opacity", "Lung cavity", "Lung cyst", "Lung tumor", "Mediastinal shift",
        "Nodule/Mass", "Other lesion", "Pleural effusion", "Pleural thickening", "Pneumonia",
        "Pneumothorax", "Pulmonary fibrosis", "Rib fracture", "Tuberculosis",
    ),
    "nih": (
        "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia",
        "Pneumothorax", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening",
        "Hernia",
    ),
}  # fmt: skip


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
    assert named_by_labeller("There is consolidation.", CHEXPERT) == {"Consolidation"}
    assert named_by_labeller("Hazy opacities on the left.", CHEXPERT) == {"Lung Opacity"}
    devices = ("pacemaker", "catheter")
    assert named_by_labeller("There is a pacemaker.", devices) == {"pacemaker"}
    assert named_by_labeller("There is a catheter.", devices) == {"catheter"}


@pytest.mark.parametrize("name", ["chexpert", "vindr", "nih"])
def test_perfect_answers_score_one_in_every_vocabulary(name):
    """One sentence for each label that the labeller knows, and one for its absence."""
    labels = VOCABULARIES[name]
    known = [label for label in labels if label not in unreadable(labels)]
    assert len(known) >= len(labels) - 3, unreadable(labels)
    rows = []
    for label in known:
        noun = load_wording().name(label).noun
        said = noun if named_by_labeller(f"There is {noun}.", labels) else label
        rows.append((f"There is {said}.", [label]))
    found = scores(*rows, pathologies=labels)
    assert found["labeller_F1_micro"] == found["labeller_F1_macro"] == 1
    if "No Finding" in labels:
        assert named_by_labeller("No finding.", labels) == {"No Finding"}
        assert named_by_labeller("No pneumothorax.", labels) == set()
        assert "No Finding" not in named_by_labeller("A normal heart. There is edema.", labels)


def test_findings_that_were_not_looked_for_do_not_count():
    """Two collections: emphysema is judged in the second only."""
    task = AbnormalityClassification.Config().build()
    rows = [
        predict("a", "Edema and emphysema.", labels=["Edema"], pathologies=["Edema"]),
        predict("b", "Emphysema.", labels=["Emphysema"], pathologies=["Edema", "Emphysema"]),
    ]
    found = {s.name: s.value for s in task.score(rows)}
    assert found["labeller_precision_micro"] == found["labeller_F1_macro"] == 1


def test_labels_that_the_labeller_does_not_know_are_listed():
    task = AbnormalityClassification.Config().build()
    found = task.score([predict("a", "Other lesion.", labels=["Other lesion"], pathologies=[])])
    assert "no name of its own for Other lesion" in task.left_out["labeller"]
    assert {s.name: s.value for s in found}["radvlm_F1_micro"] == 1
    assert findings_of_label("Enlarged Cardiomediastinum") == {"enlarged_cardiomediastinum"}


def test_predictions_without_labels_are_refused():
    with pytest.raises(InputError, match=r"a has no labels .* builder instructions"):
        AbnormalityClassification.Config().build().score([predict("a", "x")])
