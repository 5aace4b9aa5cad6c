"""COCO scores against pycocoevalcap's own corpus functions; the words of the R2Gen protocol."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics import coco
from xraygpt.metrics.coco import coco_scores
from xraygpt.metrics.protocols import R2Gen, r2gen_words
from xraygpt.metrics.statistics import weighted_sum

pytest.importorskip("pycocoevalcap", reason=coco.HOW_TO_GET)
JAVA = shutil.which("java") is not None
PARTS = [
    "The heart is {a} in size.", "No {b} effusion or pneumothorax.", "Lungs are clear {c}.",
    "1. Old granuloma in the {a} lobe. 2. Scar, {b} base (stable)..", "There is {c} atelectasis?",
]  # fmt: skip
WORDS = {"a": ["normal", "enlarged", "left"], "b": ["pleural", "right"], "c": ["again", "basilar"]}


def reports(seed: int, count: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    said = []
    for _ in range(count):
        chosen = rng.permutation(PARTS)[: rng.integers(1, 5)]
        filled = [p.format(**{k: rng.choice(v) for k, v in WORDS.items()}) for p in chosen]
        said.append(" ".join(filled))
    return said


def pairs() -> tuple[list[str], list[str]]:
    said, true = reports(1), reports(2)
    said[3], said[4] = "", true[4]
    return said, true


@pytest.mark.slow  # starts Java
def test_scores_are_those_of_the_reference_package():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    said, true = pairs()
    words = R2Gen.fit(true)
    scores, left_out = coco_scores(said, true, words, meteor=True)
    found = {s.name: s for s in scores}
    told = {i: [words(t)] for i, t in enumerate(said)}
    wanted = {i: [words(t)] for i, t in enumerate(true)}
    bleu, _ = Bleu(4).compute_score(wanted, told, verbose=0)
    for k in range(4):
        assert found[f"COCO BLEU-{k + 1}"].value == pytest.approx(bleu[k], abs=1e-12)
    rouge, _ = Rouge().compute_score(wanted, told)
    assert found["COCO ROUGE-L"].value == pytest.approx(rouge, abs=1e-12)
    cider, _ = Cider().compute_score(wanted, told)
    assert found["CIDEr-D"].value == pytest.approx(cider, abs=1e-12)
    if not JAVA:
        assert "no java" in left_out["METEOR"]
        return
    program = Meteor()
    meteor, each = program.compute_score(wanted, told)
    program.meteor_p.stderr.close()
    assert found["METEOR"].value == pytest.approx(meteor, abs=1e-12)
    counts = found["METEOR"].counts
    assert [coco.meteor_of_counts(c) for c in counts] == pytest.approx(each, abs=1e-12)


def test_intervals_hold_the_value_and_pairs_are_narrower_than_singles():
    said, true = pairs()
    words = R2Gen(None, None)
    one, _ = coco_scores(said, true, words)
    two, _ = coco_scores([*said[1:], said[0]], true, words)
    for a, b in zip(one, two, strict=True):
        assert a.low <= a.value <= a.high
        assert weighted_sum([(1.0, a), (-1.0, a)]).high == 0
        assert weighted_sum([(1.0, a), (-1.0, b)]).value == pytest.approx(a.value - b.value)


def test_without_the_package_every_score_is_left_out_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(coco, "coco_version", lambda: None)
    scores, left_out = coco_scores(["a"], ["a"], R2Gen())
    assert scores == [] and len(left_out) == 7
    assert set(left_out.values()) == {f"pycocoevalcap is absent: {coco.HOW_TO_GET}"}


@pytest.mark.parametrize(("text", "words"), [
    ("The heart is normal. Lungs clear.", "the heart is normal . lungs clear ."),
    ("1. No effusion. 2. Old scar, left-sided..", "no effusion . old scar left-sided ."),
    ("COPD (mild); T10/T11 \"wedge\".", "copd mild t10t11 wedge ."),
    ("Size < 5 mm = stable", "size 5 mm stable ."),
    ("", "."),
    ("Clear.\nNormal.", "clear . normal ."),
])  # fmt: skip
def test_words_of_the_protocol(text, words):
    assert " ".join(r2gen_words(text)) == words


def test_rare_words_are_unknown_and_long_texts_cut():
    training = ["the lungs are clear."] * 3 + ["the lungs are dark."]
    words = R2Gen.fit(training)
    assert words("The lungs are dark.") == "the lungs are <unk> ."
    assert len(words("the lungs. " * 60).split()) == 59
    assert R2Gen.from_row(words.as_row()) == words
    with pytest.raises(InputError, match="make no vocabulary"):  # any two texts would be alike
        R2Gen.fit([])


@pytest.mark.skipif(not JAVA, reason="no java here")
def test_a_java_program_that_dies_leaves_out_meteor_alone(monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor._stat", lambda *_: "")
    scores, left_out = coco_scores(["a b"], ["a b"], R2Gen(), meteor=True)
    assert len(scores) == 6 and "failed" in left_out["METEOR"]
