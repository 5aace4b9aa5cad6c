"""Boxes a model draws against those a radiologist drew: overlap, hits and average precision.

Boxes are ``x1, y1, x2, y2`` in [0, 1]: shares of the width and height of the original image, from
its upper left corner. Overlap is intersection over union (Jaccard 1912). Two questions are asked:

* Without scores: predicted and true boxes of a sample are matched one to one so that the sum of
  overlaps is greatest (Kuhn 1955), whatever their order; then `grounding_scores`.
* With scores: detections are ranked over all samples; `detection_scores` are average precisions of
  PASCAL VOC (Everingham et al. 2010, every recall) and COCO (Lin et al. 2014, 101 recalls).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.metrics.probabilities import Statistic, resampled_score
from xraygpt.metrics.statistics import Score, draw_weights, ratio_score

Points = Literal["voc", "coco"]

COCO_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
_RECALLS = np.linspace(0, 1, 101)
_MOST = 100  # detections of a label in one image that COCO looks at


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Attributes:
        xyxy: (n, 4) float64 in [0, 1], x1 <= x2 and y1 <= y2.
        labels: n names; empty where boxes have none, then every box may match every other.
        scores: (n,) float64, higher is surer; None takes all as alike.
    """

    xyxy: np.ndarray
    labels: Sequence[str] = ()
    scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Bring the boxes to (n, 4) float64.

        Raises:
            SettingsError: If a box is no box, or labels or scores are not one each.
        """
        boxes = np.asarray(self.xyxy, dtype=float)
        if boxes.size == 0:
            boxes = np.zeros((0, 4))
        scores = None if self.scores is None else np.asarray(self.scores, dtype=float)
        object.__setattr__(self, "xyxy", boxes)
        object.__setattr__(self, "scores", scores)
        with Checks(self) as check:
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                shape = f"boxes of shape {boxes.shape}; give (n, 4): x1, y1, x2, y2 of each"
                check.refuse(True, "xyxy", shape)
                return
            _check_corners(boxes, check)
            for what, given in (("labels", self.labels or None), ("scores", scores)):
                count = len(boxes) if given is None else len(given)
                wrong = f"{count} {what} for {len(boxes)} boxes; give one each"
                check.refuse(count != len(boxes), what, wrong, "xyxy")
            unknown = scores is not None and np.isnan(scores).any()
            check.refuse(unknown, "scores", "a box has the score NaN; give a number")


def _check_corners(boxes: np.ndarray, check: Checks) -> None:
    """Boxes lie in the image, the upper left corner first."""
    outside = ~((boxes >= -1e-6) & (boxes <= 1 + 1e-6)).all(axis=1)
    turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    mend = "divide x by its width and y by its height, and clip to [0, 1]"
    for box in boxes[outside][:1].tolist():
        check.refuse(True, "xyxy", f"box {box} leaves the image; {mend}")
    mend = "give the upper left corner first: x1, y1, x2, y2"
    for box in boxes[turned][:1].tolist():
        check.refuse(True, "xyxy", f"box {box} is turned round; {mend}")


class Match(NamedTuple):
    """A predicted box and the true one it goes with."""

    predicted: int
    true: int
    iou: float


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every box (n, 4) with every box (m, 4): (n, m) float64.

    0 where both boxes have no area.
    """
    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    extent = np.clip(np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner, 0, None)
    shared = extent.prod(axis=2)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=1) for x in (a, b)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match(predicted: Boxes, true: Boxes) -> list[Match]:
    """Pair boxes so that the sum of their overlaps is greatest; pairs without overlap are left out.

    Where both sides have labels, only boxes of one label are paired.
    """
    from scipy.optimize import linear_sum_assignment

    overlap = iou(predicted.xyxy, true.xyxy)
    if predicted.labels and true.labels:
        overlap = overlap * (np.asarray(predicted.labels)[:, None] == np.asarray(true.labels))
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
    """Overlap and hits of boxes matched one to one within each image.

    Args:
        predictions: Per image the boxes given.
        references: Per image the boxes wanted.
        threshold: The overlap from which on a matched box is a hit.
        groups: Per image its study, which intervals resample; None takes images as independent.

    Returns:
        ``mean_IoU`` (over true boxes, 0 for one that is missed) and ``box_precision``,
        ``box_recall``, ``box_F1`` over all boxes; nan where there is nothing to divide by.

    Raises:
        InputError: If the counts differ.
    """
    _same(predictions, references)
    rows = []
    for said, true in zip(predictions, references, strict=True):
        overlaps = [m.iou for m in match(said, true)]
        hits = sum(o >= threshold for o in overlaps)
        rows.append([sum(overlaps), hits, len(said.xyxy), len(true.xyxy)])
    counts = np.array(rows, dtype=float).reshape(-1, 4)
    at = f"one-to-one, IoU >= {threshold}"
    parts: dict[str, tuple[Callable[[np.ndarray], float], str]] = {
        "mean_IoU": (lambda c: _share(c[0], c[3]), "one-to-one, mean over true boxes"),
        "box_precision": (lambda c: _share(c[1], c[2]), at),
        "box_recall": (lambda c: _share(c[1], c[3]), at),
        "box_F1": (lambda c: _share(2 * c[1], c[2] + c[3]), at),
    }
    return [ratio_score(name, counts, r, text, groups) for name, (r, text) in parts.items()]


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def average_precision(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    label: str,
    threshold: float = 0.5,
    points: Points = "coco",
) -> float:
    """Average precision of one label over all images, in [0, 1]; nan where the truth has none.

    Args:
        predictions: Per image the boxes given, best first where they have no scores.
        references: Per image the boxes wanted.
        label: The label; ``""`` where boxes have none.
        threshold: The overlap from which on a box is a hit.
        points: Precision averaged over every recall (``voc``) or over 101 of them (``coco``).

    Raises:
        InputError: If the counts differ.
    """
    _same(predictions, references)
    ranking = _ranking(predictions, references, label, (threshold,))
    return float(_precisions(ranking, np.ones((1, len(references))), points)[0, 0])


