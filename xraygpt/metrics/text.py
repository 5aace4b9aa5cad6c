"""Word overlap between predictions and references: BLEU by sacrebleu, ROUGE by rouge-score.

Both sides are lower-cased and split into words and punctuation marks, as in report papers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from xraygpt.metrics.statistics import Score, mean_score, ratio_score

ROUGE = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}


def split_words(text: str) -> list[str]:
    """Split a text into lower-cased words and punctuation marks."""
    return re.findall(r"[a-z0-9]+(?:[-'.][a-z0-9]+)*|[^\sa-z0-9]", text.lower())


class _RougeTokenizer:
    """Splits texts into words without punctuation, with the interface that rouge-score calls."""

    def tokenize(self, text: str) -> list[str]:
        return [w for w in split_words(text) if w[0].isalnum()]


def bleu_scores(
    predictions: Sequence[str], references: Sequence[str], groups: Sequence[str] | None = None
) -> list[Score]:
    """Compute corpus BLEU-1 to BLEU-4, unsmoothed, in [0, 1] (Papineni et al. 2002)."""
    from sacrebleu.metrics import BLEU

    predictions = [" ".join(split_words(p)) for p in predictions]
    references = [" ".join(split_words(r)) for r in references]
    n = len(predictions)
    scores = []
    for order in range(1, 5):
        bleu = BLEU(  # effective_order only silences a warning: counts are summed, not averaged
            max_ngram_order=order,
            tokenize="none",
            smooth_method="none",
            force=True,
            effective_order=True,
        )
        counts = np.array(_bleu_counts(bleu, predictions, references), dtype=float).reshape(n, -1)

        def ratio(sums: np.ndarray, order: int = order) -> float:
            return bleu_of_counts(sums, order)

        signature = (
            f"sacrebleu {version('sacrebleu')}, order {order}, words lower-cased, no smoothing"
        )
        scores.append(ratio_score(f"BLEU-{order}", counts, ratio, signature, groups))
    return scores


def _bleu_counts(bleu: Any, predictions: list[str], references: list[str]) -> list[list[int]]:
    """Return both lengths of each pair, then sacrebleu's matches and totals for each order."""
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        s = bleu.sentence_score(prediction, [reference])
        rows.append([s.sys_len, s.ref_len, *s.counts, *s.totals])
    return rows


def bleu_of_counts(sums: np.ndarray, order: int) -> float:
    """Compute BLEU from summed counts: the precisions' geometric mean times a brevity penalty."""
    prediction_length, reference_length = sums[0], sums[1]
    matches, totals = sums[2 : 2 + order], sums[2 + order : 2 + 2 * order]
    if prediction_length == 0 or (matches == 0).any():
        return 0.0
    brevity = min(1.0, float(np.exp(1 - reference_length / prediction_length)))
    return brevity * float(np.exp(np.mean(np.log(matches / totals))))


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(ROUGE), tokenizer=_RougeTokenizer())


def rouge_values(prediction: str, reference: str) -> dict[str, float]:
    """Compute the F1 of ROUGE-1, ROUGE-2 and ROUGE-L, in [0, 1] (Lin 2004), without stemming."""
    scored = _rouge().score(reference, prediction)
    return {label: scored[key].fmeasure for key, label in ROUGE.items()}


def rouge_scores(
    predictions: Sequence[str], references: Sequence[str], groups: Sequence[str] | None = None
) -> list[Score]:
    """Compute the mean ROUGE scores over samples."""
    rows = [rouge_values(p, r) for p, r in zip(predictions, references, strict=True)]
    signature = f"rouge-score {version('rouge-score')}, F1, words lower-cased, no stemming"
    return [
        mean_score(label, [row[label] for row in rows], signature, groups)
        for label in ROUGE.values()
    ]
