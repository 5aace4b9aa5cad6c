"""BLEU, ROUGE-L, METEOR and CIDEr-D as report papers take them: the COCO caption evaluation.

Counting is pycocoevalcap's own; only the last formula, from counts to the number, stands here, so
that intervals and paired differences can resample the counts of single reports.
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

HOW_TO_GET = "pip install --no-deps pycocoevalcap"
# METEOR 1.5 for English (Denkowski and Lavie 2014): weights of exact, stem, synonym and paraphrase
# matches; of precision against recall; of fragmentation; of content against function words.
_WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
_ALPHA, _BETA, _GAMMA, _DELTA = 0.85, 0.2, 0.6, 0.75
_METEOR_COUNTS = 23  # numbers in what the Java program says of one pair


def coco_version() -> str | None:
    """Version of pycocoevalcap; None where it is absent."""
    try:
        return version("pycocoevalcap")
    except PackageNotFoundError:
        return None


def coco_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    words: Callable[[str], str],
    groups: Sequence[str] | None = None,
    *,
    meteor: bool = False,
) -> tuple[list[Score], dict[str, str]]:
    """BLEU-1 to -4, ROUGE-L, CIDEr-D and METEOR.

    Args:
        predictions: Generated reports.
        references: What was written, one for each.
        words: Cuts a text into words with one blank between them; see `protocols`.
        groups: Per sample its study, which intervals resample.
        meteor: Take METEOR, which wants Java.

    Returns:
        The scores, and by name why one was left out.
    """
    found = coco_version()
    if found is None:
        why = f"pycocoevalcap is absent: {HOW_TO_GET}"
        names = [*(f"COCO BLEU-{k}" for k in range(1, 5)), "COCO ROUGE-L", "CIDEr-D", "METEOR"]
        return [], dict.fromkeys(names, why)
    said, true = [words(p) for p in predictions], [words(r) for r in references]
    signature = f"pycocoevalcap {found}; {words}"
    scores = [*_bleu(said, true, signature, groups), _rouge(said, true, signature, groups)]
    scores.append(_cider(said, true, signature, groups))
    if not meteor:
        return scores, {"METEOR": "not asked for (run.task.meteor: true)"}
    if shutil.which("java") is None:
        return scores, {"METEOR": "it is a Java program, and there is no java here"}
    try:
        return [*scores, _meteor(said, true, signature, groups)], {}
    except (InputError, OSError) as error:
        return scores, {"METEOR": f"its Java program failed ({type(error).__name__})"}


def _bleu(
    said: list[str], true: list[str], signature: str, groups: Sequence[str] | None
) -> list[Score]:
    """Corpus BLEU (Papineni et al. 2002) with COCO's tiny constants."""
    from pycocoevalcap.bleu.bleu_scorer import cook_refs, cook_test

    rows = []
    for p, r in zip(said, true, strict=True):
        one = cook_test(p, cook_refs([r]), eff="closest")
        rows.append([one["testlen"], one["reflen"], *one["correct"], *one["guess"]])
    counts = np.array(rows, dtype=float).reshape(len(said), 10)

    scores = []
    for order in range(1, 5):
        ratio = partial(coco_bleu, order=order)
        about = f"BLEU-{order}, {signature}"
        scores.append(ratio_score(f"COCO BLEU-{order}", counts, ratio, about, groups))
    return scores


def coco_bleu(sums: np.ndarray, order: int) -> float:
    """BLEU of summed counts, in [0, 1].

    Args:
        sums: Words said, words of the references, four numbers of n-grams that match and four of
            n-grams said.
        order: Longest n-gram, 1 to 4.
    """
    tiny, small = 1e-15, 1e-9
    matches, totals = sums[2 : 2 + order], sums[6 : 6 + order]
    precision = float(np.prod((matches + tiny) / (totals + small)) ** (1 / order))
    length = (sums[0] + tiny) / (sums[1] + small)
    return precision if length >= 1 else precision * float(np.exp(1 - 1 / length))


