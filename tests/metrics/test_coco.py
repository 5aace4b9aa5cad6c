"""COCO scores against pycocoevalcap's corpus functions; tokenization of the R2Gen protocol."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics import coco
from xraygpt.metrics.coco import coco_scores
from xraygpt.metrics.protocols import R2Gen, r2gen_words
from xraygpt.metrics.statistics import weighted_sum

pytest.importorskip("pycocoevalcap", reason=coco.INSTALL)
JAVA = shutil.which("java") is not None
PARTS = [
    "The heart is {a} in size.", "No {b} effusion or pneumothorax.", "Lungs are clear {c}.",
    "1. Old granuloma in the {a} lobe. 2. Scar, {b} base (stable)..", "There is {c} atelectasis?",
]  # fmt: skip
WORDS = {"a": ["normal", "enlarged", "left"], "b": ["pleural", "right"], "c": ["again", "basilar"]}


def reports(seed: int, count: int = 60) -> list[str]:
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        chosen = rng.permutation(PARTS)[: rng.integers(1, 5)]
        filled = [p.format(**{k: rng.choice(v) for k, v in WORDS.items()}) for p in chosen]
        texts.append(" ".join(filled))
    return texts


def pairs() -> tuple[list[str], list[str]]:
    predictions, references = reports(1), reports(2)
    predictions[3], predictions[4] = "", references[4]
    return predictions, references


@pytest.mark.slow  # starts Java
def test_scores_equal_the_reference_package():
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    predictions, references = pairs()
    tokenize = R2Gen.fit(references)
    scores, left_out = coco_scores(predictions, references, tokenize, meteor=True)
    values = {s.name: s.value for s in scores}
    corpora = [
        {i: [tokenize(t)] for i, t in enumerate(texts)} for texts in (references, predictions)
    ]
    bleu, _ = Bleu(4).compute_score(*corpora, verbose=0)
    expected = {f"COCO BLEU-{k + 1}": bleu[k] for k in range(4)}
    expected["COCO ROUGE-L"], _ = Rouge().compute_score(*corpora)
    expected["CIDEr-D"], _ = Cider().compute_score(*corpora)
    if not JAVA:
        assert "no java" in left_out["METEOR"]
        assert values == pytest.approx(expected, abs=1e-12)
        return
    program = Meteor()
    expected["METEOR"], per_pair = program.compute_score(*corpora)
    program.meteor_p.stderr.close()
    assert values == pytest.approx(expected, abs=1e-12)
    counts = next(s.counts for s in scores if s.name == "METEOR")
    assert [coco.meteor_of_counts(c) for c in counts] == pytest.approx(per_pair, abs=1e-12)


def test_intervals_contain_the_value_and_paired_differences_are_exact():
    predictions, references = pairs()
    tokenize = R2Gen(None, None)
    first, _ = coco_scores(predictions, references, tokenize)
    second, _ = coco_scores([*predictions[1:], predictions[0]], references, tokenize)
    for a, b in zip(first, second, strict=True):
        assert a.low <= a.value <= a.high
        assert weighted_sum([(1.0, a), (-1.0, a)]).high == 0
        assert weighted_sum([(1.0, a), (-1.0, b)]).value == pytest.approx(a.value - b.value)


def test_without_the_package_every_score_is_left_out_with_the_install_command(monkeypatch):
    monkeypatch.setattr(coco, "coco_version", lambda: None)
    scores, left_out = coco_scores(["a"], ["a"], R2Gen())
    assert scores == [] and len(left_out) == 7
    assert set(left_out.values()) == {f"pycocoevalcap is not installed: {coco.INSTALL}"}


@pytest.mark.parametrize(("text", "words"), [
    ("The heart is normal. Lungs clear.", "the heart is normal . lungs clear ."),
    ("1. No effusion. 2. Old scar, left-sided..", "no effusion . old scar left-sided ."),
    ("COPD (mild); T10/T11 \"wedge\".", "copd mild t10t11 wedge ."),
    ("Size < 5 mm = stable", "size 5 mm stable ."),
    ("", "."),
    ("Clear.\nNormal.", "clear . normal ."),
])  # fmt: skip
def test_r2gen_words(text, words):
    assert " ".join(r2gen_words(text)) == words


def test_rare_words_are_unknown_and_long_texts_truncated():
    training = ["the lungs are clear."] * 3 + ["the lungs are dark."]
    protocol = R2Gen.fit(training)
    assert protocol("The lungs are dark.") == "the lungs are <unk> ."
    assert len(protocol("the lungs. " * 60).split()) == 59
    assert R2Gen.from_row(protocol.as_row()) == protocol
    with pytest.raises(InputError, match="too few for a vocabulary"):
        R2Gen.fit([])


@pytest.mark.skipif(not JAVA, reason="java is not installed")
def test_a_failing_java_program_only_leaves_out_meteor(monkeypatch):
    monkeypatch.setattr("pycocoevalcap.meteor.meteor.Meteor._stat", lambda *_: "")
    scores, left_out = coco_scores(["a b"], ["a b"], R2Gen(), meteor=True)
    assert len(scores) == 6 and "failed" in left_out["METEOR"]
