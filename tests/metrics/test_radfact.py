"""RadFact: sentences with boxes, areas, and the numbers that follow from the experts' statuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xraygpt.boxes.spelling import write_boxes
from xraygpt.metrics.radfact import (
    Sentence,
    covered_share,
    grounded_sentences,
    one_way,
    radfact_scores,
)

BOX, OTHER = (0.1, 0.2, 0.3, 0.4), (0.5, 0.2, 0.6, 0.4)


@pytest.mark.parametrize("spelling", ["thousand", "unit", "maira", "loc"])
def test_sentences_keep_their_boxes(spelling):
    text = (
        f"A made-up nodule {write_boxes([BOX, OTHER], spelling)}. No effusion. The heart is large "
        f"{write_boxes([BOX], spelling)}."
    )
    sentences = grounded_sentences(text, spelling)
    assert [s.text for s in sentences] == [
        "A made-up nodule.", "No effusion.", "The heart is large."
    ]  # fmt: skip
    assert [len(s.boxes) for s in sentences] == [2, 0, 1]
    assert sentences[0].boxes[1] == pytest.approx(OTHER, abs=0.011)


def test_boxes_after_the_full_stop_belong_to_the_sentence_before():
    text = "Opacity. [100, 200, 300, 400] No effusion. [500, 200, 600, 400]"
    sentences = grounded_sentences(text, "thousand")
    assert [s.text for s in sentences] == ["Opacity.", "No effusion."]
    assert [s.boxes for s in sentences] == [(BOX,), ((0.5, 0.2, 0.6, 0.4),)]


@pytest.mark.parametrize("count", [1, 2])
def test_boxes_in_json_leave_no_json_in_the_sentence(count):
    written = write_boxes([BOX, OTHER][:count], "json", None, "opacity")
    sentences = grounded_sentences(f"Opacity {written}. No effusion.", "json")
    assert [s.text for s in sentences] == ["Opacity.", "No effusion."]
    assert [len(s.boxes) for s in sentences] == [count, 0]


def test_an_and_between_findings_stays():
    (sentence,) = grounded_sentences(
        "A nodule [1, 2, 30, 40] and a mass [5, 6, 70, 80].", "thousand"
    )
    assert sentence.text == "A nodule and a mass." and len(sentence.boxes) == 2


def test_the_covered_share_of_overlapping_boxes_counts_an_area_once():
    whole = (0.0, 0.0, 1.0, 1.0)
    assert covered_share([whole], [(0.0, 0.0, 0.5, 1.0), (0.25, 0.0, 0.5, 1.0)]) == 0.5
    assert covered_share([BOX, BOX], [BOX]) == pytest.approx(1)
    assert covered_share([BOX], []) == 0 == covered_share([], [BOX])
    rng = np.random.default_rng(0)  # against counting pixels
    boxes, others = (np.sort(rng.integers(0, 200, (4, 2, 2)), axis=1) / 200 for _ in range(2))
    masks = []
    for group in (boxes, others):
        mask = np.zeros((200, 200), bool)
        for (x0, y0), (x1, y1) in (group * 200).round().astype(int):
            mask[x0:x1, y0:y1] = True
        masks.append(mask)
    expected = (masks[0] & masks[1]).sum() / masks[0].sum()
    found = covered_share(*([tuple(b.ravel()) for b in g] for g in (boxes, others)))
    assert found == pytest.approx(expected)


def test_counts_of_one_direction():
    sentences = [Sentence("a", (BOX,)), Sentence("b", (BOX,)), Sentence("c"), Sentence("d", (BOX,))]
    others = [Sentence("x", (BOX,)), Sentence("y", (OTHER,)), Sentence("z")]
    verdict = [
        {"status": "entailment", "evidence": [0]}, {"status": "entailment", "evidence": [1]},
        {"status": "entailment", "evidence": [2]}, {"status": "neutral", "evidence": [0]},
    ]  # fmt: skip
    assert one_way(sentences, others, verdict).tolist() == [3, 4, 1, 3, 1, 2]


def test_unusable_verdicts_are_left_out_and_means_are_over_studies():
    pair = ([Sentence("a", (BOX,))], [Sentence("b"), Sentence("c")])
    verdict = {
        "candidate": [{"status": "entailment", "evidence": [0]}],
        "reference": [{"status": "entailment", "evidence": [0]},
                      {"status": "neutral", "evidence": []}],
    }  # fmt: skip
    scores = radfact_scores([pair, pair], [verdict, None], "made-up", ["1", "2"])
    values = {s.name: s.value for s in scores}
    assert values["RadFact_logical_precision"] == 1 and values["RadFact_logical_recall"] == 0.5
    assert values["RadFact_spatial_precision"] == 0, "the evidence has no box"
    assert np.isnan(values["RadFact_spatial_recall"]), "the reference has no box"


def test_the_experts_statuses_of_34_cases_give_their_shares(real_data):
    """Against a count of the file's own statuses."""
    from xraygpt.judging.given import agreement, read_radfact

    path = real_data / "grounding/radfact/test_examples.json"
    pairs = read_radfact(path)
    gold = [
        {side: [{"status": s, "evidence": [0]} for s in pair.statuses[side]]
         for side in ("candidate", "reference")}
        for pair in pairs
    ]  # fmt: skip
    scores = radfact_scores([(p.candidate, p.reference) for p in pairs], gold, "experts")
    rows = json.loads(path.read_text())
    shares = {"precision": [], "recall": []}
    for row in rows:
        for name, side in (("precision", "A"), ("recall", "B")):
            each = [e["status"] == "entailment" for e in row["output"][f"phrases_{side}_evidenced"]]
            shares[name] += [np.mean(each)] if each else []
    values = {s.name: s.value for s in scores}
    assert len(pairs) == 34 and agreement(pairs, gold) == (249, 249, 249)
    for name, found in shares.items():
        assert values[f"RadFact_logical_{name}"] == pytest.approx(np.mean(found))


def test_the_20_grounded_reports_are_read(real_data):
    from xraygpt.judging.given import read_radfact

    pairs = read_radfact(real_data / "grounding/radfact/grounded_reporting_examples.json")
    assert len(pairs) == 20 and pairs[0].statuses is None
    boxed = [len(s.boxes) for pair in pairs for s in (*pair.candidate, *pair.reference)]
    assert 0 in boxed and max(boxed) > 1
