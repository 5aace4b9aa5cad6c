"""Tasks whose answers are boxes: reading, naming, probabilities, and scores of known answers."""

from __future__ import annotations

from random import Random
from typing import ClassVar

import numpy as np
import pytest
import torch

from tests.models.stock_vlm.conftest import tiny  # noqa: F401
from tests.models.stock_vlm.stock_batches import build, our_batch, samples
from tests.tasks.phantom_answers import pointing, predict
from xraygpt.common.errors import InputError
from xraygpt.media.geometry import MIRRORED
from xraygpt.models.base import Pointed
from xraygpt.phantom.grounded import GroundedRecipe, draw_grounded
from xraygpt.tasks.boxes import AbnormalityDetection, PhraseGrounding, RegionGrounding, names_in
from xraygpt.tasks.confidence import token_probabilities

BOX, OTHER = (0.1, 0.2, 0.3, 0.4), (0.55, 0.2, 0.75, 0.4)


def task(kind=RegionGrounding, **settings):
    return kind.Config(**settings).build()


def scores(kind, predictions, **settings) -> dict[str, float]:
    return {s.name: s.value for s in task(kind, **settings).score(predictions)}


class Fixed:
    """A model whose answers are given, and that has no probabilities."""

    unsupported: ClassVar = {"loss": "made up"}

    def __init__(self, *answers: Pointed) -> None:
        self.answers = list(answers)

    def point(self, batch, generation):
        return self.answers

    def box_spelling(self, corpus):
        return corpus


def prompts(count: int) -> dict:
    return {"sample_id": [f"s{i}" for i in range(count)], "runs": [], "originals": []}


def test_boxes_are_read_from_texts_or_taken_from_the_model():
    model = Fixed(
        Pointed("At [100, 200, 300, 400]."), Pointed("In the middle.", [OTHER]),
        Pointed("At [0.1, 0.2, 0.3., 0.4]"), Pointed("It is not seen."),
    )  # fmt: skip
    first, second, repaired, absent = task().predict(model, prompts(4))
    assert first.payload["boxes"] == [{"label": "", "box": pytest.approx(list(BOX))}]
    assert second.payload["boxes"] == [{"label": "", "box": list(OTHER)}]
    assert repaired.payload["boxes"][0]["box"] == pytest.approx(list(BOX))
    assert "malformed number repaired" in repaired.payload["note"], "RadVLM's code stops here"
    assert absent.payload["boxes"] == []


def test_answers_of_a_control_are_read_from_their_text():
    prediction = pointing("a", "left lung", [BOX], [BOX])
    assert prediction.payload == {} and scores(RegionGrounding, [prediction])["mean_IoU"] == 1


def test_detection_names_boxes_by_the_words_before_them():
    kind = task(AbnormalityDetection)
    text = (
        "I see cardiomegaly [100, 200, 300, 400]; a nodule or mass [550, 200, 750, 400] and "
        "[500, 500, 600, 600]; pleural thickening and ILD [1, 2, 30, 40]."
    )
    answer = kind.predict(Fixed(Pointed(text)), prompts(1))[0]
    labels = ["Cardiomegaly", "Nodule/Mass", "Pleural thickening", "ILD"]
    truth = [{"label": label, "box": list(BOX)} for label in labels]
    prediction = predict("a", text, payload=answer.payload, boxes=truth)
    kind.score([prediction])
    found = [(box["label"], box["box"][0]) for box in kind.predicted(prediction)]
    assert found == [
        ("Cardiomegaly", 0.1), ("Nodule/Mass", 0.55), ("Nodule/Mass", 0.5),
        ("Pleural thickening", 0.001), ("ILD", 0.001),
    ]  # fmt: skip
    assert names_in("interstitial lung disease", {"interstitial lung disease": "ILD"}) == ["ILD"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cardiomegaly [1, 2, 30, 40]; lung mass [5, 6, 70, 80]", ["Cardiomegaly", "lung mass"]),
        ("No ILD. Cardiomegaly [1, 2, 30, 40]", ["Cardiomegaly"]),
        ("No ILD, cardiomegaly [1, 2, 30, 40]", ["Cardiomegaly"]),
        ('{"bbox_2d": [1, 2, 30, 40], "label": "ILD"}, {"bbox_2d": [5, 6, 70, 80], "label": "x"}',
         ["ILD", "x"]),
        ("Findings: ILD: [1, 2, 30, 40] [5, 6, 70, 80]", ["ILD", "ILD"]),
    ],
)  # fmt: skip
def test_a_box_has_the_finding_of_its_own_words(text, expected):
    truth = [{"label": label, "box": list(BOX)} for label in ("Cardiomegaly", "ILD")]
    kind = task(AbnormalityDetection)
    payload = kind.predict(Fixed(Pointed(text)), prompts(1))[0].payload
    prediction = predict("a", text, payload=payload, boxes=truth)
    kind.score([prediction])
    assert [box["label"] for box in kind.predicted(prediction)] == expected


