"""Predicted boxes against reference boxes: overlap, hits and average precision.

Boxes are ``x1, y1, x2, y2`` in [0, 1]: fractions of the width and height of the original image,
from its upper left corner. Overlap is intersection over union (Jaccard 1912). Boxes are scored in
one of two ways:

* Without confidences: predicted and reference boxes of a sample are matched one to one so that the
  sum of overlaps is maximal (Kuhn 1955), in any order; see `grounding_scores`.
* With confidences: detections are ranked over all samples; `detection_scores` are the average
  precisions of PASCAL VOC (Everingham et al. 2010, every recall) and COCO (Lin et al. 2014, 101
  recalls).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.metrics.probabilities import Statistic, nan_mean, resampled_score
from xraygpt.metrics.statistics import RowRatio, Score, bootstrap_weights, ratio_score

Points = Literal["voc", "coco"]

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_RECALLS = np.linspace(0, 1, 101)
_MAX_DETECTIONS = 100  # COCO's limit per label and image


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Attributes:
        xyxy: (n, 4) float64 in [0, 1], x1 <= x2 and y1 <= y2.
        labels: n names; empty if the boxes have no labels, so that any box can match any other.
        scores: (n,) float64 confidences; None treats all boxes as equally confident.
    """

    xyxy: np.ndarray
    labels: Sequence[str] = ()
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Convert the boxes to (n, 4) float64.

        Raises:
            SettingsError: If a box is invalid, or the number of labels or scores is not n.
        """
        boxes = np.asarray(self.xyxy, dtype=float)
        if boxes.size == 0:
            boxes = np.zeros((0, 4))
        scores = None if self.scores is None else np.asarray(self.scores, dtype=float)
        object.__setattr__(self, "xyxy", boxes)
        object.__setattr__(self, "scores", scores)
        with Checks(self) as check:
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                shape = f"boxes have shape {boxes.shape}; expected (n, 4): x1, y1, x2, y2"
                check.refuse(True, "xyxy", shape)
                return
            _check_corners(boxes, check)
            for field, values in (("labels", self.labels or None), ("scores", scores)):
                count = len(boxes) if values is None else len(values)
                message = f"got {count} {field} for {len(boxes)} boxes; expected one each"
                check.refuse(count != len(boxes), field, message, "xyxy")
            has_nan = scores is not None and np.isnan(scores).any()
            check.refuse(has_nan, "scores", "a box has the score NaN; expected numbers")


def _check_corners(boxes: np.ndarray, check: Checks) -> None:
    """Check that boxes are inside the image, with the upper left corner first."""
    outside = ~((boxes >= -1e-6) & (boxes <= 1 + 1e-6)).all(axis=1)
    swapped = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    fix = "divide x by its width and y by its height, and clip to [0, 1]"
    for box in boxes[outside][:1].tolist():
        check.refuse(True, "xyxy", f"box {box} is not inside the image; {fix}")
    fix = "put the upper left corner first: x1, y1, x2, y2"
    for box in boxes[swapped][:1].tolist():
        check.refuse(True, "xyxy", f"box {box} has its corners swapped; {fix}")


class Match(NamedTuple):
    """A predicted box and its reference box."""

    prediction: int  # index
    reference: int
    iou: float


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Compute intersection over union of every box (n, 4) with every box (m, 4): (n, m) float64.

    The value is 0 if neither box has an area.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    extent = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = extent.prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(predictions: Boxes, references: Boxes) -> list[Match]:
    """Pair boxes so that the sum of overlaps is maximal; pairs without overlap are omitted.

    If both sides have labels, only boxes with the same label are paired.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = iou(predictions.xyxy, references.xyxy)
    if predictions.labels and references.labels:
        overlap = overlap * (
            np.asarray(predictions.labels)[:, None] == np.asarray(references.labels)
        )
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return [
        Match(int(i), int(j), float(overlap[i, j]))
        for i, j in zip(rows, columns, strict=True)
        if overlap[i, j] > 0
    ]


