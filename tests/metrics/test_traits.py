"""Scores of traits: against scikit-learn, by hand, and under changes of a single number."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from sklearn import metrics as sklearn

from xraygpt.common.errors import InputError
from xraygpt.metrics import traits as trait_metrics
from xraygpt.metrics.traits import trait_scores
from xraygpt.phantom.echo_reports import synthetic_report
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.traits import GRADES, Trait, TraitReading, TraitValue

ECHO = get_vocabulary("echo")
FINDINGS = [t for t in ECHO.traits if not t.is_number]
MR = "mitral_regurgitation"


def graded(grade: str, status: str = "positive") -> TraitValue:
    index = GRADES.index(grade)
    return TraitValue("negative" if index == 0 else status, index, index)


def number(value: float | None) -> TraitReading:
    values = {} if value is None else {"ejection_fraction": TraitValue("positive", number=value)}
    return TraitReading(values)


def readings(grades: list[str | None]) -> list[TraitReading]:
    return [TraitReading({MR: graded(g)} if g else {}) for g in grades]


def scored(*args, **keywords):
    scores, left_out = trait_scores(ECHO.traits, *args, **keywords)
    return {s.name: s for s in scores}, left_out


def is_positive(trait: Trait, reading: TraitReading) -> bool:
    value = reading.values.get(trait.name)
    return bool(value and value.is_positive(trait))


@pytest.fixture(scope="module")
def noisy() -> tuple[list[TraitReading], list[TraitReading]]:
    """Readings of 300 reports, and of the same reports with a third exchanged for others."""
    rng = np.random.default_rng(0)
    true = [ECHO.read_traits(synthetic_report(i)[0]) for i in range(300)]
    guess = [true[rng.integers(300)] if rng.random() < 0.33 else r for r in true]
    return guess, true


def test_presence_agrees_with_scikit_learn(noisy):
    scores, left_out = scored(*noisy)
    assert len(noisy[1]) == 300
    checked = 0
    for trait in FINDINGS:
        guess, true = (
            np.array(
                [bool(v and v.is_positive(trait)) for v in (r.values.get(trait.name) for r in side)]
            )
            for side in noisy
        )
        if f"trait/{trait.name}" in left_out:
            continue
        checked += 1
        expected = {
            "balanced_accuracy": sklearn.balanced_accuracy_score(true, guess),
            "sensitivity": sklearn.recall_score(true, guess),
            "specificity": sklearn.recall_score(~true, ~guess),
            "prevalence": true.mean(),
        }
        for measure, value in expected.items():
            score = scores[f"trait/{measure}/{trait.name}"]
            assert score.value == pytest.approx(value, abs=1e-12)
            assert score.low <= score.value <= score.high
    assert checked >= 20


def test_probabilities_agree_with_scikit_learn(noisy):
    rng = np.random.default_rng(1)
    truth = np.array([[is_positive(t, reading) for t in FINDINGS] for reading in noisy[1]])
    shares = rng.binomial(8, np.where(truth, 0.6, 0.2)) / 8
    scores, _ = scored(*noisy, probabilities=shares, samples=8)
    continuous, _ = scored(*noisy, probabilities=shares)
    for i, trait in enumerate(FINDINGS):
        name = f"trait/AUROC/{trait.name}"
        if name not in scores:
            continue
        area = sklearn.roc_auc_score(truth[:, i], shares[:, i])
        assert scores[name].value == pytest.approx(area, abs=1e-12)
        assert continuous[name].value == pytest.approx(area, abs=1e-12)
        assert "8 sampled reports" in scores[name].signature
        same = ("low", "high", "n")
        assert [getattr(scores[name], k) for k in same] == pytest.approx(
            [getattr(continuous[name], k) for k in same]
        )
        brier = sklearn.brier_score_loss(truth[:, i], shares[:, i])
        assert scores[f"trait/Brier/{trait.name}"].value == pytest.approx(brier, abs=1e-12)
    areas = [s.value for n, s in scores.items() if n.startswith("trait/AUROC/")]
    assert scores["traits_AUROC"].value == pytest.approx(np.mean(areas))


def test_auroc_of_probabilities_is_not_balanced_accuracy(noisy):
    """Sampled reports rank studies that a threshold cannot; without them there is no AUROC."""
    scores, left_out = scored(*noisy)
    assert not [name for name in scores if "AUROC" in name]
    assert "run.task.traits.samples" in left_out["AUROC of traits"]
    truth = readings(["severe", "severe", "none", "none"])
    guess = readings(["none", "severe", "none", "none"])
    probabilities = np.zeros((4, len(FINDINGS)))
    probabilities[:, [t.name for t in FINDINGS].index(MR)] = (0.4, 0.9, 0.1, 0.2)
    scores, _ = scored(guess, truth, probabilities=probabilities)
    assert scores[f"trait/AUROC/{MR}"].value == 1
    assert scores[f"trait/balanced_accuracy/{MR}"].value == 0.75


def test_calibration_error_by_hand():
    truth = readings(["severe", "none", "severe", "none"])
    probabilities = np.zeros((4, len(FINDINGS)))
    probabilities[:, [t.name for t in FINDINGS].index(MR)] = (0.95, 0.95, 0.35, 0.05)
    scores, _ = scored(truth, truth, probabilities=probabilities)
    expected = (abs(1.9 - 1) + abs(0.35 - 1) + abs(0.05 - 0)) / 4
    assert scores[f"trait/ECE/{MR}"].value == pytest.approx(expected)


def test_truth_of_one_class_gives_no_value_and_says_so():
    scores, left_out = scored(readings(["severe", "none"]), readings(["none", None]))
    assert f"trait/balanced_accuracy/{MR}" not in scores
    assert f"trait/sensitivity/{MR}" not in scores
    assert scores[f"trait/specificity/{MR}"].value == 0.5
    assert "all references are negative" in left_out[f"trait/{MR}"]


def test_severity_that_the_truth_leaves_open_is_excluded():
    open_value = TraitReading({MR: TraitValue("positive")})
    truth = [open_value, *readings(["severe", "none"])]
    scores, _ = scored([*readings(["severe", "severe", "none"])], truth)
    assert scores[f"trait/balanced_accuracy/{MR}"].n == 2
    assert scores[f"trait/balanced_accuracy/{MR}"].value == 1


def test_grades_agree_with_scikit_learn(noisy):
    scores, _ = scored(*noisy)
    checked = 0
    for trait in FINDINGS:
        pairs = [
            (GRADES.index(a.grade), GRADES.index(b.grade))
            for g, t in zip(*noisy, strict=True)
            if (a := g.values.get(trait.name)) and (b := t.values.get(trait.name))
            and trait.kind == "graded" and a.grade and b.grade
        ]  # fmt: skip
        name = f"trait/kappa/{trait.name}"
        if name not in scores or len({t for _, t in pairs}) < 2:
            continue
        checked += 1
        guess, true = zip(*pairs, strict=True)
        kappa = sklearn.cohen_kappa_score(guess, true, weights="quadratic", labels=range(7))
        assert scores[name].value == pytest.approx(kappa, abs=1e-12)
        assert scores[f"trait/exact/{trait.name}"].value == np.mean(np.equal(guess, true))
        near = np.abs(np.subtract(guess, true)) <= 1
        assert scores[f"trait/within_one/{trait.name}"].value == pytest.approx(near.mean())
    assert checked >= 10


def test_numbers_agree_with_scikit_learn_and_silence_is_not_free():
    rng = np.random.default_rng(2)
    true = rng.uniform(20, 70, 80)
    guess = true + rng.normal(0, 6, 80)
    silent = np.arange(80) % 4 == 0
    unknown = np.arange(80) % 10 == 1
    references = [number(None if u else t) for t, u in zip(true, unknown, strict=True)]
    predictions = [number(None if s else g) for g, s in zip(guess, silent, strict=True)]
    scores, _ = scored(predictions, references)
    both, given = ~silent & ~unknown, ~unknown
    value = {m: scores[f"trait/{m}/ejection_fraction"].value
             for m in ("MAE", "R2_answered", "R2", "Pearson", "answered", "stated")}  # fmt: skip
    assert value["MAE"] == pytest.approx(np.abs(guess - true)[both].mean())
    assert value["R2_answered"] == pytest.approx(sklearn.r2_score(true[both], guess[both]))
    filled = np.where(silent, true[given].mean(), guess)
    assert value["R2"] == pytest.approx(sklearn.r2_score(true[given], filled[given]))
    assert value["Pearson"] == pytest.approx(np.corrcoef(guess[both], true[both])[0, 1])
    assert value["answered"] == both.sum() / given.sum()
    assert value["stated"] == given.mean()
    assert value["R2"] < value["R2_answered"]


def test_a_guess_scores_chance():
    true = [number(v) for v in (30.0, 40.0, 62.0)]
    scores, _ = scored([number(44.0)] * 3, true)
    assert scores["trait/R2/ejection_fraction"].value == pytest.approx(trait_metrics.CHANCE["R2"])
    silent, _ = scored([number(None)] * 3, true)
    assert silent["trait/R2/ejection_fraction"].value == pytest.approx(0)
    assert math.isnan(silent["trait/MAE/ejection_fraction"].value)
    assert silent["trait/answered/ejection_fraction"].value == 0


@pytest.mark.parametrize("name", ["ejection_fraction", "pulmonary_artery_pressure_continuous"])
def test_changing_one_number_in_one_report_changes_a_score(name: str):
    texts = [synthetic_report(seed)[0] for seed in range(40)]
    true = [ECHO.read_traits(text) for text in texts]
    pattern = r"\d+(?= %)" if name == "ejection_fraction" else r"\d+(?= mmHg)"
    index = next(i for i, text in enumerate(texts) if re.search(pattern, text))
    worse = re.sub(pattern, lambda m: str(int(m[0]) + 5), texts[index], count=1)
    changed = [*true[:index], ECHO.read_traits(worse), *true[index + 1 :]]
    before, after = scored(true, true)[0], scored(changed, true)[0]
    assert before[f"trait/MAE/{name}"].value == 0 and before[f"trait/R2/{name}"].value == 1
    assert after[f"trait/MAE/{name}"].value > 0 and after["traits_R2"].value < 1


def test_contradicting_reports_are_counted():
    text = "No mitral regurgitation. Severe mitral regurgitation."
    scores, _ = scored([ECHO.read_traits(text), number(50.0)], [number(50.0)] * 2)
    assert scores["contradicting_reports"].value == 0.5
    assert "0.000 of the references" in scores["contradicting_reports"].signature


def test_intervals_resample_whole_studies():
    truth, guess = readings(["severe", "none"] * 20), readings(["severe", "severe"] * 20)
    alone, _ = scored(guess, truth)
    together, _ = scored(guess, truth, [f"{i // 10}" for i in range(40)])
    name = f"trait/prevalence/{MR}"
    assert together[name].low == together[name].high == 0.5 > alone[name].low


def test_wrong_input_is_refused():
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        scored(readings([None]), readings([None, None]))
    with pytest.raises(InputError, match="expected"):
        scored(readings([None]), readings([None]), probabilities=np.zeros((1, 3)))
    wrong = np.full((1, len(FINDINGS)), 1.5)
    with pytest.raises(InputError, match="not in"):
        scored(readings([None]), readings([None]), probabilities=wrong)
