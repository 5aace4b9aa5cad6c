"""BLEU, ROUGE-L, METEOR and CIDEr-D as in report papers, by the COCO caption evaluation.

pycocoevalcap does the counting. Only the final formulas, from counts to scores, are implemented
here, so that intervals and paired differences can resample the counts of individual reports.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from xraygpt.common.errors import InputError
from xraygpt.metrics.statistics import Score, mean_score, ratio_score

log = logging.getLogger(__name__)

INSTALL = "pip install --no-deps pycocoevalcap"
# METEOR 1.5 for English (Denkowski and Lavie 2014): weights of exact, stem, synonym and paraphrase
# matches; of precision against recall; of fragmentation; of content against function words.
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_METEOR_COUNTS = 23  # numbers that the Java program prints for one pair


def coco_version() -> str | None:
    """Return the version of pycocoevalcap, or None if it is not installed."""
    try:
        return version("pycocoevalcap")
    except PackageNotFoundError:
        return None


def coco_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    tokenize: Callable[[str], str],
    groups: Sequence[str] | None = None,
    *,
    meteor: bool = False,
) -> tuple[list[Score], dict[str, str]]:
    """Compute BLEU-1 to BLEU-4, ROUGE-L, CIDEr-D and METEOR.

    Args:
        predictions: Generated reports.
        references: One reference report for each prediction.
        tokenize: Splits a text into words separated by single spaces; see `protocols`. Its string
            form becomes part of the signatures.
        groups: The study of each sample; intervals resample whole studies.
        meteor: Compute METEOR, which needs Java.

    Returns:
        The scores, and the reasons for omitted scores, by the names of these scores.
    """
    installed = coco_version()
    if installed is None:
        names = [*(f"COCO BLEU-{k}" for k in range(1, 5)), "COCO ROUGE-L", "CIDEr-D", "METEOR"]
        return [], dict.fromkeys(names, f"pycocoevalcap is not installed: {INSTALL}")
    predictions = [tokenize(p) for p in predictions]
    references = [tokenize(r) for r in references]
    signature = f"pycocoevalcap {installed}; {tokenize}"
    scores = _bleu(predictions, references, signature, groups)
    scores.append(_rouge(predictions, references, signature, groups))
    scores.append(_cider(predictions, references, signature, groups))
    if not meteor:
        return scores, {"METEOR": "not requested (run.task.meteor: true)"}
    if shutil.which("java") is None:
        return scores, {"METEOR": "it is a Java program, and no java was found"}
    try:
        return [*scores, _meteor(predictions, references, signature, groups)], {}
    except (InputError, OSError) as error:
        return scores, {"METEOR": f"its Java program failed ({type(error).__name__})"}


def _bleu(
    predictions: list[str], references: list[str], signature: str, groups: Sequence[str] | None
) -> list[Score]:
    """Compute corpus BLEU (Papineni et al. 2002) with COCO's tiny constants."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        row = cook_test(prediction, cook_refs([reference]), eff="closest")
        rows.append([row["testlen"], row["reflen"], *row["correct"], *row["guess"]])
    counts = np.array(rows, dtype=float).reshape(len(predictions), 10)

    scores = []
    for order in range(1, 5):
        ratio = partial(coco_bleu, order=order)
        order_signature = f"BLEU-{order}, {signature}"
        scores.append(ratio_score(f"COCO BLEU-{order}", counts, ratio, order_signature, groups))
    return scores


def coco_bleu(sums: np.ndarray, order: int) -> float:
    """Compute BLEU from summed counts, in [0, 1].

    Args:
        sums: (10,) counts: the words in the predictions, the words in the references, the matching
            n-grams of orders 1 to 4, and all n-grams of orders 1 to 4 in the predictions.
        order: Longest n-gram, 1 to 4.
    """
    tiny, small = 1e-15, 1e-9
    matches, totals = sums[2 : 2 + order], sums[6 : 6 + order]
    precision = float(np.prod((matches + tiny) / (totals + small)) ** (1 / order))
    length = (sums[0] + tiny) / (sums[1] + small)
    return precision if length >= 1 else precision * float(np.exp(1 - 1 / length))


