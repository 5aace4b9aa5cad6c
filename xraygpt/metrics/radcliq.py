"""RadCliQ-v1: one number from four metrics, fitted to the errors that radiologists counted.

Yu et al. 2023, "Evaluating progress in automatic chest X-ray radiology report generation"
(Patterns), regress the number of errors in a report on its BLEU-2, BERTScore, CheXbert vector
similarity and RadGraph F1. Lower is therefore better; papers often print 1/RadCliQ-v1, for which
higher is better. The numbers below are those of the authors' released regression
(github.com/rajpurkarlab/CXR-Report-Metric) as given in ``radeval/metrics/RadCliQv1/radcliq.py`` of
radeval 2.2.1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import exp, sqrt

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import Score, mean_score, ratio_score
from xraygpt.metrics.text import split_words

PARTS = ("radgraph", "bertscore", "semb", "bleu")  # the order of all arrays below
MEANS = np.array([0.53792312, 0.61757256, 0.76479421, 0.44738335])
SCALES = np.array([0.30282584, 0.22430938, 0.25394391, 0.29892717])  # standard deviations
COEFFICIENTS = np.array([-3.77083683e-01, -3.70300100e-01, -2.52616218e-01, 4.31504841e-12])
INTERCEPT = 2.46655256e-10

#: The BERTScore used in the regression: distilroberta-base, idf from the references, rescaled by
#: the baseline in bert-score's table for that layer (precision, recall, F1).
BERTSCORE_MODEL, BERTSCORE_LAYER = "distilroberta-base", 5
BERTSCORE_BASELINE = (0.84732, 0.84759504, 0.8473319)


def radcliq_v1(
    radgraph: np.ndarray, bertscore: np.ndarray, semb: np.ndarray, bleu: np.ndarray
) -> np.ndarray:
    """Compute RadCliQ-v1 for n pairs.

    Args:
        radgraph: (n,) `radgraph.entity_relation_f1`, in [0, 1].
        bertscore: (n,) F1 of BERTScore with `BERTSCORE_MODEL`.
        semb: (n,) cosine of CheXbert's vectors, see `cosines`.
        bleu: (n,) sentence BLEU-2, in [0, 1], see `bleu_2`; its weight is almost 0.

    Returns:
        (n,) float64, unbounded, about 0 for an average report of the fit; lower is better.

    Raises:
        InputError: If the four arrays differ in length or contain a number that is not finite.
    """
    parts = [np.asarray(p, dtype=float) for p in (radgraph, bertscore, semb, bleu)]
    if len({p.shape for p in parts}) > 1 or parts[0].ndim != 1:
        shapes = ", ".join(f"{n} {p.shape}" for n, p in zip(PARTS, parts, strict=True))
        raise InputError(f"RadCliQ needs four values for each pair; got {shapes}")
    for name, part in zip(PARTS, parts, strict=True):
        if not np.isfinite(part).all():
            index = int(np.flatnonzero(~np.isfinite(part))[0])
            raise InputError(f"RadCliQ: {name} of pair {index} is {part[index]}, not finite")
    standard = (np.stack(parts, axis=1) - MEANS) / SCALES
    return np.asarray(standard @ COEFFICIENTS + INTERCEPT)


def radcliq_scores(
    radgraph: np.ndarray,
    bertscore: np.ndarray,
    semb: np.ndarray,
    bleu: np.ndarray,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute mean RadCliQ-v1 (lower is better), its reciprocal and SembScore, a mean cosine.

    The reciprocal is not meaningful if the mean is near or below 0.

    Args:
        radgraph: See `radcliq_v1`.
        bertscore: See `radcliq_v1`.
        semb: See `radcliq_v1`.
        bleu: See `radcliq_v1`.
        groups: The study of each sample; intervals resample whole studies.

    Raises:
        InputError: See `radcliq_v1`.
    """
    values = radcliq_v1(radgraph, bertscore, semb, bleu)
    counts = np.stack([values, np.ones_like(values)], axis=1)
    return [
        ratio_score("RadCliQ-v1", counts, _mean, "RadCliQ-v1, lower is better", groups),
        ratio_score("1/RadCliQ-v1", counts, _reciprocal, "1 / mean RadCliQ-v1", groups),
        mean_score("SembScore", semb.tolist(), "cosine of CheXbert's [CLS] vectors", groups),
    ]


def _mean(sums: np.ndarray) -> float:
    return float(sums[0] / sums[1])


def _reciprocal(sums: np.ndarray) -> float:
    return float(sums[1] / sums[0]) if sums[0] else float("nan")


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute the cosines (n,) float64 of the rows of two (n, d) arrays; 0 for a row of zeros."""
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if a.shape != b.shape:
        raise InputError(f"vectors of shapes {a.shape} and {b.shape} cannot be compared in pairs")
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(axis=1), norms, out=np.zeros(len(a)), where=norms > 0)


def bleu_2(prediction: str, reference: str) -> float:
    """Compute sentence BLEU-2 without smoothing, in [0, 1] (Papineni et al. 2002)."""
    predicted, expected = split_words(prediction), split_words(reference)
    if len(predicted) < 2 or not expected:
        return 0.0
    precisions = []
    for order in (1, 2):
        ngrams = _ngrams(predicted, order)
        precisions.append((ngrams & _ngrams(expected, order)).total() / ngrams.total())
    brevity = min(1.0, exp(1 - len(expected) / len(predicted)))
    return brevity * sqrt(precisions[0] * precisions[1])


def _ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + order]) for i in range(len(tokens) - order + 1))