def detection_scores(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    groups: Sequence[str] | None = None,
) -> list[Score]:
    """Mean average precision over the labels that the truth holds.

    Boxes are matched as in COCO for all three: from the surest on, each takes the free true box of
    its label that it overlaps most; no more than 100 of a label in an image count.

    Args:
        predictions: Per image the boxes given.
        references: Per image the boxes wanted.
        groups: Per image its study, which intervals resample; None takes images as independent.

    Returns:
        ``mAP_50_VOC``, ``mAP_50`` and ``mAP_50_95``, in [0, 1]; nan where the truth has no box.

    Raises:
        InputError: If the counts differ.
    """
    _same(predictions, references)
    labels = sorted({name for boxes in references for name in _names(boxes)})
    draws = draw_weights(len(references), groups)
    kinds: dict[str, tuple[Points, tuple[float, ...], str]] = {
        "mAP_50_VOC": ("voc", (0.5,), "mAP, every recall, IoU 0.5"),
        "mAP_50": ("coco", (0.5,), "mAP, 101 recalls, IoU 0.5"),
        "mAP_50_95": ("coco", COCO_THRESHOLDS, "mAP, 101 recalls, IoU 0.5 to 0.95"),
    }
    scores = []
    for name, (points, thresholds, signature) in kinds.items():
        rankings = [_ranking(predictions, references, one, thresholds) for one in labels]
        statistic = _mean_over(rankings, points)
        scores.append(resampled_score(name, statistic, signature, groups, draws))
    return scores


def _same(predictions: Sequence[Boxes], references: Sequence[Boxes]) -> None:
    if len(predictions) != len(references):
        raise InputError(
            f"boxes of {len(predictions)} images for {len(references)}; give a `Boxes` for each, "
            "empty where there is none"
        )