def grounding_scores(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    *,
    threshold: float = 0.5,
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute the overlap and hits of boxes matched one to one within each image.

    Args:
        predictions: The predicted boxes of each image.
        references: The reference boxes of each image.
        threshold: Minimum overlap of a hit.
        groups: The study of each image; intervals resample whole studies. None treats images as
            independent.

    Returns:
        ``mean_IoU`` (over reference boxes, 0 for a missed box) and ``box_precision``,
        ``box_recall``, ``box_F1`` over all boxes; nan if the denominator is 0.

    Raises:
        InputError: If the counts differ.
    """
    _check_lengths(predictions, references)
    rows = []
    for predicted, expected in zip(predictions, references, strict=True):
        overlaps = [m.iou for m in match(predicted, expected)]
        hits = sum(o >= threshold for o in overlaps)
        rows.append([sum(overlaps), hits, len(predicted.xyxy), len(expected.xyxy)])
    counts = np.array(rows, dtype=float).reshape(-1, 4)
    signature = f"one-to-one, IoU >= {threshold}"
    ratios: dict[str, tuple[RowRatio, str]] = {
        "mean_IoU": (
            RowRatio(lambda c: _divide(c[:, 0], c[:, 3])), "one-to-one, mean over true boxes",
        ),
        "box_precision": (RowRatio(lambda c: _divide(c[:, 1], c[:, 2])), signature),
        "box_recall": (RowRatio(lambda c: _divide(c[:, 1], c[:, 3])), signature),
        "box_F1": (RowRatio(lambda c: _divide(2 * c[:, 1], c[:, 2] + c[:, 3])), signature),
    }  # fmt: skip
    return [ratio_score(name, counts, r, text, groups) for name, (r, text) in ratios.items()]


def _divide(part: np.ndarray, total: np.ndarray) -> np.ndarray:
    return np.divide(part, total, out=np.full(len(part), np.nan), where=total != 0)


def average_precision(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    label: str,
    threshold: float = 0.5,
    points: Points = "coco",
) -> float:
    """Compute the average precision of one label over all images; nan without a reference box.

    Args:
        predictions: The predicted boxes of each image, best first if they have no scores.
        references: The reference boxes of each image.
        label: The label; ``""`` if boxes have none.
        threshold: Minimum overlap of a hit.
        points: Average the precision over every recall (``voc``) or over 101 recalls (``coco``).

    Raises:
        InputError: If the counts differ.
    """
    _check_lengths(predictions, references)
    ranking = _rank_detections(predictions, references, label, (threshold,))
    return float(_average_precisions(ranking, np.ones((1, len(references))), points)[0, 0])


def detection_scores(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Compute the mean average precision over the labels of the references.

    Boxes are matched as in COCO for all three scores: in order of confidence, each takes the free
    reference box of its label with the largest overlap; at most 100 boxes per label and image
    count. Boxes of equal confidence are one step of the curve, so that neither the order of boxes
    nor that of images matters, on which COCO's value depends. Without ties, the values are COCO's.

    Args:
        predictions: The predicted boxes of each image.
        references: The reference boxes of each image.
        groups: The study of each image; intervals resample whole studies. None treats images as
            independent.

    Returns:
        ``mAP_50_VOC``, ``mAP_50`` and ``mAP_50_95``, in [0, 1]; nan without a reference box.

    Raises:
        InputError: If the counts differ.
    """
    _check_lengths(predictions, references)
    labels = sorted({name for boxes in references for name in _names(boxes)})
    weights = bootstrap_weights(len(references), groups)
    variants: dict[str, tuple[Points, tuple[float, ...], str]] = {
        "mAP_50_VOC": ("voc", (0.5,), "mAP, every recall, IoU 0.5"),
        "mAP_50": ("coco", (0.5,), "mAP, 101 recalls, IoU 0.5"),
        "mAP_50_95": ("coco", COCO_THRESHOLDS, "mAP, 101 recalls, IoU 0.5 to 0.95"),
    }
    images = _images_by_label(predictions, references)
    ranked = [
        _rank_detections(predictions, references, label, COCO_THRESHOLDS, images[label])
        for label in labels
    ]
    scores = []
    for name, (points, thresholds, signature) in variants.items():
        count = len(thresholds)  # the first is 0.5 in all of them
        rankings = [ranking._replace(hit=ranking.hit[:count]) for ranking in ranked]
        statistic = _mean_average_precision(rankings, points)
        scores.append(resampled_score(name, statistic, signature, groups, weights))
    return scores


def _check_lengths(predictions: Sequence[Boxes], references: Sequence[Boxes]) -> None:
    if len(predictions) != len(references):
        raise InputError(
            f"got predicted boxes of {len(predictions)} images for {len(references)} images with "
            "references; expected one `Boxes` per image, empty for images without boxes"
        )


def _names(boxes: Boxes) -> Sequence[str]:
    return boxes.labels or [""] * len(boxes.xyxy)


class _Ranking(NamedTuple):
    """Detections of one label in order of decreasing confidence."""

    image: np.ndarray  # (d,) index of the image
    hit: np.ndarray  # (thresholds, d) bool
    references: np.ndarray  # (n,) number of reference boxes in each image
    ends: np.ndarray  # (d,) index of the last detection with the same confidence


def _images_by_label(
    predictions: Sequence[Boxes], references: Sequence[Boxes]
) -> dict[str, list[int]]:
    """Return the indices of the images in which each label has a box on either side."""
    images: dict[str, list[int]] = {}
    for index, pair in enumerate(zip(predictions, references, strict=True)):
        for label in {name for boxes in pair for name in _names(boxes)}:
            images.setdefault(label, []).append(index)
    return images


def _rank_detections(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    label: str,
    thresholds: Sequence[float],
    images: Sequence[int] | None = None,
) -> _Ranking:
    """Rank the detections of a label; `images` are those that have it, None looks in all."""
    image: list[int] = []
    scores: list[np.ndarray] = []
    hits = [np.zeros((len(thresholds), 0), dtype=bool)]
    reference_counts = np.zeros(len(references))
    for index in range(len(references)) if images is None else images:
        predicted, expected = predictions[index], references[index]
        detections = np.flatnonzero([name == label for name in _names(predicted)])
        targets = np.flatnonzero([name == label for name in _names(expected)])
        score = np.ones(len(detections))
        if predicted.scores is not None:
            score = predicted.scores[detections]
        overlap = iou(predicted.xyxy[detections], expected.xyxy[targets])
        # Among equal scores, the better overlap is first, whatever the order of the answer.
        closest = overlap.max(axis=1, initial=0.0)
        best = np.lexsort((-closest, -score))[:_MAX_DETECTIONS]
        overlap = overlap[best]
        hits.append(np.array([_hits(overlap, t) for t in thresholds]).reshape(len(thresholds), -1))
        scores.append(score[best])
        image += [index] * len(best)
        reference_counts[index] = len(targets)
    order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="stable")
    ranked = np.concatenate([np.zeros(0), *scores])[order]
    ends = np.searchsorted(-ranked, -ranked, side="right") - 1
    return _Ranking(
        np.array(image, dtype=int)[order], np.hstack(hits)[:, order], reference_counts, ends
    )


