"""Priors and masks are removed, findings are kept."""

from __future__ import annotations

import pytest

from tests.curation.test_sources import openi  # noqa: F401  (a fixture)
from xraygpt.curation.checks import rejection_reasons
from xraygpt.curation.grammar import is_broken
from xraygpt.curation.rules import COMPARISON, MASK, clean, resolve_masks
from xraygpt.vocabulary.chest_labeller import label
from xraygpt.vocabulary.openi import is_published_test


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Stable cardiomegaly.", "Cardiomegaly."),
        ("Stable cardiomegaly compared to the prior exam.", "Cardiomegaly."),
        ("No change in the small left effusion.", "Small left effusion."),
        ("No new focal consolidation.", "No focal consolidation."),
        ("The heart is normal in size and unchanged.", "The heart is normal in size."),
        ("Interval increase in left pleural effusion.", "Left pleural effusion."),
        (
            "A nodule is again seen in the right upper lobe.",
            "A nodule is seen in the right upper lobe.",
        ),
        ("Unchanged from the prior study.", ""),
        ("Comparison to the prior exam.", ""),
        ("PA and lateral views of the chest.", ""),
        ("Normal chest x-XXXX.", "Normal chest x-ray."),
        ("XXXX XXXX.", ""),
        ("The lungs are clear. Lungs clear.", "The lungs are clear. Lungs clear."),
        ("The lungs are clear. The lungs are clear.", "The lungs are clear."),
        ("Prior granulomatous disease.", "Prior granulomatous disease."),
        ("Right XXXX-A-XXXX is seen.<BR>Heart large.", "Right Port-A-Cath is seen. Heart large."),
        ("No effusion.The heart is large.", "No effusion. The heart is large."),
        ("A dual-XXXX pacemaker is seen.", "A pacemaker is seen."),
        (
            "Calcified lymph XXXX and sternotomy XXXX.",
            "Calcified lymph nodes and sternotomy wires.",
        ),
        (
            "The heart, pulmonary XXXX and mediastinum are normal.",
            "The heart and mediastinum are normal.",
        ),
        ("Opacity XXXX representing scarring.", "Opacity possibly representing scarring."),
        ("Mild interstitial markings which are unchanged.", "Mild interstitial markings."),
        ("Kyphosis similar to the prior study.", "Kyphosis."),
        ("Critical result notification documented.", ""),
        ("There is a XXXX 7 XXXX nodular density.", "There is a nodular density."),
        ("There is a 7 XXXX opacity.", "There is an opacity."),
        ("An 8 to 9 XXXX nodule is seen.", "A nodule is seen."),
        ("Right nodule measuring 7 XXXX in diameter.", "Right nodule."),
        ("Ovoid opacity (4.3 x 2.8 XXXX) is seen.", "Ovoid opacity is seen."),
        ("A mass, which measures approximately 2 XXXX by 3 XXXX, is seen.", "A mass is seen."),
        ("XXXX 1.9 XXXX left nodule without calcification.", "Left nodule without calcification."),
        ("The nodule measures 7 XXXX.", ""),
        ("The 3 XXXX XXXX remain intact.", ""),
        (
            "Deformities of at XXXX 2 vertebral bodies.",
            "Deformities of at least 2 vertebral bodies.",
        ),
        ("A 1.2 x 3.4 cm nodule.", "A 1.2 x 3.4 cm nodule."),
        ("Severe L1 XXXX deformity.", "Severe L1 deformity."),
        ("Callus at rib 8 XXXX is seen.", "Callus at rib 8 is seen."),
    ],
)
def test_priors_masks_and_views_are_removed(text: str, expected: str):
    assert clean([text]).text == expected


def test_a_history_near_the_word_exam_is_not_a_comparison():
    assert not COMPARISON.search("Prior granulomatous disease. Exam without abnormality.")
    assert COMPARISON.search("As on the prior chest exam.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Bilateral opacities are unchanged since ___.", "Bilateral opacities."),
        ("Moderate edema has worsened since ___ at 05:30.", "Moderate edema."),
        ("The tube is unchanged in position from ___.", "The tube is in position."),
        ("Dr. ___ was paged about it.", ""),
        ("The heart and lungs have XXXX XXXX in the interval.", ""),
        ("No XXXX abnormalities as compared to prior study.", ""),
        ("The effusion is no longer seen.", ""),
        ("Removal of left PICC line.", ""),
        ("Appearance of the chest is unchanged.", ""),
        ("The XXXX are intact.", ""),
        ("This appears XXXX from XXXX.", ""),
        ("Unremarkable XXXX.", ""),
        (
            "Tip in the vein, an interval retraction of 6 cm.",
            "Tip in the vein, a retraction of 6 cm.",
        ),
        ("Lumbar spine: no fracture. Hip: normal. Lumbar spine: no fracture.",) * 2,
    ],
)
def test_the_rest_is_a_sentence_about_the_current_study(text: str, expected: str):
    assert clean([text]).text == expected


def test_captions_of_figures_keep_the_word_stable():
    assert clean(["X-ray of a stable shoulder."], priors=True).text == "X-ray of a stable shoulder."


@pytest.mark.parametrize(
    "text",
    ["Opacities are represent emphysema.", "Slightly increased, in.", "Change.", "Heart size.",
     "Pulmonary and mediastinum are normal.", "Calcified hilar.", "In the the there is."],
)  # fmt: skip
def test_broken_sentences_are_detected(text: str):
    assert is_broken(text)
    assert not is_broken("The heart is large and the lungs are clear.")


def test_changes_are_counted():
    cleaned = clean(
        ["Stable cardiomegaly. Unchanged from the prior study.", "Stable cardiomegaly."]
    )
    assert cleaned.removed == {"prior study": 1, "said twice": 1}
    assert cleaned.changed == 1


@pytest.mark.slow
def test_findings_are_kept_and_masks_removed_in_all_of_openi(openi):  # noqa: F811
    """Reports with both sections, without the published test split."""
    findings = agreed = masked = comparing = reports = accepted = 0
    for report in openi:
        sections = [report.sections.get(s, "") for s in ("findings", "impression")]
        if is_published_test(report.source_id) or not all(sections):
            continue
        result = clean(sections).text
        reports += 1
        if rejection_reasons(resolve_masks(" ".join(sections)), result):
            continue  # held back
        accepted += 1
        before, after = label(" ".join(sections)), label(result)
        findings += len(before)
        agreed += sum(after.get(name) == status for name, status in before.items())
        masked += bool(MASK.search(result))
        comparing += bool(COMPARISON.search(result))
    assert reports > 2500
    assert accepted / reports > 0.95
    assert agreed / findings >= 0.99
    assert masked == 0
    assert comparing == 0
