"""Scores as RadVLM's evaluation computes them, to compare with its tables.

Deperrois et al. 2025, arXiv:2502.03333, and its repository. These definitions have properties that
a reader of the numbers should know:

* average precision depends on the order in which an answer writes its boxes: walking in this order,
  each box takes its best reference box, and is false if that is taken;
* the average overlap is over all pairs of a predicted and a reference box, so two perfect boxes
  reach 0.5; answers without a box are left out of it;
* a finding counts as named if its name occurs anywhere in the answer: "No pneumothorax" names it.

Scores that do not have them are in `box_answers` and `reports`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from xraygpt.metrics.grounding import iou
from xraygpt.metrics.statistics import Score, macro_ratio, mean_score, ratio_score, share_of_sums

_BOX = re.compile(r"\[([\d.]+),\s*([\d.]+),\s*([\d.]+),\s*([\d.]+)\]")
_THRESHOLD = 0.5


class TextBoxes(NamedTuple):
    """The boxes that RadVLM's pattern finds in an answer.

    Attributes:
        boxes: (n, 4) float64, in the order of the text, unchanged: corners may be swapped.
        damaged: Number of matches such as ``[0.1, 0.2, 0.3., 0.4]``, on which RadVLM's code stops.
    """

    boxes: np.ndarray
    damaged: int


def read_boxes(text: str) -> TextBoxes:
    """Find boxes ``[x1, y1, x2, y2]`` of digits and dots in a text."""
    boxes: list[list[float]] = []
    damaged = 0
    for match in _BOX.findall(text):
        try:
            boxes.append([float(number) for number in match])
        except ValueError:
            damaged += 1
    return TextBoxes(np.array(boxes, dtype=float).reshape(-1, 4), damaged)


def average_precision(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Compute the average precision of one answer at an overlap of 0.5.

    Args:
        predicted: (n, 4) boxes in the order of the answer.
        truth: (m, 4) reference boxes.

    Returns:
        The area below the falling envelope of precision over recall; 0 without boxes on a side.
    """
    if not len(predicted) or not len(truth):
        return 0.0
    overlap = iou(predicted, truth)
    taken: set[int] = set()
    hits = []
    for row in overlap:
        best = int(row.argmax())
        hit = row[best] >= _THRESHOLD and best not in taken
        hits.append(float(hit))
        if hit:
            taken.add(best)
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.diff(found / len(truth), prepend=0.0)
    return float((envelope * steps).sum())


def box_scores(
    answers: Sequence[str], truth: Sequence[np.ndarray], groups: Sequence[str] | None = None
) -> tuple[list[Score], dict[str, str]]:
    """Compute RadVLM's ``mAP_0.5`` and ``avg_iou``.

    Args:
        answers: The texts, with boxes as fractions.
        truth: The reference boxes of each answer, (m, 4) fractions of the image.
        groups: The study of each answer; intervals resample whole studies.

    Returns:
        ``radvlm_mAP_50`` and ``radvlm_avg_IoU``, and why RadVLM's code would have stopped, if so.
    """
    read = [read_boxes(text) for text in answers]
    precisions = [average_precision(r.boxes, t) for r, t in zip(read, truth, strict=True)]
    overlaps = [iou(r.boxes, t) for r, t in zip(read, truth, strict=True)]
    counts = np.array([[o.sum(), o.size] for o in overlaps], dtype=float).reshape(-1, 2)
    scores = [
        mean_score(
            "radvlm_mAP_50", precisions, "RadVLM: boxes in the order of the text, mean of answers",
            groups,
        ),
        ratio_score(
            "radvlm_avg_IoU", counts, share_of_sums, "RadVLM: all pairs, answers with boxes only",
            groups,
        ),
    ]  # fmt: skip
    damaged = sum(r.damaged for r in read)
    empty = sum(_both_empty(r.boxes, t) for r, t in zip(read, truth, strict=True))
    reasons = {}
    if damaged:
        reasons["RadVLM's boxes"] = (
            f"{damaged} boxes with a damaged number, on which its code stops"
        )
    if empty:
        reasons["RadVLM's overlap"] = f"{empty} pairs of boxes without an area, on which it stops"
    return scores, reasons


def _both_empty(first: np.ndarray, second: np.ndarray) -> int:
    """Count the pairs of boxes that both have no area."""
    flat = [int(((b[:, 2:] - b[:, :2]).prod(axis=1) == 0).sum()) for b in (first, second)]
    return flat[0] * flat[1]


def named_labels(answer: str, labels: Sequence[str]) -> set[str]:
    """Return the labels whose name occurs in an answer, in any case, also inside a negation."""
    text = answer.lower()
    return {label for label in labels if label.lower() in text}


def classification_scores(
    answers: Sequence[str],
    truth: Sequence[Sequence[str]],
    labels: Sequence[str],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute RadVLM's precision, recall and F1 of labels found as substrings.

    Args:
        answers: The texts.
        truth: The positive labels of each image.
        labels: All labels.
        groups: See `box_scores`.
    """
    named = [named_labels(answer, labels) for answer in answers]
    known = [{name.lower() for name in names} for names in truth]
    true = [{label for label in labels if label.lower() in names} for names in known]
    return label_scores("radvlm", named, true, labels, "RadVLM: names as substrings", groups)


def label_scores(
    prefix: str,
    predicted: Sequence[set[str]],
    truth: Sequence[set[str]],
    labels: Sequence[str],
    signature: str,
    groups: Sequence[str] | None = None,
    judged: Sequence[Collection[str]] | None = None,
) -> list[Score]:
    """Compute micro and macro precision, recall and F1, and F1 of each label.

    A ratio without a denominator is 0, as in scikit-learn; in a resample, such a label is left out
    if it has one in the whole sample, so that intervals do not depend on how rare labels are.

    Args:
        prefix: Beginning of the names of the scores.
        predicted: The labels of each answer.
        truth: The labels of each image.
        labels: The labels that count.
        signature: See `Score`.
        groups: See `box_scores`.
        judged: The labels that were looked for in each image; others do not count there. Empty or
            None: all.
    """
    known = judged or [()] * len(truth)
    rows = [
        [[x in p and x in t, x in p, x in t] if not j or x in j else [0, 0, 0] for x in labels]
        for p, t, j in zip(predicted, truth, known, strict=True)
    ]
    counts = np.array(rows, dtype=float).reshape(len(rows), len(labels), 3)
    flat = counts.reshape(len(counts), -1)
    scores = []
    for name, bottom in (("precision", (1,)), ("recall", (2,)), ("F1", (1, 2))):
        for how, sums in (("micro", counts.sum(axis=1)), ("macro", flat)):
            title = f"{prefix}_{name}_{how}"
            ratio = macro_ratio(sums.sum(axis=0), bottom)
            scores.append(ratio_score(title, sums, ratio, signature, groups))
    for i, label in enumerate(labels):
        title = f"{prefix}_F1/{label}"
        ratio = macro_ratio(counts[:, i].sum(axis=0))
        scores.append(ratio_score(title, counts[:, i], ratio, signature, groups))
    return scores