def _hits(overlap: np.ndarray, threshold: float) -> list[bool]:
    """Return whether each detection, in order of confidence, takes a free reference box."""
    free = np.ones(overlap.shape[1], dtype=bool)
    hits = []
    for row in overlap:
        available = np.where(free, row, -1.0)
        # Among equal overlaps, COCO takes the last; an overlap of 1 always reaches the threshold.
        best = len(row) - 1 - int(available[::-1].argmax()) if len(row) else -1
        hit = best >= 0 and available[best] >= min(threshold, 1 - 1e-10)
        if hit:
            free[best] = False
        hits.append(bool(hit))
    return hits


def _average_precisions(ranking: _Ranking, weights: np.ndarray, points: Points) -> np.ndarray:
    """Compute the average precisions (r, thresholds) with images weighted by (r, n)."""
    detection_weights = weights[:, ranking.image]
    total = weights @ ranking.references
    predicted = detection_weights.cumsum(axis=1)[:, ranking.ends]
    values = np.full((len(weights), len(ranking.hit)), np.nan)
    defined = total > 0
    for column, hit in enumerate(ranking.hit):
        hits = (detection_weights * hit).cumsum(axis=1)[:, ranking.ends]
        precision = np.divide(hits, predicted, out=np.zeros_like(hits), where=predicted > 0)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = np.divide(hits, total[:, None], out=np.zeros_like(hits), where=defined[:, None])
        if points == "coco":
            reached = np.searchsorted(_RECALLS, recall, side="right") * (predicted > 0)
            steps = np.diff(reached, axis=1, prepend=0) / len(_RECALLS)
        else:
            steps = np.diff(recall, axis=1, prepend=0.0)
        values[defined, column] = (envelope * steps).sum(axis=1)[defined]
    return values


def _mean_average_precision(rankings: Sequence[_Ranking], points: Points) -> Statistic:
    """Return the mean over labels and thresholds; a resample excludes labels without a box."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        if not rankings:
            return np.full(len(weights), np.nan)
        values = [_average_precisions(ranking, weights, points) for ranking in rankings]
        return nan_mean(np.hstack(values), axis=1)

    return statistic
