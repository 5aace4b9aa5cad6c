"""Scores of boxes take the values worked out by hand, in any order of the boxes."""

from __future__ import annotations

import numpy as np
import pytest

from xraygpt.metrics.box_answers import box_answer_scores
from xraygpt.metrics.grounding import Boxes

LEFT, RIGHT = [0.1, 0.2, 0.4, 0.6], [0.6, 0.2, 0.9, 0.6]
NONE = Boxes(np.zeros((0, 4)))


def scores(predictions, references, **options) -> dict[str, float]:
    return {s.name: s.value for s in box_answer_scores(predictions, references, **options)}


def boxes(*xyxy, labels=(), confidence=None) -> Boxes:
    return Boxes(np.array(xyxy), labels, None if confidence is None else np.array(confidence))


def test_a_shifted_box_counts_at_the_thresholds_it_reaches():
    shifted = [0.15, 0.2, 0.45, 0.6]  # overlap 0.25 / 0.35
    found = scores([boxes(shifted)], [boxes(LEFT)], by_label=False)
    overlap = 0.25 / 0.35
    assert found["mean_IoU"] == pytest.approx(overlap) == pytest.approx(found["soft_F1"])
    assert [found[n] for n in ("box_F1@0.3", "box_F1", "box_F1@0.75")] == [1, 1, 0]


def test_soft_f1_pays_for_boxes_too_many():
    found = scores([boxes(LEFT, RIGHT)], [boxes(LEFT)], by_label=False)
    assert found["soft_F1"] == pytest.approx(2 / 3) and found["mean_IoU"] == 1


def test_questions_about_something_absent_count():
    found = scores([NONE, boxes(LEFT), boxes(LEFT), NONE], [NONE, NONE, boxes(LEFT), boxes(LEFT)],
                   by_label=False)  # fmt: skip
    assert found["absent_without_box"] == 0.5 and found["answered"] == 0.5
    assert found["box_precision"] == 0.5, "the box on something absent is a false one"


def test_boxes_on_the_other_half_of_the_image_are_counted():
    middle = [0.4, 0.2, 0.62, 0.6]
    found = scores(
        [boxes(RIGHT), boxes(LEFT), boxes(middle), boxes(LEFT)],
        [boxes(LEFT), boxes(LEFT), boxes(LEFT), boxes(LEFT, RIGHT)],
        by_label=False,
    )
    assert found["wrong_side"] == 0.5, "of two boxes with a side, where the truth has one"


def test_average_precision_ranks_by_probability():
    truth = [boxes(LEFT, labels=["a"]), boxes(LEFT, labels=["a"])]
    right_first = [boxes(LEFT, labels=["a"], confidence=[0.9]),
                   boxes(RIGHT, labels=["a"], confidence=[0.2])]  # fmt: skip
    wrong_first = [boxes(LEFT, labels=["a"], confidence=[0.2]),
                   boxes(RIGHT, labels=["a"], confidence=[0.9])]  # fmt: skip
    assert scores(right_first, truth)["mAP_50_VOC"] == pytest.approx(0.5)
    assert scores(wrong_first, truth)["mAP_50_VOC"] == pytest.approx(0.25)
