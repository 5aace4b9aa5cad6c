"""Scores for traits in reports: presence, grades, numbers, contradictions.

A trait that a text does not mention counts as absent, as in clinical practice, where reports name
what is abnormal. A number that a text does not state counts as missing. Every score is a ratio of
sums over studies, so that it has a bootstrap interval and can be compared in pairs.

Notation: n reports, k traits that are not numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.probabilities import auroc_score, nan_mean
from xraygpt.metrics.statistics import RowRatio, Score, mean_score, ratio_score, ratios_of_rows
from xraygpt.vocabulary.traits import GRADES, Trait, TraitReading, TraitValue

#: Values of a guess that ignores the study: a coin, or the mean of the true numbers.
CHANCE: Mapping[str, float] = {
    "AUROC": 0.5,
    "balanced_accuracy": 0.5,
    "kappa": 0.0,
    "R2": 0.0,
    "R2_answered": 0.0,
    "Pearson": 0.0,
}
PREFIX = "trait/"
"""Beginning of the names of scores of one trait: ``trait/AUROC/mitral_regurgitation``."""

_BINS = 10  # of the expected calibration error
_READER = "xraygpt trait rules"
_TINY = 1e-9  # variances below this are rounding errors
_Ratio = Callable[[np.ndarray], np.ndarray]


@dataclass
class _Results:
    """Scores, the parts of averages by measure, and reasons for missing values."""

    groups: Sequence[str] | None
    scores: list[Score] = field(default_factory=list)
    parts: dict[str, list[Score]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(
        self, measure: str, trait: str, counts: np.ndarray, ratio: _Ratio, text: str, n: int
    ) -> None:
        score = ratio_score(
            f"{PREFIX}{measure}/{trait}",
            counts,
            RowRatio(ratio),
            f"{text}; {_READER}",
            self.groups,
        )
        self.keep(measure, replace(score, n=n))

    def keep(self, measure: str, score: Score) -> None:
        self.scores.append(score)
        self.parts.setdefault(measure, []).append(score)


def trait_scores(
    traits: Sequence[Trait],
    predictions: Sequence[TraitReading],
    references: Sequence[TraitReading],
    groups: Sequence[str] | None = None,
    *,
    probabilities: np.ndarray | None = None,
    samples: int = 0,
) -> tuple[list[Score], dict[str, str]]:
    """Score the traits of reports against those of the reference reports.

    Args:
        traits: The traits, in the order of tables.
        predictions: What each of the n generated reports says.
        references: What each reference report says.
        groups: The study of each report; intervals resample whole studies.
        probabilities: (n, k) probabilities that a trait is positive, in the order of `traits`
            without numbers; a trait without probabilities is NaN. None computes no AUROC and no
            calibration.
        samples: Number of sampled reports if the probabilities are shares of these; 0 otherwise.

    Returns:
        Scores named ``trait/<measure>/<trait>``, and averages over traits; and reasons, by name,
        why some have no value.

    Raises:
        InputError: The numbers of reports differ, or a probability is out of range.
    """
    _check(traits, predictions, references, probabilities)
    results = _Results(groups)
    findings = [trait for trait in traits if not trait.is_number]
    columns = {trait.name: i for i, trait in enumerate(findings)}
    for trait in traits:
        predicted = [reading.values.get(trait.name) for reading in predictions]
        true = [reading.values.get(trait.name) for reading in references]
        if trait.is_number:
            _add_number(results, trait, predicted, true)
            continue
        column = None if probabilities is None else probabilities[:, columns[trait.name]]
        if column is not None and np.isnan(column).any():
            column = None
        _add_presence(results, trait, predicted, true, column, samples)
        if trait.kind == "graded":
            _add_grades(results, trait, predicted, true)
    if probabilities is None:
        results.left_out["AUROC of traits"] = (
            "it needs probabilities: set run.task.traits.samples, or use a model that predicts "
            "findings"
        )
    averages = [*_averages(results), _contradicting(predictions, references, groups)]
    return [*averages, *results.scores], results.left_out


def _check(
    traits: Sequence[Trait],
    predictions: Sequence[TraitReading],
    references: Sequence[TraitReading],
    probabilities: np.ndarray | None,
) -> None:
    n, k = len(predictions), sum(not trait.is_number for trait in traits)
    if n != len(references):
        raise InputError(f"got {n} predictions for {len(references)} references")
    if probabilities is None:
        return
    if probabilities.shape != (n, k):
        raise InputError(f"got probabilities {probabilities.shape}; expected ({n}, {k})")
    if not ((probabilities >= 0) & (probabilities <= 1) | np.isnan(probabilities)).all():
        raise InputError("a probability of a trait is not in [0, 1]")


def _positive(trait: Trait, value: TraitValue | None) -> float:
    """Return 1, 0 or NaN (the words leave it open); a trait that is not mentioned is absent."""
    positive = False if value is None else value.is_positive(trait)
    return math.nan if positive is None else float(positive)


def _add_presence(
    results: _Results,
    trait: Trait,
    predicted: Sequence[TraitValue | None],
    true: Sequence[TraitValue | None],
    probabilities: np.ndarray | None,
    samples: int,
) -> None:
    """Add prevalence, sensitivity, specificity, balanced accuracy and those of probabilities."""
    truth = np.array([_positive(trait, value) for value in true])
    guess = np.nan_to_num(np.array([_positive(trait, value) for value in predicted]))
    known = ~np.isnan(truth)
    yes, no = truth == 1, truth == 0
    positives, negatives = int(yes.sum()), int(no.sum())
    name, criterion = trait.name, trait.criterion
    hits, rejections = yes * guess, no * (1 - guess)
    total = positives + negatives
    if total:
        results.add("prevalence", name, _stack(yes, known), share_of_sums, criterion, total)
    if positives:
        results.add("sensitivity", name, _stack(hits, yes), share_of_sums, criterion, positives)
    if negatives:
        counts = _stack(rejections, no)
        results.add("specificity", name, counts, share_of_sums, criterion, negatives)
    if not positives or not negatives:
        what = "no reference says" if not total else "all references are "
        which = "" if not total else "positive" if positives else "negative"
        results.left_out[f"{PREFIX}{name}"] = (
            f"{what}{which}, so it has no balanced accuracy and no AUROC and is in no average"
        )
        return
    counts = _stack(hits, yes, rejections, no)
    text = f"(sensitivity + specificity) / 2: {criterion}"
    results.add("balanced_accuracy", name, counts, balanced_accuracy_of_sums, text, total)
    if probabilities is not None:
        _add_probabilities(results, trait, probabilities, truth, samples)


def _add_probabilities(
    results: _Results, trait: Trait, probabilities: np.ndarray, truth: np.ndarray, samples: int
) -> None:
    known = ~np.isnan(truth)
    true = np.nan_to_num(truth)
    n = int(known.sum())
    source = f"share of {samples} sampled reports" if samples else "probabilities of the model"
    if samples:
        level = np.rint(probabilities * samples).astype(int)
        counts = np.zeros((len(truth), 2, samples + 1))
        counts[np.arange(len(truth)), true.astype(int), level] = known
        text = f"AUROC, {source}"
        results.add("AUROC", trait.name, counts.reshape(len(truth), -1), auroc_of_sums, text, n)
    else:
        name = f"{PREFIX}AUROC/{trait.name}"
        signature = f"AUROC, {source}; {_READER}"
        score = auroc_score(name, probabilities, truth, signature, results.groups)
        results.keep("AUROC", replace(score, n=n))
    errors = known * (probabilities - true) ** 2
    text = f"Brier score, {source}, lower is better"
    results.add("Brier", trait.name, _stack(errors, known), share_of_sums, text, n)
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    counts = np.zeros((len(truth), _BINS + 1))
    counts[np.arange(len(truth)), bins] = known * (probabilities - true)
    counts[:, -1] = known
    text = f"expected calibration error, {_BINS} bins, {source}, lower is better"
    results.add("ECE", trait.name, counts, calibration_error_of_sums, text, n)


def _add_grades(
    results: _Results,
    trait: Trait,
    predicted: Sequence[TraitValue | None],
    true: Sequence[TraitValue | None],
) -> None:
    """Add the agreement of grades, over reports whose reference gives a grade."""
    truth, guess = _grades(true), _grades(predicted)
    given = ~np.isnan(truth)
    both = given & ~np.isnan(guess)
    t, p = np.nan_to_num(truth) * both, np.nan_to_num(guess) * both
    n, pairs = int(given.sum()), int(both.sum())
    if not n:
        results.left_out[f"{PREFIX}kappa/{trait.name}"] = "no reference states a grade"
        return
    text = f"reports with a grade among references with a grade of {len(GRADES)}"
    results.add("graded", trait.name, _stack(both, given), share_of_sums, text, n)
    if len(set(truth[given])) < 2:
        reason = f"all references with a grade have the same one ({GRADES[int(truth[given][0])]})"
        results.left_out[f"{PREFIX}kappa/{trait.name}"] = reason
        return
    exact, near = both * (t == p), both * (np.abs(t - p) <= 1)
    counts = _stack(both, p, t, p * p, t * t, p * t)
    text = f"quadratic weighted kappa (Cohen 1968), {len(GRADES)} grades, both state one"
    results.add("kappa", trait.name, counts, kappa_of_sums, text, pairs)
    results.add("exact", trait.name, _stack(exact, both), share_of_sums, "same grade", pairs)
    text = "same or neighbouring grade"
    results.add("within_one", trait.name, _stack(near, both), share_of_sums, text, pairs)


def _grades(values: Sequence[TraitValue | None]) -> np.ndarray:
    grades = [None if value is None else value.grade for value in values]
    return np.array([math.nan if grade is None else GRADES.index(grade) for grade in grades])


def _add_number(
    results: _Results,
    trait: Trait,
    predicted: Sequence[TraitValue | None],
    true: Sequence[TraitValue | None],
) -> None:
    """Add errors of a number, over reports whose reference states it."""
    truth, guess = _numbers(true), _numbers(predicted)
    given = ~np.isnan(truth)
    both = given & ~np.isnan(guess)
    n, pairs = int(given.sum()), int(both.sum())
    name, unit = trait.name, trait.unit
    everything = np.ones(len(truth))
    text = "references that state the number"
    results.add("stated", name, _stack(given, everything), share_of_sums, text, len(truth))
    if not n:
        results.left_out[f"{PREFIX}{name}"] = "no reference states a number"
        return
    text = "reports that state the number among references that do"
    results.add("answered", name, _stack(both, given), share_of_sums, text, n)
    shift = float(truth[given].mean())  # keeps the sums of squares small
    t, p = np.nan_to_num(truth - shift) * given, np.nan_to_num(guess - shift) * both
    a = t * both
    error = np.abs(p - a)
    text = f"mean absolute error in {unit}, reports that state the number, lower is better"
    results.add("MAE", name, _stack(error, both), share_of_sums, text, pairs)
    if len(set(truth[given])) < 2:
        results.left_out[f"{PREFIX}R2/{name}"] = "all references state the same number"
        return
    counts = _stack(given, t, t * t, both, a, a * a, error**2)
    text = "R², a missing number counts as the mean of the references"
    results.add("R2", name, counts, r2_of_sums, text, n)
    counts = _stack(both, a, a * a, both, a, a * a, error**2)
    text = "R², reports that state the number"
    results.add("R2_answered", name, counts, r2_of_sums, text, pairs)
    counts = _stack(both, p, a, p * p, a * a, p * a)
    results.add("Pearson", name, counts, pearson_of_sums, "Pearson correlation", pairs)


def _numbers(values: Sequence[TraitValue | None]) -> np.ndarray:
    numbers = [None if value is None else value.number for value in values]
    return np.array([math.nan if number is None else number for number in numbers])


def _averages(results: _Results) -> list[Score]:
    """Return the averages of measures over traits, each from the traits that have a value."""
    averages = []
    for measure in ("balanced_accuracy", "AUROC", "Brier", "kappa", "R2"):
        parts = results.parts.get(measure)
        if parts:
            averages.append(_average(f"traits_{measure}", measure, parts, results.groups))
    return averages


def _average(
    name: str, measure: str, parts: Sequence[Score], groups: Sequence[str] | None
) -> Score:
    ends = np.cumsum([part.counts.shape[1] for part in parts]).tolist()
    starts = [0, *ends[:-1]]

    def rows(sums: np.ndarray) -> np.ndarray:
        values = [
            ratios_of_rows(p.ratio, sums[:, a:b])
            for p, a, b in zip(parts, starts, ends, strict=True)
        ]
        return nan_mean(np.stack(values), axis=0)

    counts = np.hstack([part.counts for part in parts])
    signature = f"{measure}, mean over {len(parts)} traits; {_READER}"
    return ratio_score(name, counts, RowRatio(rows), signature, groups)


def _contradicting(
    predictions: Sequence[TraitReading],
    references: Sequence[TraitReading],
    groups: Sequence[str] | None,
) -> Score:
    among = [bool(reading.contradictions) for reading in references]
    share = sum(among) / len(among) if among else math.nan
    signature = f"reports that contradict themselves ({share:.3f} of the references); {_READER}"
    values = [float(bool(reading.contradictions)) for reading in predictions]
    return mean_score("contradicting_reports", values, signature, groups)


def _stack(*columns: np.ndarray) -> np.ndarray:
    return np.stack(columns, axis=1).astype(float)


def _divide(numerator: np.ndarray, denominator: np.ndarray, least: float = 0.0) -> np.ndarray:
    """Divide where the denominator is above `least`; elsewhere the result is NaN."""
    result = np.full(np.shape(numerator), np.nan)
    return np.divide(numerator, denominator, out=result, where=denominator > least)


def share_of_sums(sums: np.ndarray) -> np.ndarray:
    """Divide the first sums by the second; (r, 2) to (r,)."""
    return _divide(sums[:, 0], sums[:, 1])


def balanced_accuracy_of_sums(sums: np.ndarray) -> np.ndarray:
    """Compute (sensitivity + specificity) / 2; (r, 4) to (r,).

    Args:
        sums: Hits, positives, correct rejections and negatives.
    """
    hits, positives, rejections, negatives = sums.T
    return (_divide(hits, positives) + _divide(rejections, negatives)) / 2


def auroc_of_sums(sums: np.ndarray) -> np.ndarray:
    """Compute AUROC with ties as half; (r, 2 m) to (r,).

    Args:
        sums: Numbers of negatives, then of positives, at each of m ascending probabilities.
    """
    negatives, positives = np.split(sums, 2, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + negatives / 2)).sum(axis=1)
    return _divide(won, negatives.sum(axis=1) * positives.sum(axis=1))


def calibration_error_of_sums(sums: np.ndarray) -> np.ndarray:
    """Compute the expected calibration error (Naeini et al. 2015); (r, bins + 1) to (r,).

    Args:
        sums: For each bin the sum of probabilities minus references; last, the number of samples.
    """
    return _divide(np.abs(sums[:, :-1]).sum(axis=1), sums[:, -1])


def kappa_of_sums(sums: np.ndarray) -> np.ndarray:
    """Compute the quadratic weighted kappa (Cohen 1968); (r, 6) to (r,).

    Args:
        sums: n, Σp, Σt, Σp², Σt² and Σpt of predicted grades p and true grades t.
    """
    n, p, t, pp, tt, pt = sums.T
    expected = pp + tt - 2 * _divide(p * t, n)
    return 1 - _divide(pp + tt - 2 * pt, expected, _TINY)


def pearson_of_sums(sums: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation; the argument is that of `kappa_of_sums`."""
    n, p, t, pp, tt, pt = sums.T
    spread = (pp - _divide(p * p, n)) * (tt - _divide(t * t, n))
    return _divide(pt - _divide(p * t, n), np.sqrt(np.maximum(spread, 0.0)), _TINY)


def r2_of_sums(sums: np.ndarray) -> np.ndarray:
    """Compute R², in which a missing number counts as the mean of the references; (r, 7) to (r,).

    Args:
        sums: n, Σt, Σt² of all references; the same of the answered ones; Σ(p - t)² of these.
    """
    n, t, tt, answered, a, aa, errors = sums.T
    mean = _divide(t, n)
    missing = (tt - aa) - 2 * mean * (t - a) + (n - answered) * mean**2
    return 1 - _divide(errors + missing, tt - n * mean**2, _TINY)