def test_boxes_are_read_as_the_task_the_model_or_the_corpus_writes_them():
    class Percent(Fixed):
        def box_spelling(self, corpus):
            return "percent"

    answer = Pointed("At [10, 20, 30, 40].")
    meta = {"meta": [{"spelling": "percent"}]}
    for kind, model, batch in (
        (task(), Fixed(answer), prompts(1) | meta),
        (task(boxes="percent"), Fixed(answer), prompts(1)),
        (task(boxes="thousand"), Percent(answer), prompts(1)),
    ):
        (found,) = kind.predict(model, batch)
        assert found.payload["boxes"][0]["box"] == pytest.approx(list(BOX))
        assert found.payload["spelling"] == "percent"


def test_boxes_in_pixels_are_read_also_without_the_image():
    (found,) = task(boxes="pixels").predict(
        Fixed(Pointed("At [56, 56, 168, 112].")),
        prompts(1) | {"meta": [{"image_size": [280, 560]}]},
    )
    assert found.payload["boxes"][0]["box"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert found.payload["image_size"] == [280, 560]


def test_radvlms_scores_use_the_boxes_of_a_model_that_returns_them():
    payload = {"boxes": [{"label": "", "box": list(BOX)}]}
    truth = [{"label": "left lung", "box": list(BOX)}]
    prediction = predict(
        "a", "In the middle.", payload=payload, boxes=truth, spelling="unit", phrase="left lung"
    )
    found = scores(RegionGrounding, [prediction])
    assert found["mean_IoU"] == found["radvlm_mAP_50"] == 1


def test_a_label_that_the_corpus_does_not_have_matches_nothing():
    prediction = predict(
        "a", "A made-up thing [100, 200, 300, 400].", boxes=[{"label": "ILD", "box": list(BOX)}]
    )
    found = scores(AbnormalityDetection, [prediction])
    assert found["mean_IoU"] == 0 and found["box_precision"] == 0


def test_predictions_without_true_boxes_are_refused_with_the_builder():
    with pytest.raises(InputError, match=r"a has no true boxes .* builder instructions"):
        task().score([predict("a", "text")])


def test_the_page_shows_both_boxes_and_their_overlap():
    prediction = pointing("a", "left lung", [BOX], [OTHER])
    shown = task().display(prediction)
    assert [box["box"] for box in shown.reference_boxes] == [list(BOX)]
    assert shown.boxes[0]["label"] == "left lung" and "(IoU): 0.00" in shown.notes[0]
    unknown = predict("a", "At [100, 200, 300, 400].")
    assert len(task().display(unknown).boxes) == 1, "an image of which nothing is known"
    assert task(AbnormalityDetection).display(unknown).boxes[0]["label"] == "At"
    compared = task().compare(prediction)
    assert (compared.agreed, compared.missed, compared.added) == ([], ["left lung"], ["left lung"])


def test_radvlms_scores_see_the_same_boxes_in_any_spelling():
    for spelling in ("thousand", "unit"):
        text = "[100, 200, 300, 400]" if spelling == "thousand" else "[0.10, 0.20, 0.30, 0.40]"
        prediction = predict("a", text, boxes=[{"label": "", "box": list(BOX)}])
        assert scores(PhraseGrounding, [prediction], boxes=spelling)["radvlm_mAP_50"] == 1


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_onevision"])
def test_token_probabilities_are_those_of_the_loss(tiny, family):  # noqa: F811
    """The product over an answer's tokens is the exponential of minus its loss."""
    model = build(tiny(family)).eval()
    chosen = [samples()["one"], samples()["one"]]
    texts = ["yes no", "left lung 12 34"]
    batch = our_batch(model, chosen, prompt=True)
    found = token_probabilities(model, batch, texts)
    for row, text in enumerate(texts):
        alone = our_batch(model, chosen[:1], prompt=True)
        ids = model.renderer.answer_ids(text)
        answer = torch.tensor([ids])
        ignored = torch.full_like(alone["input_ids"], -100)
        with torch.no_grad():
            loss = model({
                **alone,
                "input_ids": torch.cat([alone["input_ids"], answer], 1),
                "labels": torch.cat([ignored, answer], 1),
                "attention_mask": torch.cat([alone["attention_mask"], torch.ones_like(answer)], 1),
            }).loss  # fmt: skip
        assert sum(found[row].logs) == pytest.approx(-float(loss), abs=1e-3)
        assert found[row].ends[-1] == len(text)
        assert 0 < found[row].of(0, len(text)) < 1 and found[row].of(99, 100) == 0


# ---- Answers whose scores are known beforehand ---------------------------------------------------


@pytest.fixture(scope="module")
def phantoms():
    """Questions about regions and findings of 300 SYNTHETIC phantoms: (image, name, boxes)."""
    recipe, rows = GroundedRecipe(studies=300, seed=11, size=32), []
    for number in range(300):
        study, _, _ = recipe.build_study(number)
        rng = Random(number)
        image = draw_grounded(study, 32, recipe.sample_view(rng), rng)
        names = sorted(image.regions)
        rows.append(
            (number, names[number % len(names)], [image.regions[names[number % len(names)]]])
        )
        rows += [(number, name, found) for name, found in image.findings.items()]
    return rows


def answered(rows, answer) -> dict[str, float]:
    """Scores of answers, which are a function of the row; written in thousandths."""
    return scores(
        RegionGrounding,
        [pointing(f"{i}/{name}", name, boxes, answer(i, name, boxes)) for i, name, boxes in rows],
    )


@pytest.mark.slow
def test_perfect_empty_and_mirrored_answers_take_the_values_worked_out_beforehand(phantoms):
    perfect = answered(phantoms, lambda i, name, boxes: boxes)
    assert perfect["mean_IoU"] > 0.97, "thousandths move an edge by half a pixel of 1,000"
    assert perfect["box_F1"] == perfect["box_F1@0.3"] == 1 == perfect["answered"]
    assert perfect["mAP_50"] == pytest.approx(1) and perfect["wrong_side"] == 0
    empty = answered(phantoms, lambda i, name, boxes: [])
    assert empty["mean_IoU"] == empty["box_recall"] == empty["soft_F1"] == empty["mAP_50"] == 0
    assert empty["answered"] == 0 and np.isnan(empty["box_precision"])
    flipped = [[MIRRORED.map_box(box) for box in boxes] for _, _, boxes in phantoms]
    at = {id(boxes): other for (_, _, boxes), other in zip(phantoms, flipped, strict=True)}
    mirrored = answered(phantoms, lambda i, name, boxes: at[id(boxes)])
    assert mirrored["wrong_side"] == 1, "every box with a side is on the other one"
    assert 0 < mirrored["mean_IoU"] < 0.5 < perfect["mean_IoU"]


@pytest.mark.slow
def test_shuffled_answers_and_the_constant_box_score_as_worked_out_beforehand(phantoms):
    order = [phantoms[(k + 7) % len(phantoms)][2] for k in range(len(phantoms))]
    at = {id(boxes): other for (_, _, boxes), other in zip(phantoms, order, strict=True)}
    shuffled = answered(phantoms, lambda i, name, boxes: at[id(boxes)])
    mean = np.mean([box for _, _, boxes in phantoms for box in boxes], axis=0)
    constant = answered(phantoms, lambda i, name, boxes: [tuple(mean)])

    def overlap(first, second) -> float:
        width = min(first[2], second[2]) - max(first[0], second[0])
        height = min(first[3], second[3]) - max(first[1], second[1])
        shared = max(width, 0) * max(height, 0)
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (first, second)]
        return shared / (sum(areas) - shared)

    total = sum(len(boxes) for _, _, boxes in phantoms)
    best = sum(max(overlap(mean, box) for box in boxes) for _, _, boxes in phantoms)
    assert constant["mean_IoU"] == pytest.approx(best / total, abs=2e-3)
    assert shuffled["mean_IoU"] < 0.25 and shuffled["answered"] == 1 == constant["answered"]
