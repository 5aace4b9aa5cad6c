"""Fusion of the boxes that several readers drew: weighted boxes fusion (Solovyev et al. 2021).

R. Solovyev, W. Wang, T. Gabruseva: Weighted boxes fusion: Ensembling boxes from different object
detection models. Image and Vision Computing 107 (2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from xraygpt.common.errors import InputError
from xraygpt.media.geometry import Box


class FusedBox(NamedTuple):
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
    count = len(boxes)
    weights = [1.0] * count if scores is None else [float(s) for s in scores]
    if len(weights) != count or not all(w > 0 for w in weights):
        raise InputError("expected one score above 0 for each box")
    total = readers or count
    if count == 1:
        return [FusedBox(boxes[0], weights[0] / total, (0,))]
    order = range(count - 1, -1, -1)
    if scores is not None:
        order = sorted(order, key=weights.__getitem__, reverse=True)  # type: ignore[assignment]
    means: list[Box] = []
    clusters: list[list[int]] = []
    for i in order:
        best = _most_overlapping(means, boxes[i], threshold) if means else -1
        if best < 0:
            means.append(boxes[i])
            clusters.append([i])
        else:
            clusters[best].append(i)
            means[best] = _mean(boxes, weights, clusters[best])
    fused = [
        FusedBox(mean, sum(weights[j] for j in c) / len(c) * min(total, len(c)) / total, tuple(c))
        for mean, c in zip(means, clusters, strict=True)
    ]
    fused.sort(key=lambda each: -each.score)
    return fused


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
    total = x0 = y0 = x1 = y1 = 0.0
    for i in members:
        weight, (a0, b0, a1, b1) = weights[i], boxes[i]
        total += weight
        x0 += weight * a0
        y0 += weight * b0
        x1 += weight * a1
        y1 += weight * b1
    return x0 / total, y0 / total, x1 / total, y1 / total
