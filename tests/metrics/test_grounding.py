"""Box scores computed by hand, against torchvision's IoU and against COCO's evaluation."""

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
    """Noisy copies of reference boxes, with misses, duplicates, wrong labels, false positives."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for _ in range(n):
        expected = random_boxes(rng, int(rng.integers(0, 5)))
        names = rng.choice(LABELS, len(expected)).tolist()
        near = expected.repeat(rng.integers(0, 3, len(expected)), axis=0)
        near = near + rng.normal(0, 0.01, near.shape)
        predicted = np.clip(np.vstack([near, random_boxes(rng, 2)]), 0, 1)
        predicted[:, 2:] = np.maximum(predicted[:, :2], predicted[:, 2:])
        labels = rng.choice(LABELS, len(predicted)).tolist()
        for i, box in enumerate(predicted):  # mostly the label of the nearest reference box
            if len(expected) and rng.random() < 0.8:
                labels[i] = names[int(iou(box[None], expected).argmax())]
        base = 0.3 * (np.arange(len(predicted)) < len(near))
        scores = np.round(base + 0.7 * rng.random(len(predicted)), 1)  # with ties
        predictions.append(Boxes(predicted, labels, scores))
        references.append(Boxes(expected, names))
    return predictions, references


def test_iou_equals_torchvision():
    """Bit-identical on 40,000 pairs."""
    import torch
    from torchvision.ops import box_iou

    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 40), random_boxes(rng, 50)
    expected = box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    np.testing.assert_allclose(iou(a, b), expected, rtol=0, atol=1e-12)
    assert (expected > 0).mean() > 0.05


def test_iou_by_hand():
    """Intersection .25 x .5; areas .25 and .25: union .375. A point has no area."""
    a, b = np.array([[0, 0, 0.5, 0.5]]), np.array([[0.25, 0, 0.75, 0.5], [0.9, 0.9, 0.9, 0.9]])
    assert iou(a, b).tolist() == [[pytest.approx(0.125 / 0.375), 0]]
    assert iou(b[1:], b[1:]).tolist() == [[0]]
    assert iou(a, np.zeros((0, 4))).shape == (1, 0)


def test_matching_does_not_depend_on_the_order():
    """Greedy matching would pair the first box with the second reference and lose the other."""
    predictions = Boxes(np.array([[0, 0, 0.4, 0.4], [0.3, 0, 0.7, 0.4]]))
    references = Boxes(np.array([[0.05, 0, 0.45, 0.4], [0.5, 0, 0.9, 0.4], [0.9, 0.9, 1, 1]]))
    forward = match(predictions, references)
    assert [(m.prediction, m.reference) for m in forward] == [(0, 0), (1, 1)]
    backward = match(Boxes(predictions.xyxy[::-1]), references)
    assert [(1 - m.prediction, m.reference) for m in backward[::-1]] == [(0, 0), (1, 1)]
    assert forward[0].iou == pytest.approx(0.35 / 0.45)


def test_labels_must_match_if_both_sides_have_them():
    box = np.array([[0, 0, 0.5, 0.5]])
    assert not match(Boxes(box, ["edema"]), Boxes(box, ["nodule"]))
    assert match(Boxes(box, ["edema"]), Boxes(box)) == [(0, 0, 1.0)]
    assert match(Boxes(box, ["edema"]), Boxes(box, ["edema"])) == [(0, 0, 1.0)]


def test_grounding_scores_by_hand():
    """3 reference and 4 predicted boxes with overlaps 1, 1/3 and none; one hit at 0.5."""
    square = [0, 0, 0.5, 0.5]
    predictions = [
        Boxes([square, [0.6, 0.6, 0.7, 0.7]]),
        Boxes([[0.25, 0, 0.75, 0.5]]),
        Boxes([square]),
    ]
    references = [Boxes([square]), Boxes([square, [0.8, 0.8, 1, 1]]), Boxes([])]
    by_name = {s.name: s for s in grounding_scores(predictions, references)}
    assert by_name["mean_IoU"].value == pytest.approx((1 + 1 / 3) / 3)
    assert by_name["box_precision"].value == pytest.approx(1 / 4)
    assert by_name["box_recall"].value == pytest.approx(1 / 3)
    assert by_name["box_F1"].value == pytest.approx(2 / 7)
    assert by_name["box_F1"].n == 3
    loose = {s.name: s.value for s in grounding_scores(predictions, references, threshold=0.3)}
    assert loose["box_recall"] == pytest.approx(2 / 3)
    nothing = {s.name: s.value for s in grounding_scores([Boxes([])], [Boxes([])])}
    assert np.isnan(list(nothing.values())).all()


def test_average_precision_by_hand():
    """Hit, miss, hit of 2 reference boxes: precision 1 up to recall .5, then 2/3 up to 1."""
    a, b, far = [0, 0, 0.2, 0.2], [0.4, 0.4, 0.6, 0.6], [0.8, 0.8, 0.9, 0.9]
    predictions = [Boxes([a, far], scores=[0.9, 0.5]), Boxes([b], scores=[0.4])]
    references = [Boxes([a]), Boxes([b])]
    voc = average_precision(predictions, references, "", points="voc")
    assert voc == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(predictions, references, "") == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert np.isnan(average_precision(predictions, references, "edema"))


def test_a_reference_box_is_matched_once():
    a = [0, 0, 0.2, 0.2]
    twice = [Boxes([a, a, a], scores=[0.9, 0.8, 0.7])]
    assert average_precision(twice, [Boxes([a])], "") == 1  # duplicates come after full recall
    assert average_precision(twice, [Boxes([a, [0.5, 0.5, 1, 1]])], "", points="voc") == 0.5


def coco_precisions(predictions: list[Boxes], references: list[Boxes]):
    """COCO's evaluation of the same boxes."""
    pytest.importorskip("pycocotools", reason="pip install pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(boxes: list[Boxes]) -> list[dict]:
        annotations = []
        for index, image in enumerate(boxes):
            scores = np.ones(len(image.xyxy)) if image.scores is None else image.scores
            for (x1, y1, x2, y2), name, score in zip(image.xyxy, image.labels, scores, strict=True):
                box = [x1, y1, x2 - x1, y2 - y1]
                number = len(annotations) + 1
                annotations.append(
                    {"id": number, "image_id": index, "category_id": LABELS.index(name)}
                    | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score}
                )
        return annotations

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i} for i in range(len(references))],
            "annotations": rows(references),
            "categories": [{"id": i, "name": name} for i, name in enumerate(LABELS)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows(predictions)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval["precision"][..., 0, -1]  # (thresholds, 101, labels), 100 detections


@pytest.mark.parametrize("seed", range(3))
def test_average_precisions_equal_coco(seed):
    """Largest difference of 300 average precisions 1e-16.

    Scores have no ties, which COCO ranks by the order of images and boxes, and we as one step.
    """
    predictions, references = images(seed=seed)
    predictions = without_ties(predictions, seed)
    expected = coco_precisions(predictions, references)
    for column, label in enumerate(LABELS):
        for row, threshold in enumerate(COCO_THRESHOLDS):
            value = average_precision(predictions, references, label, threshold)
            assert value == pytest.approx(expected[row, :, column].mean(), abs=1e-6)
    by_name = {s.name: s.value for s in detection_scores(predictions, references)}
    assert by_name["mAP_50"] == pytest.approx(expected[0].mean(), abs=1e-6)
    assert by_name["mAP_50_95"] == pytest.approx(expected.mean(), abs=1e-6)
    assert 0.1 < by_name["mAP_50_95"] < by_name["mAP_50"] < 0.9
    assert by_name["mAP_50_VOC"] == pytest.approx(by_name["mAP_50"], abs=0.05)
    assert by_name["mAP_50_VOC"] != pytest.approx(by_name["mAP_50"], abs=1e-6)


def without_ties(predictions: list[Boxes], seed: int) -> list[Boxes]:
    rng = np.random.default_rng(seed)
    return [Boxes(b.xyxy, b.labels, b.scores + rng.random(len(b.xyxy)) / 50) for b in predictions]


def test_equal_scores_are_one_step_whatever_the_order():
    """COCO's value for one right and one wrong box is 1 or 0.5, by their order."""
    hit, miss = [0.0, 0.0, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]
    truth = [Boxes([hit], ["edema"])]
    for boxes in ([hit, miss], [miss, hit]):
        found = detection_scores([Boxes(boxes, ["edema"] * 2)], truth)
        assert [s.value for s in found] == pytest.approx([0.5] * 3)
    two = [Boxes([hit], ["edema"]), Boxes([miss], ["edema"])]
    truth = [Boxes([hit], ["edema"]), Boxes([hit], ["edema"])]
    values = [[s.value for s in detection_scores(answers, truth)] for answers in (two, two[::-1])]
    assert values[0] == pytest.approx(values[1]) and values[0][0] == pytest.approx(0.25)
    predictions, references = images()
    plain = [Boxes(b.xyxy, b.labels) for b in predictions]
    turned = [Boxes(b.xyxy[::-1], b.labels[::-1]) for b in predictions]
    names = ("mAP_50_VOC", "mAP_50", "mAP_50_95")
    first, second, last = (
        {s.name: s.value for s in detection_scores(p, r)}
        for p, r in ((plain, references), (turned, references), (plain[::-1], references[::-1]))
    )
    for name in names:
        assert first[name] == pytest.approx(second[name]) == pytest.approx(last[name])


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_intervals_equal_the_bootstrap(grouped):
    predictions, references = images(20)
    groups = [f"s{i // 2}" for i in range(20)] if grouped else None
    for score in detection_scores(predictions, references, groups)[:2]:
        expected = bootstrap(score.counts, score.ratio, groups)
        assert (score.low, score.high) == pytest.approx(expected, abs=1e-12)
        assert score.n == 20 and score.low < score.value < score.high


def test_weights_count_as_copies_of_an_image():
    rng = np.random.default_rng(1)
    predictions, references = images(12)
    score = detection_scores(predictions, references)[0]
    weights = np.bincount(rng.integers(0, 12, 12), minlength=12)
    rows = np.repeat(np.arange(12), weights)
    copied = detection_scores([predictions[i] for i in rows], [references[i] for i in rows])[0]
    assert score.ratio(weights) == pytest.approx(copied.value, abs=1e-9)


def test_images_without_boxes():
    scores = detection_scores([Boxes([[0, 0, 1, 1]], ["edema"])], [Boxes([])])
    assert all(np.isnan(s.value) and np.isnan(s.low) for s in scores)
    assert all(np.isnan(s.value) for s in detection_scores([], []))
    scores = detection_scores([Boxes([])], [Boxes([[0, 0, 1, 1]])])
    assert [s.value for s in scores] == [0, 0, 0]


def test_invalid_inputs_raise():
    with pytest.raises(InputError, match="is not inside the image; divide x by its width"):
        Boxes([[10, 10, 200, 200]])
    with pytest.raises(InputError, match="is not inside the image"):
        Boxes([[0, np.nan, 1, 1]])
    with pytest.raises(InputError, match="corners swapped"):
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
