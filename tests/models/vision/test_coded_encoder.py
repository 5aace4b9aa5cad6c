"""Training an encoder on codes and mixed images, and features of several scales."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.conftest import write_toy_corpus
from tests.models.vision.test_image_text import pair, task, trained
from xraygpt.models.vision.encoders import build_vision, has_weights
from xraygpt.models.vision.image_text import code_id, code_parts, frequent_codes
from xraygpt.tasks.contrastive import Blend
from xraygpt.vocabulary.chest_labeller import FINDINGS

CODES = {"left": ["Opacity/lung/left"], "right": ["Opacity/lung/right"], "none": ["normal"]}


@pytest.fixture
def coded(tmp_path):
    """The toy corpus with codes, except for every tenth study."""
    folder = write_toy_corpus(tmp_path / "coded", count=96)
    path = folder / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["codes"] = [] if i % 10 == 9 else CODES[("left", "right", "none")[i % 3]]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def test_code_parts():
    codes = ["Opacity/lung/base/bilateral/mild", "normal", "No Indexing", " "]
    opacity = {"opacity"} | {f"opacity/{p}" for p in ("lung", "base", "left", "right", "mild")}
    assert code_parts(codes) == opacity | {"normal"}
    assert code_id("opacity") != code_id("opacity/left") > 0
    names, frequency = frequent_codes([codes, ["normal"], ["normal"], []], 2)
    assert names == ["normal"] and frequency.tolist() == [1.0]
    names, frequency = frequent_codes([codes, ["normal"]], 1)
    assert frequency[names.index("opacity")] == 0.5
    assert frequent_codes([], 1)[0] == []


@pytest.mark.slow
def test_codes_are_learned_with_their_sides(tmp_path, coded):
    options = ["run.task.code_weight=5", "run.task.matching_weight=0", "run.task.label_weight=0"]
    runner, scores = trained(tmp_path, coded, 150, "pairs", *options)
    assert scores["val/image_gap"] > 0.3
    model = runner.model.eval()
    val = runner.splits["val"]
    samples = [val[i] for i in range(len(val))]
    pair = model(runner.collate(samples))
    left, right = (pair.code_ids.tolist().index(code_id(f"opacity/{s}")) for s in ("left", "right"))
    predicted_left = (pair.codes[:, left] > pair.codes[:, right]).tolist()
    with_opacity = [
        (s, is_left)
        for s, is_left in zip(samples, predicted_left, strict=True)
        if "opacity" in str(s["meta"]["codes"]).lower()
    ]
    correct = [("left" in str(s["meta"]["codes"])) == is_left for s, is_left in with_opacity]
    assert len(with_opacity) > 10 and np.mean(correct) > 0.9


def test_studies_without_codes_do_not_contribute_to_the_code_loss(tmp_path, coded):
    options = ["run.task.code_weight=1", "run.task.matching_weight=0", "run.task.label_weight=0"]
    runner, _ = trained(tmp_path, coded, 1, "pairs", *options)
    train = runner.splits["train"].parts[0]
    samples = [train[i] for i in range(12)]
    batch = runner.collate(samples)
    loss = runner.task.loss(runner.model.eval(), batch).row_loss
    uncoded = [not s["meta"]["codes"] for s in samples]
    assert any(uncoded) and [v == 0 for v in loss.tolist()] == uncoded


def test_mixed_images_have_both_texts_as_targets():
    p, truth = pair(4), torch.eye(len(FINDINGS))[[1, 1, 2, 3]]
    other = torch.tensor([1, 2, 3, 0])
    for kind in ("pairs", "semantic"):
        plain = task(matching=kind).matching_loss(p, truth)
        unmixed = task(matching=kind).matching_loss(p, truth, Blend(1.0, other))
        torch.testing.assert_close(unmixed, plain)
    own = torch.eye(4)
    there = own * 0.7 + own[other] * 0.3
    logits = p.scale * p.image @ p.text.T
    expected = functional.cross_entropy(logits, there, reduction="none")
    back = there.T / there.T.sum(dim=1, keepdim=True)
    expected = (expected + functional.cross_entropy(logits.T, back, reduction="none")) / 2
    loss = task(matching="pairs").matching_loss(p, truth, Blend(0.7, other))
    torch.testing.assert_close(loss, expected)


def test_images_are_mixed_in_training_only(tmp_path, coded):
    runner, _ = trained(tmp_path, coded, 1, "semantic", "run.task.mixup=5.0")
    train = runner.splits["train"].parts[0]
    batch = runner.collate([train[i] for i in range(8)])
    pixels = batch["media_inputs"]["pixel_values"].clone()
    same, none = runner.task._mix_images(batch, training=False)
    assert none is None and same is batch
    mixed, blend = runner.task._mix_images(batch, training=True)
    expected = pixels * blend.weight + pixels[blend.partner] * (1 - blend.weight)
    torch.testing.assert_close(mixed["media_inputs"]["pixel_values"], expected)
    assert torch.equal(batch["media_inputs"]["pixel_values"], pixels)  # the batch is unchanged


@pytest.mark.slow
def test_finer_features_are_appended_to_the_last():
    plain = build_vision("efficientnet_lite0", 96, None).freeze()
    both = build_vision("efficientnet_lite0+mid", 96, None).freeze()
    assert (both.width, both.num_tokens) == (432, plain.num_tokens)
    assert has_weights("efficientnet_lite0+mid")
    pixels = torch.randn(2, 3, 96, 96)
    tokens = both.encode(pixels)
    torch.testing.assert_close(tokens[..., :320], plain.encode(pixels), rtol=1e-4, atol=1e-4)
    fine = both.net.inner(pixels)[0]  # (2, 112, 6, 6)
    corner = fine[:, :, :2, :2].flatten(2).amax(dim=2)
    torch.testing.assert_close(tokens[:, 0, 320:], corner, rtol=1e-4, atol=1e-4)


def test_code_ids_of_a_batch_that_starts_with_an_uncoded_study(tmp_path, coded):
    runner, _ = trained(tmp_path, coded, 1, "pairs", "run.task.code_weight=1")
    train = runner.splits["train"].parts[0]
    samples = sorted((train[i] for i in range(24)), key=lambda s: bool(s["meta"]["codes"]))
    assert not samples[0]["meta"]["codes"]
    ids = runner.task.extra(samples)["codes"]
    expected = {code_id(p) for s in samples for p in code_parts(s["meta"]["codes"])}
    assert ids.dtype == torch.int64 and set(ids[ids > 0].tolist()) == expected


def test_an_uncoded_image_of_a_mix_has_no_code_targets(tmp_path, coded):
    options = ["run.task.code_weight=1", "run.task.matching_weight=0", "run.task.label_weight=0"]
    runner, _ = trained(tmp_path, coded, 1, "pairs", *options)
    train = runner.splits["train"].parts[0]
    samples = [train[i] for i in range(24)]
    uncoded = next(s for s in samples if not s["meta"]["codes"])
    left = next(s for s in samples if "Opacity/lung/left" in s["meta"]["codes"])
    batch = runner.collate([left, uncoded])
    pair = runner.model.eval()(batch)
    blend = Blend(0.7, torch.tensor([1, 0]))
    mixed = runner.task._row_loss(pair, batch["extra"], blend)
    alone = runner.task._row_loss(pair, batch["extra"], None)
    torch.testing.assert_close(mixed[0], 0.7 * alone[0])  # weighted by its share of the mix
