"""Boxes by hand, against torchvision's overlap and against COCO's evaluation."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest

from xraygpt.common.errors import InputError
from xraygpt.metrics.grounding import (
    COCO_THRESHOLDS,
    Boxes,
    average_precision,
    detection_scores,
    grounding_scores,
    iou,
    match,
)
from xraygpt.metrics.statistics import bootstrap

LABELS = ["effusion", "edema", "nodule"]


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.random((n, 2)) * 0.7
    return np.hstack([corner, corner + 0.02 + rng.random((n, 2)) * 0.28])


def images(n: int = 40, seed: int = 0) -> tuple[list[Boxes], list[Boxes]]:
    """True boxes and detections near them, with misses, doubles, wrong labels and inventions."""
    rng = np.random.default_rng(seed)
    said, true = [], []
    for _ in range(n):
        wanted = random_boxes(rng, int(rng.integers(0, 5)))
        names = rng.choice(LABELS, len(wanted)).tolist()
        near = wanted.repeat(rng.integers(0, 3, len(wanted)), axis=0)
        near = near + rng.normal(0, 0.01, near.shape)
        given = np.clip(np.vstack([near, random_boxes(rng, 2)]), 0, 1)
        given[:, 2:] = np.maximum(given[:, :2], given[:, 2:])
        labels = rng.choice(LABELS, len(given)).tolist()
        for i, box in enumerate(given):  # mostly the label of the nearest true box
            if len(wanted) and rng.random() < 0.8:
                labels[i] = names[int(iou(box[None], wanted).argmax())]
        sure = 0.3 * (np.arange(len(given)) < len(near))
        scores = np.round(sure + 0.7 * rng.random(len(given)), 1)  # with ties
        said.append(Boxes(given, labels, scores))
        true.append(Boxes(wanted, names))
    return said, true


def test_iou_is_torchvisions():
    """Equal to the last bit on 40,000 pairs."""
    import torch
    from torchvision.ops import box_iou

    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 40), random_boxes(rng, 50)
    expected = box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(iou(a, b), expected, rtol=0, atol=1e-12)
    assert (expected > 0).mean() > 0.05


def test_iou_by_hand():
    """Shared .25 x .5; areas .25 and .25: union .375. A point has no area."""
    one, two = np.array([[0, 0, 0.5, 0.5]]), np.array([[0.25, 0, 0.75, 0.5], [0.9, 0.9, 0.9, 0.9]])
    assert iou(one, two).tolist() == [[pytest.approx(0.125 / 0.375), 0]]
    assert iou(two[1:], two[1:]).tolist() == [[0]]
    assert iou(one, np.zeros((0, 4))).shape == (1, 0)


def test_matching_does_not_mind_the_order():
    """Greedy by the first box would pair it with the second true box and leave 0 to the other."""
    said = Boxes(np.array([[0, 0, 0.4, 0.4], [0.3, 0, 0.7, 0.4]]))
    true = Boxes(np.array([[0.05, 0, 0.45, 0.4], [0.5, 0, 0.9, 0.4], [0.9, 0.9, 1, 1]]))
    there = match(said, true)
    assert [(m.predicted, m.true) for m in there] == [(0, 0), (1, 1)]
    back = match(Boxes(said.xyxy[::-1]), true)
    assert [(1 - m.predicted, m.true) for m in back[::-1]] == [(0, 0), (1, 1)]
    assert there[0].iou == pytest.approx(0.35 / 0.45)


def test_labels_are_respected_where_both_sides_have_them():
    box = np.array([[0, 0, 0.5, 0.5]])
    assert not match(Boxes(box, ["edema"]), Boxes(box, ["nodule"]))
    assert match(Boxes(box, ["edema"]), Boxes(box)) == [(0, 0, 1.0)]
    assert match(Boxes(box, ["edema"]), Boxes(box, ["edema"])) == [(0, 0, 1.0)]


def test_grounding_scores_by_hand():
    """Overlaps 1, 1/3 and none of 3 true boxes and 4 predicted ones; hits at .5: one."""
    square = [0, 0, 0.5, 0.5]
    said = [Boxes([square, [0.6, 0.6, 0.7, 0.7]]), Boxes([[0.25, 0, 0.75, 0.5]]), Boxes([square])]
    true = [Boxes([square]), Boxes([square, [0.8, 0.8, 1, 1]]), Boxes([])]
    by = {s.name: s for s in grounding_scores(said, true)}
    assert by["mean_IoU"].value == pytest.approx((1 + 1 / 3) / 3)
    assert by["box_precision"].value == pytest.approx(1 / 4)
    assert by["box_recall"].value == pytest.approx(1 / 3)
    assert by["box_F1"].value == pytest.approx(2 / 7)
    assert by["box_F1"].n == 3
    looser = {s.name: s.value for s in grounding_scores(said, true, threshold=0.3)}
    assert looser["box_recall"] == pytest.approx(2 / 3)
    nothing = {s.name: s.value for s in grounding_scores([Boxes([])], [Boxes([])])}
    assert np.isnan(list(nothing.values())).all()


def test_average_precision_by_hand():
    """Hit, miss, hit of 2 true boxes: precision 1 up to recall .5, then 2/3 up to 1."""
    a, b, far = [0, 0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6], [0.8, 0.8, 0.9, 0.9]
    said = [Boxes([a, far], scores=[0.9, 0.5]), Boxes([b], scores=[0.4])]
    true = [Boxes([a]), Boxes([b])]
    assert average_precision(said, true, "", points="voc") == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(said, true, "") == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert np.isnan(average_precision(said, true, "edema"))


def test_a_true_box_is_found_once():
    a = [0, 0, 0.2, 0.2]
    twice = [Boxes([a, a, a], scores=[0.9, 0.8, 0.7])]
    assert average_precision(twice, [Boxes([a])], "") == 1  # doubles come after full recall
    assert average_precision(twice, [Boxes([a, [0.5, 0.5, 1, 1]])], "", points="voc") == 0.5


def coco(said: list[Boxes], true: list[Boxes]):
    """COCO's own evaluation of the same boxes."""
    pytest.importorskip("pycocotools", reason="pip install pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(boxes: list[Boxes]) -> list[dict]:
        found = []
        for image, one in enumerate(boxes):
            scores = np.ones(len(one.xyxy)) if one.scores is None else one.scores
            for (x1, y1, x2, y2), name, score in zip(one.xyxy, one.labels, scores, strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                found.append(
                    {"id": len(found) + 1, "image_id": image, "category_id": LABELS.index(name)}
                    | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
                )
        return found

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(true))],
            "annotations": rows(true),
            "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(said)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, -1]  # (thresholds, 101, labels), 100 detections


