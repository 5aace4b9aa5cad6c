"""Weighted boxes fusion, against stored results of ensemble-boxes 1.0.9 on made-up boxes."""

from __future__ import annotations

import pytest

from xraygpt.boxes.fusion import fuse_boxes
from xraygpt.common.errors import InputError

A, B, C = (0.1, 0.1, 0.4, 0.4), (0.12, 0.1, 0.44, 0.42), (0.6, 0.6, 0.9, 0.8)
# Threshold, boxes, scores, fused boxes, fused scores.
CASES = [
    (
        0.1,
        [(0.689, 0.647, 0.959, 0.836), (0.354, 0.344, 0.514, 0.422), (0.238, 0.295, 0.398, 0.452)],
        None,
        [(0.296, 0.3195, 0.456, 0.437), (0.689, 0.647, 0.959, 0.836)],
        [0.6666667, 0.3333333],
    ),
    (
        0.1,
        [
            (0.222, 0.255, 0.387, 0.471),
            (0.596, 0.648, 0.738, 0.816),
            (0.241, 0.376, 0.362, 0.569),
            (0.36, 0.266, 0.633, 0.423),
            (0.249, 0.375, 0.401, 0.599),
            (0.618, 0.578, 0.764, 0.671),
            (0.273, 0.351, 0.487, 0.516),
        ],
        None,
        [
            (0.24625, 0.33925, 0.40925, 0.53875),
            (0.596, 0.648, 0.738, 0.816),
            (0.36, 0.266, 0.633, 0.423),
            (0.618, 0.578, 0.764, 0.671),
        ],
        [0.5714286, 0.1428571, 0.1428571, 0.1428571],
    ),
    (
        0.4,
        [
            (0.581, 0.577, 0.75, 0.758),
            (0.297, 0.333, 0.426, 0.559),
            (0.372, 0.277, 0.557, 0.435),
            (0.629, 0.613, 0.75, 0.69),
            (0.32, 0.373, 0.459, 0.482),
            (0.625, 0.577, 0.829, 0.771),
            (0.314, 0.345, 0.493, 0.462),
            (0.721, 0.535, 0.896, 0.702),
            (0.274, 0.368, 0.482, 0.488),
        ],
        [0.453, 0.342, 0.263, 0.319, 0.751, 0.997, 0.329, 0.239, 0.989],
        [
            (0.2970493, 0.3614542, 0.4683932, 0.4926545),
            (0.6112538, 0.577, 0.8043193, 0.7669386),
            (0.629, 0.613, 0.75, 0.69),
            (0.372, 0.277, 0.557, 0.435),
            (0.721, 0.535, 0.896, 0.702),
        ],
        [0.2678889, 0.1611111, 0.0354444, 0.0292222, 0.0265556],
    ),
    (
        0.55,
        [
            (0.575, 0.638, 0.75, 0.749),
            (0.593, 0.677, 0.815, 0.875),
            (0.704, 0.541, 0.941, 0.763),
            (0.587, 0.59, 0.731, 0.795),
            (0.593, 0.668, 0.812, 0.765),
        ],
        [0.618, 0.968, 0.751, 0.454, 0.419],
        [
            (0.593, 0.677, 0.815, 0.875),
            (0.704, 0.541, 0.941, 0.763),
            (0.575, 0.638, 0.75, 0.749),
            (0.587, 0.59, 0.731, 0.795),
            (0.593, 0.668, 0.812, 0.765),
        ],
        [0.1936, 0.1502, 0.1236, 0.0908, 0.0838],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=["3", "7", "9 with scores", "5 with scores"])
def test_fusion_equals_ensemble_boxes(case):
    threshold, boxes, scores, expected, expected_scores = case
    fused = fuse_boxes(boxes, scores, threshold=threshold)
    assert [each.score for each in fused] == pytest.approx(expected_scores, abs=1e-6)
    found = sorted(tuple(round(v, 6) for v in each.box) for each in fused)
    wanted = sorted(tuple(round(v, 6) for v in box) for box in expected)
    assert found == [pytest.approx(box, abs=2e-6) for box in wanted]


def test_overlapping_boxes_become_their_mean_and_others_stay():
    fused = fuse_boxes([A, B, C], readers=3, threshold=0.1)
    assert [each.members for each in fused] == [(1, 0), (2,)]
    assert fused[0].box == pytest.approx((0.11, 0.1, 0.42, 0.41))
    assert [each.score for each in fused] == pytest.approx([2 / 3, 1 / 3])
    assert len(fuse_boxes([A, B, C], threshold=0.95)) == 3


def test_scores_weigh_the_boxes():
    (fused,) = fuse_boxes([A, B], [1.0, 3.0], threshold=0.1)
    assert fused.box == pytest.approx((0.115, 0.1, 0.43, 0.415))
    assert fused.score == pytest.approx(2.0)


def test_one_box_none_and_bad_scores():
    assert fuse_boxes([]) == []
    assert fuse_boxes([A], readers=3)[0] == (A, pytest.approx(1 / 3), (0,))
    for scores in ([1.0], [1.0, 0.0], [1.0, -1.0]):
        with pytest.raises(InputError, match="one score above 0 for each box"):
            fuse_boxes([A, B], scores)
