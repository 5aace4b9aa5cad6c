"""The rule-based finding labeller: 200 sentences of our own, its properties, its agreement."""

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
    finding_scores,
    label,
    mentions,
)
from xraygpt.vocabulary.chest_mesh import MESH_RULES, findings_of, is_coded

ROOT = Path(__file__).parents[2]
SENTENCES = [
    json.loads(line)
    for line in (Path(__file__).parent / "finding_sentences.jsonl").read_text("utf-8").splitlines()
]
NEUTRAL = "The gastric bubble lies in its usual place."


def expected_labels(case: dict) -> dict[str, str]:
    words = {"pos": "positive", "neg": "negative", "unc": "uncertain"}
    return {name: status for key, status in words.items() for name in case.get(key, [])}


def test_the_sentences_are_many_distinct_and_of_every_kind():
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
    named = {name for case in SENTENCES for name in expected_labels(case)}
    assert named == set(FINDINGS) - {"no_finding"}


@pytest.mark.parametrize("case", SENTENCES, ids=[case["text"][:60] for case in SENTENCES])
def test_sentence(case: dict):
    expected = expected_labels(case)
    got = label(case["text"])
    no_finding = got.pop("no_finding", None)
    assert got == expected
    abnormal = {
        name
        for name, status in expected.items()
        if status != "negative" and name not in DEVICE_FINDINGS
    }
    if expected:
        assert (no_finding == "positive") == (not abnormal)

    found = mentions(case["text"])
    assert {m.finding for m in found if m.historical} == set(case.get("past", []))
    for name, side in case.get("side", {}).items():
        assert side in {m.laterality for m in found if m.finding == name}


def test_mentions_point_into_the_text():
    text = "FINDINGS:  Mild\ncardiomegaly.\n\nThere is NO Pneumothorax; old left rib fracture."
    found = {m.finding: m for m in mentions(text)}
    assert set(found) == {"cardiomegaly", "pneumothorax", "fracture"}
    assert [text[slice(*found[name].span)] for name in ("cardiomegaly", "pneumothorax")] == [
        "cardiomegaly",
        "Pneumothorax",
    ]
    assert found["pneumothorax"].sentence == "There is NO Pneumothorax;"
    assert found["fracture"].laterality == "left"
    assert found["fracture"].historical
    assert not found["cardiomegaly"].historical
    spans = [m.span for m in mentions(text)]
    assert spans == sorted(spans)


def test_a_report_takes_the_strongest_status():
    assert label("No effusion. Possible effusion.")["pleural_effusion"] == "uncertain"
    assert label("Small effusion. No effusion. Possible effusion.")["pleural_effusion"] == (
        "positive"
    )


def test_the_past_counts_only_for_what_lasts():
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
def test_marks_of_deidentification_are_words_like_others(mask: str):
    assert label(mask) == label(f"{mask} {mask}. {mask}") == {}
    assert label(f"No {mask} pneumothorax.") == label("No evident pneumothorax.")
    assert label(f"Heart size is {mask} enlarged.") == {"cardiomegaly": "positive"}
    assert label(f"{mask} left effusion in {mask}.") == {"pleural_effusion": "positive"}


@pytest.mark.parametrize("text", ["", " ", "\n\n", "...", "12 34", "Good morning."])
def test_text_without_meaning_has_no_labels(text: str):
    assert label(text) == {}
    assert mentions(text) == []


def test_any_text_is_survived():
    for text in ("İstanbul no effusion ß", "\u2028 pneumonia \x00", "?" * 50, ": : ; . ! no no"):
        label(text)
    odd = "İİ small effusion"
    (mention,) = mentions(odd)
    assert odd[slice(*mention.span)] == "effusion"


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", ["no effusion ", "left effusion and ", "heart ", "no evidence of ", " ", "xxxx a "]
)
def test_endless_sentences_stay_cheap(word: str):
    done = subprocess.run(
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
    assert done.returncode == 0


def test_the_labeller_needs_no_torch():
    code = "import sys, xraygpt.vocabulary.chest_labeller; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_names():
    assert set(CHEXPERT_FINDINGS) < set(FINDINGS)
    assert len(CHEXPERT_FINDINGS) == 14
    assert set(MESH_RULES) | {"no_finding", "other_finding"} == set(FINDINGS)


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
        # edema: said in 0, 1, 3, true in 0, 1; pneumonia: said in 2, 3, true in 1, 3
        ("positive", (2 / 3, 1.0, 0.8), (0.5, 0.5, 0.5), (3 / 5, 3 / 4, 2 / 3)),
        # the doubtful report 1 is no longer said
        ("negative", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), (2 / 4, 2 / 4, 0.5)),
        # nor is it missed
        ("ignore", (0.5, 1.0, 2 / 3), (0.5, 0.5, 0.5), (2 / 4, 2 / 3, 4 / 7)),
    ],
)
def test_finding_scores_by_hand(policy, edema, pneumonia, micro):
    scores = finding_scores(PREDICTIONS, REFERENCES, uncertain=policy)
    for name, expected in (("edema", edema), ("pneumonia", pneumonia)):
        row = scores["findings"][name]
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(expected)
    row = scores["micro"]
    assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(micro)
    assert scores["macro"]["f1"] == pytest.approx((edema[2] + pneumonia[2]) / 2)
    assert scores["averaged"] == ["edema", "pneumonia"]
    assert scores["n"] == 4


def test_finding_scores_take_texts_and_sets_and_leave_rare_findings_out():
    texts = ["Small effusion.", "No effusion. Cardiomegaly.", "Possible effusion."]
    truth = [{"pleural_effusion"}, {"pleural_effusion"}, frozenset[str]()]
    scores = finding_scores(texts, truth, min_support=2)
    effusion = scores["findings"]["pleural_effusion"]
    assert (effusion["support"], effusion["predicted"], effusion["f1"]) == (2, 2, 0.5)
    assert scores["findings"]["cardiomegaly"]["predicted"] == 1
    assert scores["averaged"] == ["pleural_effusion"]
    assert scores["micro"]["f1"] == scores["macro"]["f1"] == 0.5
    assert finding_scores(texts, texts)["micro"]["f1"] == 1.0
    assert finding_scores([], [])["micro"]["f1"] == 0.0
    with pytest.raises(ValueError, match="3 predictions for 1"):
        finding_scores(texts, truth[:1])


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
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "labeller_vs_coding.py", "--json"],
        env={**os.environ, "XRAYGPT_DATA": str(data.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    result = json.loads(done.stdout)
    assert result["reports"] > 250
    for policy in ("positive", "negative"):
        for findings in ("all", "abnormal"):
            assert result[policy][findings]["micro"]["f1"] >= 0.85
    assert len(result["positive"]["all"]["averaged"]) >= 15


@pytest.mark.data
def test_no_sentence_stands_in_the_corpus():
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