@pytest.mark.parametrize("seed", range(3))
def test_as_coco(seed):
    """Worst of 300 average precisions 1e-16."""
    said, true = images(seed=seed)
    expected = coco(said, true)
    for column, label in enumerate(LABELS):
        for row, threshold in enumerate(COCO_THRESHOLDS):
            ours = average_precision(said, true, label, threshold)
            assert ours == pytest.approx(expected[row, :, column].mean(), abs=1e-6)
    by = {s.name: s.value for s in detection_scores(said, true)}
    assert by["mAP_50"] == pytest.approx(expected[0].mean(), abs=1e-6)
    assert by["mAP_50_95"] == pytest.approx(expected.mean(), abs=1e-6)
    assert 0.1 < by["mAP_50_95"] < by["mAP_50"] < 0.9
    assert by["mAP_50_VOC"] == pytest.approx(by["mAP_50"], abs=0.05)
    assert by["mAP_50_VOC"] != pytest.approx(by["mAP_50"], abs=1e-6)


def test_scores_may_be_absent():
    said, true = images()
    plain = [Boxes(b.xyxy, b.labels) for b in said]
    expected = coco(plain, true)
    by = {s.name: s.value for s in detection_scores(plain, true)}
    assert by["mAP_50"] == pytest.approx(expected[0].mean(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_are_those_of_the_house(grouped):
    said, true = images(20)
    groups = [f"s{i // 2}" for i in range(20)] if grouped else None
    for score in detection_scores(said, true, groups)[:2]:
        expected = bootstrap(score.counts, score.ratio, groups)
        assert (score.low, score.high) == pytest.approx(expected, abs=1e-12)
        assert score.n == 20 and score.low < score.value < score.high


def test_a_drawn_image_counts_as_often_as_it_is_drawn():
    """Without ties between boxes, whose copies would come in another order."""
    rng = np.random.default_rng(1)
    said, true = images(12)
    said = [Boxes(b.xyxy, b.labels, rng.random(len(b.xyxy))) for b in said]
    score = detection_scores(said, true)[0]
    drawn = np.bincount(rng.integers(0, 12, 12), minlength=12)
    rows = np.repeat(np.arange(12), drawn)
    again = detection_scores([said[i] for i in rows], [true[i] for i in rows])[0]
    assert score.ratio(drawn) == pytest.approx(again.value, abs=1e-9)


def test_nothing_to_find():
    by = detection_scores([Boxes([[0, 0, 1, 1]], ["edema"])], [Boxes([])])
    assert all(np.isnan(s.value) and np.isnan(s.low) for s in by)
    assert all(np.isnan(s.value) for s in detection_scores([], []))
    none = detection_scores([Boxes([])], [Boxes([[0, 0, 1, 1]])])
    assert [s.value for s in none] == [0, 0, 0]


def test_mistakes_are_named():
    with pytest.raises(InputError, match="leaves the image; divide x by its width"):
        Boxes([[10, 10, 200, 200]])
    with pytest.raises(InputError, match="leaves the image"):
        Boxes([[0, np.nan, 1, 1]])
    with pytest.raises(InputError, match="turned round"):
        Boxes([[0.5, 0, 0.2, 1]])
    with pytest.raises(InputError, match=r"shape \(2, 2\)"):
        Boxes([[0, 0], [1, 1]])
    with pytest.raises(InputError, match="1 labels for 2 boxes"):
        Boxes([[0, 0, 1, 1], [0, 0, 1, 1]], ["edema"])
    with pytest.raises(InputError, match="2 scores for 1 boxes"):
        Boxes([[0, 0, 1, 1]], scores=[1, 2])
    with pytest.raises(InputError, match="score NaN"):
        Boxes([[0, 0, 1, 1]], scores=[np.nan])
    with pytest.raises(InputError, match="boxes of 1 images for 0"):
        grounding_scores([Boxes([])], [])