def _names(boxes: Boxes) -> Sequence[str]:
    return boxes.labels or [""] * len(boxes.xyxy)


class _Ranking(NamedTuple):
    """Detections of one label from the surest on."""

    image: np.ndarray  # (d,) place of the image
    hit: np.ndarray  # (thresholds, d) bool
    wanted: np.ndarray  # (n,) true boxes in each image


def _ranking(
    predictions: Sequence[Boxes],
    references: Sequence[Boxes],
    label: str,
    thresholds: Sequence[float],
) -> _Ranking:
    image: list[int] = []
    scores: list[np.ndarray] = []
    hits = [np.zeros((len(thresholds), 0), dtype=bool)]
    wanted = np.zeros(len(references))
    for place, (said, true) in enumerate(zip(predictions, references, strict=True)):
        own = np.flatnonzero([name == label for name in _names(said)])
        there = np.flatnonzero([name == label for name in _names(true)])
        score = np.ones(len(own)) if said.scores is None else said.scores[own]
        best = np.argsort(-score, kind="stable")[:_MOST]
        overlap = iou(said.xyxy[own[best]], true.xyxy[there])
        hits.append(np.array([_hits(overlap, t) for t in thresholds]).reshape(len(thresholds), -1))
        scores.append(score[best])
        image += [place] * len(best)
        wanted[place] = len(there)
    order = np.argsort(-np.concatenate([np.zeros(0), *scores]), kind="stable")
    return _Ranking(np.array(image, dtype=int)[order], np.hstack(hits)[:, order], wanted)


def _hits(overlap: np.ndarray, threshold: float) -> list[bool]:
    """Whether each detection, surest first, finds a true box that is still free."""
    free = np.ones(overlap.shape[1], dtype=bool)
    found = []
    for row in overlap:
        open_to = np.where(free, row, -1.0)
        # Of equal overlaps COCO takes the last; an overlap of 1 always reaches the threshold.
        best = len(row) - 1 - int(open_to[::-1].argmax()) if len(row) else -1
        reached = best >= 0 and open_to[best] >= min(threshold, 1 - 1e-10)
        if reached:
            free[best] = False
        found.append(bool(reached))
    return found


def _precisions(ranking: _Ranking, weights: np.ndarray, points: Points) -> np.ndarray:
    """Average precision (r, thresholds) with images weighted by (r, n)."""
    drawn = weights[:, ranking.image]
    wanted = weights @ ranking.wanted
    said = drawn.cumsum(axis=1)
    found = np.full((len(weights), len(ranking.hit)), np.nan)
    defined = wanted > 0
    for column, hit in enumerate(ranking.hit):
        hits = (drawn * hit).cumsum(axis=1)
        precision = np.divide(hits, said, out=np.zeros_like(hits), where=said > 0)
        best_on = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = np.divide(hits, wanted[:, None], out=np.zeros_like(hits), where=defined[:, None])
        if points == "coco":
            reached = np.searchsorted(_RECALLS, recall, side="right") * (said > 0)
            steps = np.diff(reached, axis=1, prepend=0) / len(_RECALLS)
        else:
            steps = np.diff(recall, axis=1, prepend=0.0)
        found[defined, column] = (best_on * steps).sum(axis=1)[defined]
    return found


def _mean_over(rankings: Sequence[_Ranking], points: Points) -> Statistic:
    """Mean over labels and thresholds; a draw leaves out labels whose boxes it does not hold."""

    def statistic(weights: np.ndarray) -> np.ndarray:
        if not rankings:
            return np.full(len(weights), np.nan)
        values = np.hstack([_precisions(one, weights, points) for one in rankings])
        there = ~np.isnan(values)
        sums, n = np.where(there, values, 0.0).sum(axis=1), there.sum(axis=1)
        return np.divide(sums, n, out=np.full(len(weights), np.nan), where=n > 0)

    return statistic
