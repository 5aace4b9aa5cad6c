"""Fusion of the boxes that several readers drew: weighted boxes fusion (Solovyev et al. 2021).

R. Solovyev, W. Wang, T. Gabruseva: Weighted boxes fusion: Ensembling boxes from different object
detection models. Image and Vision Computing 107 (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xraygpt.common.errors import InputError
from xraygpt.media.geometry import Box


@dataclass(frozen=True, slots=True)
class FusedBox:
    """A box that stands for those of one or more readers.

    Attributes:
        box: Mean of the boxes, weighted by their scores.
        score: Mean of their scores, times the share of readers: boxes divided by readers, at most
            1.
        members: Positions of the boxes in the input.
    """

    box: Box
    score: float
    members: tuple[int, ...]


def fuse_boxes(
    boxes: Sequence[Box],
    scores: Sequence[float] | None = None,
    *,
    readers: int | None = None,
    threshold: float = 0.55,
) -> list[FusedBox]:
    """Fuse overlapping boxes of one finding on one image.

    Boxes are taken by decreasing score. Each joins the cluster whose mean overlaps it most, if
    their intersection over union exceeds the threshold; otherwise it starts a cluster. Of boxes
    with equal scores, the last is taken first, and of clusters with equal overlap, the first.

    Args:
        boxes: Boxes of all readers, normalised to the image.
        scores: The score of each box, above 0; None treats all as equally certain.
        readers: Number of readers; None uses the number of boxes.
        threshold: Intersection over union above which boxes are fused, in [0, 1).

    Returns:
        The fused boxes by decreasing score.

    Raises:
        InputError: The numbers of boxes and scores differ, or a score is not above 0.
    """
    weights = [1.0] * len(boxes) if scores is None else [float(s) for s in scores]
    if len(weights) != len(boxes) or not all(w > 0 for w in weights):
        raise InputError("expected one score above 0 for each box")
    order = sorted(range(len(boxes)), key=lambda i: (weights[i], i), reverse=True)
    means: list[Box] = []
    clusters: list[list[int]] = []
    for i in order:
        best = _most_overlapping(means, boxes[i], threshold)
        if best < 0:
            means.append(boxes[i])
            clusters.append([i])
        else:
            clusters[best].append(i)
            means[best] = _mean([boxes[j] for j in clusters[best]], weights, clusters[best])
    total = readers or len(boxes)
    fused = [
        FusedBox(mean, sum(weights[j] for j in c) / len(c) * min(total, len(c)) / total, tuple(c))
        for mean, c in zip(means, clusters, strict=True)
    ]
    return sorted(fused, key=lambda each: -each.score)


def _most_overlapping(means: Sequence[Box], box: Box, threshold: float) -> int:
    """Return the cluster with the largest overlap above `threshold`, or -1."""
    best, largest = -1, threshold
    x0, y0, x1, y1 = box
    area = (x1 - x0) * (y1 - y0)
    for index, (a0, b0, a1, b1) in enumerate(means):
        width = (x1 if x1 < a1 else a1) - (x0 if x0 > a0 else a0)
        height = (y1 if y1 < b1 else b1) - (y0 if y0 > b0 else b0)
        if width <= 0 or height <= 0:
            continue
        shared = width * height
        overlap = shared / ((a1 - a0) * (b1 - b0) + area - shared)
        if overlap > largest:
            best, largest = index, overlap
    return best


def _mean(boxes: Sequence[Box], weights: Sequence[float], members: Sequence[int]) -> Box:
    total = sum(weights[i] for i in members)
    x0 = y0 = x1 = y1 = 0.0
    for box, i in zip(boxes, members, strict=True):
        weight = weights[i]
        x0, y0 = x0 + weight * box[0], y0 + weight * box[1]
        x1, y1 = x1 + weight * box[2], y1 + weight * box[3]
    return x0 / total, y0 / total, x1 / total, y1 / total