def _rouge(said: list[str], true: list[str], signature: str, groups: Sequence[str] | None) -> Score:
    """Mean ROUGE-L (Lin 2004) with recall weighed 1.44 times as much as precision."""
    from pycocoevalcap.rouge.rouge import Rouge

    scorer = Rouge()
    values = [scorer.calc_score([p], [r]) for p, r in zip(said, true, strict=True)]
    return mean_score("COCO ROUGE-L", values, f"ROUGE-L, beta 1.2, {signature}", groups)


def _cider(said: list[str], true: list[str], signature: str, groups: Sequence[str] | None) -> Score:
    """Mean CIDEr-D (Vedantam et al. 2015), from 0 to 10; n-grams weigh by these references."""
    from pycocoevalcap.cider.cider_scorer import CiderScorer

    scorer = CiderScorer(n=4, sigma=6.0)
    for p, r in zip(said, true, strict=True):
        scorer += (p, [r])
    _, values = scorer.compute_score()
    return mean_score(
        "CIDEr-D", values, f"CIDEr-D, idf of these references, 0 to 10, {signature}", groups
    )


def _meteor(
    said: list[str], true: list[str], signature: str, groups: Sequence[str] | None
) -> Score:
    """METEOR 1.5 over the corpus: the counts of all pairs are added first."""
    counts = np.array(meteor_counts(said, true), dtype=float).reshape(len(said), _METEOR_COUNTS)
    return ratio_score("METEOR", counts, meteor_of_counts, f"METEOR 1.5, {signature}", groups)


def meteor_counts(said: Sequence[str], true: Sequence[str]) -> list[list[float]]:
    """Of each pair the 23 numbers of METEOR's Java program; equal pairs are asked once.

    Raises:
        InputError: The program ended.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    known: dict[tuple[str, str], list[float]] = {}
    program: Any = Meteor()
    try:
        for pair in zip(said, true, strict=True):
            if pair not in known:
                known[pair] = _meteor_row(program._stat(pair[0], [pair[1]]))
    finally:
        program.meteor_p.stderr.close()
        program.meteor_p.stdout.close()
        del program  # ends the Java process
    return [known[pair] for pair in zip(said, true, strict=True)]


def _meteor_row(line: str) -> list[float]:
    """What the program says of one pair; a text all matched in one piece is in no pieces."""
    row = [float(v) for v in line.split()]
    if len(row) != _METEOR_COUNTS:
        raise InputError("METEOR's Java program ended early")
    said, true, chunks, said_matched, true_matched = row[0], row[1], *row[20:]
    if chunks == 1 and said_matched == said and true_matched == true:
        row[20] = 0.0
    return row


def meteor_of_counts(sums: np.ndarray) -> float:
    """METEOR 1.5 of summed counts, in [0, 1] (Denkowski and Lavie 2014, equations 1 to 5).

    Args:
        sums: (23,) words and function words of both sides; of each kind of match the content words
            (said, true) and function words (said, true); chunks; words matched of both sides.
    """
    said, true, said_function, true_function = sums[:4]
    matches = sums[4:20].reshape(4, 4)
    chunks, said_matched, true_matched = sums[20:]

    def share(content: int, function: int, words: float, function_words: float) -> float:
        found = _DELTA * matches[:, content] + (1 - _DELTA) * matches[:, function]
        size = _DELTA * (words - function_words) + (1 - _DELTA) * function_words
        return float(_WEIGHTS @ found / size) if size else 0.0

    precision = share(0, 2, said, said_function)
    recall = share(1, 3, true, true_function)
    if not precision or not recall:
        return 0.0
    mean = precision * recall / (_ALPHA * precision + (1 - _ALPHA) * recall)
    matched = (said_matched + true_matched) / 2
    return mean * (1 - _GAMMA * float(chunks / matched) ** _BETA)
