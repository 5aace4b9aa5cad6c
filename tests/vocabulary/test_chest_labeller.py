"""The rule-based labeller: 200 sentences, invariances, and agreement with human codes."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from xraygpt.vocabulary.chest_labeller import (
    CHEXPERT_FINDINGS,
    DEVICE_FINDINGS,
    FINDINGS,
    label,
    mentions,
)
from xraygpt.vocabulary.chest_mesh import MESH_RULES, findings_of, is_coded

ROOT = Path(__file__).parents[2]
SENTENCES = [
    json.loads(line)
    for line in (Path(__file__).parent / "finding_sentences.jsonl").read_text("utf-8").splitlines()
]
NEUTRAL = "The gastric bubble is in its usual place."


def expected_labels(case: dict) -> dict[str, str]:
    statuses = {"pos": "positive", "neg": "negative", "unc": "uncertain"}
    return {name: status for key, status in statuses.items() for name in case.get(key, [])}


def test_sentences_are_distinct_and_of_every_kind():
    assert len({case["text"] for case in SENTENCES}) == len(SENTENCES) >= 200
    assert min(Counter(case["kind"] for case in SENTENCES).values()) >= 20
    assert {case["kind"] for case in SENTENCES} == {
        "negation",
        "list",
        "uncertainty",
        "pseudo",
        "laterality",
        "history",
        "synonym",
        "plain",
    }
    labelled = {name for case in SENTENCES for name in expected_labels(case)}
    assert labelled == set(FINDINGS) - {"no_finding"}


@pytest.mark.parametrize("case", SENTENCES, ids=[case["text"][:60] for case in SENTENCES])
def test_sentence(case: dict):
    expected = expected_labels(case)
    labels = label(case["text"])
    no_finding = labels.pop("no_finding", None)
    assert labels == expected
    abnormal = {
        name
        for name, status in expected.items()
        if status != "negative" and name not in DEVICE_FINDINGS
    }
    if expected:
        assert (no_finding == "positive") == (not abnormal)

    case_mentions = mentions(case["text"])
    assert {m.finding for m in case_mentions if m.historical} == set(case.get("past", []))
    for name, side in case.get("side", {}).items():
        assert side in {m.laterality for m in case_mentions if m.finding == name}


def test_spans_of_mentions():
    text = "FINDINGS:  Mild\ncardiomegaly.\n\nThere is NO Pneumothorax; old left rib fracture."
    by_finding = {m.finding: m for m in mentions(text)}
    assert set(by_finding) == {"cardiomegaly", "pneumothorax", "fracture"}
    assert [text[slice(*by_finding[name].span)] for name in ("cardiomegaly", "pneumothorax")] == [
        "cardiomegaly",
        "Pneumothorax",
    ]
    assert by_finding["pneumothorax"].sentence == "There is NO Pneumothorax;"
    assert by_finding["fracture"].laterality == "left"
    assert by_finding["fracture"].historical
    assert not by_finding["cardiomegaly"].historical
    spans = [m.span for m in mentions(text)]
    assert spans == sorted(spans)


def test_a_report_has_the_strongest_status():
    assert label("No effusion. Possible effusion.")["pleural_effusion"] == "uncertain"
    assert label("Small effusion. No effusion. Possible effusion.")["pleural_effusion"] == (
        "positive"
    )


def test_past_mentions_count_only_for_lasting_findings():
    assert "pneumonia" not in label("History of pneumonia.")
    assert label("History of pneumonia. Pneumonia today.")["pneumonia"] == "positive"
    assert label("Old fracture of the left clavicle.")["fracture"] == "positive"


@pytest.mark.parametrize(
    ("text", "positive"),
    [
        ("The lungs are clear. Normal heart size.", True),
        ("No acute abnormality of heart or lungs.", True),
        ("Right PICC with its tip in the SVC. No pneumothorax.", True),
        ("Possible pneumonia.", False),
        ("Mild scoliosis. The lungs are clear.", False),
        (NEUTRAL, False),
    ],
)
def test_no_finding(text: str, positive: bool):
    assert (label(text).get("no_finding") == "positive") is positive


def test_sections_that_do_not_describe_the_image_are_skipped():
    text = (
        "EXAMINATION: Chest, two views.\n\nINDICATION: Known pneumothorax, cough.\n\n"
        "COMPARISON: Film with an effusion.\n\nFINDINGS: The heart is enlarged.\n\n"
        "IMPRESSION:\n1. Cardiomegaly.\n2. No edema."
    )
    assert label(text) == {"cardiomegaly": "positive", "edema": "negative"}


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title, lambda text: f"  {text}\n"])
def test_case_and_outer_blanks_do_not_matter(change):
    for case in SENTENCES:
        assert label(change(case["text"])) == label(case["text"]), case["text"]


def test_a_neutral_sentence_changes_nothing():
    assert label(NEUTRAL) == {}
    for case in SENTENCES:
        text = case["text"]
        assert label(f"{text} {NEUTRAL}") == label(text), text
        if ":" not in text:
            assert label(f"{NEUTRAL} {text}") == label(text), text


def test_wrapped_lines_and_hyphens_do_not_matter():
    for case in SENTENCES:
        text = case["text"]
        if "\n" not in text:
            assert label(text.replace(" ", "\n")) == label(text), text
    assert label("Air-space disease, no hydro-pneumothorax.") == label(
        "Air space disease, no hydro pneumothorax."
    )


@pytest.mark.parametrize("mask", ["XXXX", "xxxx", "___"])
def test_deidentification_marks_are_treated_as_words(mask: str):
    assert label(mask) == label(f"{mask} {mask}. {mask}") == {}
    assert label(f"No {mask} pneumothorax.") == label("No evident pneumothorax.")
    assert label(f"Heart size is {mask} enlarged.") == {"cardiomegaly": "positive"}
    assert label(f"{mask} left effusion in {mask}.") == {"pleural_effusion": "positive"}


@pytest.mark.parametrize("text", ["", " ", "\n\n", "...", "12 34", "Good morning."])
def test_text_without_meaning_has_no_labels(text: str):
    assert label(text) == {}
    assert mentions(text) == []


def test_unusual_characters():
    for text in ("İstanbul no effusion ß", "\u2028 pneumonia \x00", "?" * 50, ": : ; . ! no no"):
        label(text)
    text = "İİ small effusion"
    (mention,) = mentions(text)
    assert text[slice(*mention.span)] == "effusion"


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", ["no effusion ", "left effusion and ", "heart ", "no evidence of ", " ", "xxxx a "]
)
def test_very_long_sentences_are_fast(word: str):
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from xraygpt.vocabulary.chest_labeller import label, mentions;"
            "label(sys.argv[1]); mentions(sys.argv[1])",
            word * 500,
        ],
        timeout=10,
        check=False,
    )
    assert process.returncode == 0


def test_the_labeller_does_not_import_torch():
    code = "import sys, xraygpt.vocabulary.chest_labeller; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_of_findings():
    assert set(CHEXPERT_FINDINGS) < set(FINDINGS)
    assert len(CHEXPERT_FINDINGS) == 14
    assert set(MESH_RULES) | {"no_finding", "other_finding"} == set(FINDINGS)


@pytest.mark.parametrize(
    ("codes", "findings"),
    [
        (["normal"], {"no_finding"}),
        (["Catheters, Indwelling/left"], {"no_finding", "catheter", "support_devices"}),
        (["No Indexing"], set()),
        (["Cardiac Shadow/enlarged/borderline"], {"cardiomegaly"}),
        (["Opacity/lung/upper lobe/left/round"], {"lung_opacity", "lung_lesion"}),
        (["Opacity/mediastinum/base"], {"other_finding"}),
        (["Consolidation/lung/base/left"], {"consolidation", "lung_opacity"}),
        (["Markings/lung/bronchovascular"], {"other_finding"}),
        (["Markings/lung/interstitial/prominent"], {"lung_opacity"}),
        (["Hydropneumothorax/right"], {"pneumothorax", "pleural_effusion"}),
        (["Lung/bilateral/hypoinflation"], {"hypoinflation"}),
        (["Lung/hyperdistention/mild"], {"hyperinflation"}),
        (["Cicatrix/pleura/apex"], {"scar", "pleural_other"}),
        (["Subcutaneous Emphysema/neck"], {"other_finding"}),
        (["Pulmonary Emphysema"], {"emphysema"}),
        (["Deformity/ribs/right", "Deformity/breast/left"], {"fracture", "other_finding"}),
        (["Atherosclerosis/aorta", "Aorta/tortuous"], {"calcinosis", "aortic_tortuosity"}),
        (["Surgical Instruments/abdomen"], {"surgical_hardware", "support_devices", "no_finding"}),
    ],
)
def test_human_codes_become_findings(codes: list[str], findings: set[str]):
    assert findings_of(codes) == findings
    assert is_coded(codes) is (codes != ["No Indexing"])


@pytest.mark.slow
@pytest.mark.data
def test_agreement_with_the_human_coding():
    data = Path(os.environ.get("XRAYGPT_DATA", ROOT.parent / "shared" / "data")) / "iu_xray"
    if not (data / "reports.jsonl").exists():
        pytest.skip("no iu_xray/reports.jsonl: set XRAYGPT_DATA to the folder of the corpora")
    process = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "labeller_vs_coding.py", "--json"],
        env={**os.environ, "XRAYGPT_DATA": str(data.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(process.stdout)
    assert result["reports"] > 250
    for policy in ("positive", "negative"):
        for findings in ("all", "abnormal"):
            assert result[policy][findings]["micro"]["f1"] >= 0.85
    assert len(result["positive"]["all"]["averaged"]) >= 15


@pytest.mark.data
def test_no_sentence_is_in_the_corpus():
    data = Path(os.environ.get("XRAYGPT_DATA", ROOT.parent / "shared" / "data")) / "iu_xray"
    if not (data / "reports.jsonl").exists():
        pytest.skip("no iu_xray/reports.jsonl: set XRAYGPT_DATA to the folder of the corpora")

    def plain(text: str) -> str:
        return re.sub(r"[^a-z0-9 ]", "", text.lower()).strip()

    corpus = set()
    for line in (data / "reports.jsonl").read_text("utf-8").splitlines():
        report = json.loads(line)
        text = f"{report['findings']} . {report['impression']}"
        corpus.update(plain(sentence) for sentence in re.split(r"(?<=[.;:])\s+", text))
    assert len(corpus) > 5000
    assert [case["text"] for case in SENTENCES if plain(case["text"]) in corpus] == []