def _rouge(
    predictions: list[str], references: list[str], signature: str, groups: Sequence[str] | None
) -> Score:
    """Compute mean ROUGE-L (Lin 2004), with recall weighted 1.44 times as much as precision."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    pairs = zip(predictions, references, strict=True)
    values = [scorer.calc_score([p], [r]) for p, r in pairs]
    return mean_score("COCO ROUGE-L", values, f"ROUGE-L, beta 1.2, {signature}", groups)


def _cider(
    predictions: list[str], references: list[str], signature: str, groups: Sequence[str] | None
) -> Score:
    """Compute mean CIDEr-D (Vedantam et al. 2015), 0 to 10; idf is from these references."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for prediction, reference in zip(predictions, references, strict=True):
        scorer += (prediction, [reference])
    _, values = scorer.compute_score()
    return mean_score(
        "CIDEr-D", values, f"CIDEr-D, idf of these references, 0 to 10, {signature}", groups
    )


def _meteor(
    predictions: list[str], references: list[str], signature: str, groups: Sequence[str] | None
) -> Score:
    """Compute METEOR 1.5 for the corpus from the summed counts of all pairs."""
    counts = np.array(meteor_counts(predictions, references), dtype=float)
    counts = counts.reshape(len(predictions), _METEOR_COUNTS)
    return ratio_score("METEOR", counts, meteor_of_counts, f"METEOR 1.5, {signature}", groups)


def meteor_counts(predictions: Sequence[str], references: Sequence[str]) -> list[list[float]]:
    """Return METEOR's 23 counts for each pair; the Java program scores equal pairs once.

    Raises:
        InputError: The Java process exited unexpectedly.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    pairs = list(zip(predictions, references, strict=True))
    counts: dict[tuple[str, str], list[float]] = {}
    program: Any = Meteor()
    try:
        for pair in pairs:
            if pair not in counts:
                counts[pair] = _parse_meteor_line(program._stat(pair[0], [pair[1]]))
    finally:
        program.meteor_p.stderr.close()
        program.meteor_p.stdout.close()
        del program  # ends the Java process
    return [counts[pair] for pair in pairs]


def _parse_meteor_line(line: str) -> list[float]:
    """Parse the counts of one pair; a complete match in one chunk counts as no chunks."""
    row = [float(v) for v in line.split()]
    if len(row) != _METEOR_COUNTS:
        raise InputError("the METEOR Java process exited unexpectedly")
    chunks, *matched = row[20:]
    if chunks == 1 and matched == row[:2]:
        row[20] = 0.0
    return row


def meteor_of_counts(sums: np.ndarray) -> float:
    """Compute METEOR 1.5 from summed counts, in [0, 1] (Denkowski and Lavie 2014, eq. 1 to 5).

    Args:
        sums: (23,) counts: the words and then the function words of prediction and reference; for
            each kind of match, the content words and then the function words of both; the chunks;
            the matched words of both.
    """
    p_words, r_words, p_function, r_function = sums[:4]
    matches = sums[4:20].reshape(4, 4)
    chunks, p_matched, r_matched = sums[20:]

    def matched_fraction(content: int, function: int, words: float, function_words: float) -> float:
        matched = _DELTA * matches[:, content] + (1 - _DELTA) * matches[:, function]
        size = _DELTA * (words - function_words) + (1 - _DELTA) * function_words
        return float(_WEIGHTS @ matched / size) if size else 0.0

    precision = matched_fraction(0, 2, p_words, p_function)
    recall = matched_fraction(1, 3, r_words, r_function)
    if not precision or not recall:
        return 0.0
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    matched = (p_matched + r_matched) / 2
    return mean * (1 - _GAMMA * float(chunks / matched) ** _BETA)
