"""Scores of answers that point at regions, findings or phrases with boxes.

Boxes of an answer are a set: no score here depends on their order. Every question counts, also one
about something that is not in the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from xraygpt.metrics.grounding import Boxes, detection_scores, grounding_scores, match
from xraygpt.metrics.statistics import Score, ratio_score, share_of_sums

THRESHOLDS = (0.3, 0.75)  # in addition to 0.5
MIDLINE = 0.05  # a box whose centre is this close to the middle of the image has no side


def box_answer_scores(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    groups: Sequence[str] | None = None,
    *,
    by_label: bool = True,
) -> list[Score]:
    """Score boxes against the true ones.

    Args:
        predictions: The boxes of each answer; with scores, if the model gives probabilities.
        references: The true boxes of each question; none if what is asked for is absent.
        groups: The study of each question; intervals resample whole studies.
        by_label: Whether to compute average precisions over labels; not for phrases, which differ
            in every image.

    Returns:
        ``mean_IoU`` over true boxes, matched one to one so that the sum of overlaps is maximal;
        ``box_precision``, ``box_recall`` and ``box_F1`` at overlaps of 0.3, 0.5 (without a suffix)
        and 0.75; ``soft_F1``, in which each matched pair counts with its overlap; ``mAP_50_VOC``,
        ``mAP_50`` and ``mAP_50_95``; ``answered``, the share of questions about something present
        that get a box; ``absent_without_box``, the share of questions about something absent that
        get none; and ``wrong_side``, the share of boxes on the other half of the image, among
        questions whose true boxes are all on one half.
    """
    scores = grounding_scores(predictions, references, groups=groups)
    scores.append(_soft_f1(predictions, references, groups))
    for threshold in THRESHOLDS:
        at = grounding_scores(predictions, references, threshold=threshold, groups=groups)
        named = (replace(score, name=f"{score.name}@{threshold:g}") for score in at)
        scores += [score for score in named if not score.name.startswith("mean_IoU")]
    if by_label:
        scores += detection_scores(predictions, references, groups)
    present = [bool(len(r.xyxy)) for r in references]
    boxed = [bool(len(p.xyxy)) for p in predictions]
    shares = {
        "answered": (boxed, present, "questions about something present"),
        "absent_without_box": (
            [not b for b in boxed], [not p for p in present], "questions about something absent",
        ),
    }  # fmt: skip
    for name, (values, counted, signature) in shares.items():
        counts = np.array([[v and c, c] for v, c in zip(values, counted, strict=True)], dtype=float)
        scores.append(_share(name, counts.reshape(-1, 2), signature, groups))
    sides = np.array([_sides(p, r) for p, r in zip(predictions, references, strict=True)])
    signature = f"boxes on the other half; {MIDLINE:g} around the middle has no side"
    scores.append(_share("wrong_side", sides.reshape(-1, 2), signature, groups))
    return [score for score in scores if score.n]


def _share(name: str, counts: np.ndarray, signature: str, groups: Sequence[str] | None) -> Score:
    score = ratio_score(name, counts, share_of_sums, signature, groups)
    return replace(score, n=int(counts[:, 1].sum()))


def _soft_f1(
    predictions: Sequence[Boxes], references: Sequence[Boxes], groups: Sequence[str] | None
) -> Score:
    rows = [
        [2 * sum(m.iou for m in match(p, r)), len(p.xyxy) + len(r.xyxy)]
        for p, r in zip(predictions, references, strict=True)
    ]
    counts = np.array(rows, dtype=float).reshape(-1, 2)
    return ratio_score("soft_F1", counts, share_of_sums, "one-to-one, IoU as hits", groups)


def _sides(predicted: Boxes, expected: Boxes) -> tuple[int, int]:
    """Count the boxes on the wrong half of the image, and those with a side."""
    true = {_side(box) for box in expected.xyxy}
    if len(true) != 1 or 0 in true:
        return 0, 0
    found = [side for side in map(_side, predicted.xyxy) if side]
    return sum(side not in true for side in found), len(found)


def _side(box: np.ndarray) -> int:
    """Return -1 for the left half of the image, 1 for the right half, 0 for the middle."""
    offset = (box[0] + box[2]) / 2 - 0.5
    return 0 if abs(offset) <= MIDLINE else int(np.sign(offset))
