"""Training an encoder on pairs: losses as published, results, and use in other models."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from xraygpt.common.config import load
from xraygpt.common.distributed import make_accelerator
from xraygpt.common.errors import ConfigError, InputError, WeightsError
from xraygpt.datasets.controls import shuffled
from xraygpt.experiment import Evaluation, Training, build_runner
from xraygpt.jobs import probe
from xraygpt.models.vision import encoders
from xraygpt.models.vision.encoders import build_vision
from xraygpt.models.vision.image_text import Pair
from xraygpt.processors.image import ImageSpec
from xraygpt.tasks.contrastive import ImageTextContrastive, findings_of
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.chest_labeller import FINDINGS

YAML = """
model:
  arch: image_text
  vit_model: tiny
  text: {vocab_size: 300, hidden: 64, layers: 1, context: 64, dropout: 0.0}
  dropout: 0.0
  embed_dim: 16
datasets:
  toy: {builder: records, storage: %s}
run:
  task: {name: image_text_contrastive, matching: %s}
  output_dir: %s
  device: cpu
  max_steps: %d
  batch_size_train: 12
  init_lr: 5e-3
  weight_decay: 0.0
  save_every: 0
"""
EVAL = """
model: {arch: xraygpt, model_type: tiny, prompt_template: xraygpt, vit_model: %s}
datasets:
  toy: {builder: records, storage: %s}
run: {task: report_generation, output_dir: out, split: val}
"""


def trained(base: Path, corpus: Path, steps: int, matching: str = "semantic", *options: str):
    path = base / "encoder.yaml"
    path.write_text(YAML % (corpus, matching, base / "encoder", steps))
    runner = build_runner(load(Training, path, options))
    return runner, runner.train()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tests.conftest import write_toy_corpus

    base = tmp_path_factory.mktemp("encoder")
    corpus = write_toy_corpus(base / "corpus", count=160)
    runner, scores = trained(base, corpus, 120)
    return base, corpus, runner, scores


def pair(rows: int = 5, seed: int = 0) -> Pair:
    g = torch.Generator().manual_seed(seed)
    image, text = (functional.normalize(torch.randn(rows, 8, generator=g), dim=1) for _ in "it")
    none = torch.zeros(rows, 0)
    return Pair(
        image=image,
        text=text,
        rows=torch.arange(rows),
        findings=torch.zeros(rows, len(FINDINGS)),
        codes=none,
        code_ids=none[0].long(),
        code_weight=none[0],
        scale=torch.tensor(3.0),
    )


def task(**settings) -> ImageTextContrastive:
    return ImageTextContrastive(ImageTextContrastive.Config(**settings))


def test_pairs_is_clips_loss():
    p = pair()
    logits = p.scale * p.image @ p.text.T
    own = torch.arange(5)
    clip = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    loss = task(matching="pairs").matching_loss(p, torch.zeros(5, len(FINDINGS))).mean()
    assert loss == pytest.approx(float(clip), abs=1e-6)


def test_semantic_targets_are_similarities_of_findings():
    p = pair(4)
    truth = torch.zeros(4, len(FINDINGS))
    truth[:2, 1] = 1  # two rows share a finding, two have others
    truth[2, 2] = truth[3, 3] = 1
    logits = p.scale * p.image @ p.text.T
    target = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    expected = 0.0
    for side in (logits, logits.T):
        expected += -(target.div(0.5).softmax(1) * side.log_softmax(1)).sum(1)
    loss = task(target_temperature=0.5).matching_loss(p, truth)
    torch.testing.assert_close(loss, expected / 2)
    # If all findings differ and the temperature is low, it equals CLIP's loss.
    distinct = torch.eye(len(FINDINGS))[:4]
    hard = task(target_temperature=1e-3).matching_loss(p, distinct)
    torch.testing.assert_close(hard, task(matching="pairs").matching_loss(p, distinct))


def test_findings_are_the_labellers():
    values = findings_of(
        "Cardiomegaly. Possible left effusion. No pneumothorax.", get_vocabulary("chest_xray")
    )
    present = {name for name, value in zip(FINDINGS, values, strict=True) if value}
    assert present == {"cardiomegaly", "pleural_effusion"}


@pytest.mark.slow
def test_it_learns_from_the_image(run):
    _, _, _, scores = run
    assert scores["val/image_gap"] > 0.3  # another study's image matches the text less


@pytest.mark.slow
def test_a_batch_may_mix_rows_without_and_with_several_images(run):
    _, _, runner, _ = run
    samples = [runner.splits["train"][i] for i in range(4)]
    text_only = {**samples[1], "media": [], "turns": [dict(t) for t in samples[1]["turns"]]}
    for turn in text_only["turns"]:
        turn["text"] = turn["text"].replace("<image>", "")
    twice = {**samples[2], "media": samples[2]["media"] * 2}
    twice["turns"] = [dict(t) for t in samples[2]["turns"]]
    twice["turns"][0]["text"] = "<image> " + twice["turns"][0]["text"]
    model = runner.model.eval()
    batch = runner.collate([samples[0], text_only, twice, samples[3]])
    pair = model(batch)
    assert pair.rows.tolist() == [0, 2, 3] and pair.text.shape == (4, 16)
    single = model(runner.collate([samples[2], samples[0]]))
    torch.testing.assert_close(pair.image[1], single.image[0])  # an image repeated is unchanged
    output = runner.task.loss(model, batch)
    assert output.row_loss[1] == 0 and output.num_targets.tolist() == [1, 1, 1, 1]
    empty = runner.task.loss(model.train(), runner.collate([text_only]))
    empty.loss.backward()
    assert float(empty.loss) == 0 and model.image_proj.weight.grad is not None
    model.zero_grad()


@pytest.mark.slow
def test_frozen_blocks_are_unchanged(tmp_path, toy):
    options = ["model.vit_model=timm/vit_tiny_patch16_224", "model.image_size=32"]
    runner, _ = trained(tmp_path, toy, 2, "pairs", *options, "model.train_from=11")
    again, _ = trained(tmp_path, toy, 1, "pairs", *options, "model.train_from=11")
    for (name, one), two in zip(
        runner.model.vision.net.state_dict().items(),
        again.model.vision.net.state_dict().values(),
        strict=True,
    ):
        frozen = not name.startswith(("blocks.11", "norm"))
        if frozen and name not in ("cls_token", "pos_embed"):
            assert torch.equal(one, two), name
    with pytest.raises(InputError, match="this encoder has no blocks"):
        trained(tmp_path, toy, 1, "pairs", "model.train_from=1")


def evaluation(base: Path, corpus: Path, vit_model: str) -> Evaluation:
    path = base / "eval.yaml"
    path.write_text(EVAL % (vit_model, corpus))
    return load(Evaluation, path, [])


@pytest.mark.slow
def test_the_encoder_can_be_used_by_another_model(run):
    base, corpus, runner, _ = run
    name = f"run/{base / 'encoder'}"
    own = build_vision(name, None, None).freeze()
    pixels = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(own.encode(pixels), runner.model.eval().vision.encode(pixels))
    both = build_vision(name + "+base", None, None)
    assert encoders.has_weights("tiny") and not encoders.has_weights("timm/resnet18")
    initial = build_vision("tiny", None, None)
    assert both.width == own.width + initial.width and both.num_tokens == own.num_tokens
    torch.testing.assert_close(
        both.encode(pixels), torch.cat([own.encode(pixels), initial.encode(pixels)], dim=-1)
    )
    from xraygpt.experiment import build_evaluator

    evaluator = build_evaluator(evaluation(base, corpus, name))
    assert evaluator.model.vision.digest() == own.digest()


@pytest.mark.slow
def test_a_model_refuses_features_of_a_retrained_encoder(run, tmp_path, toy):
    base, _, _, _ = run
    encoder = tmp_path / "encoder"
    shutil.copytree(base / "encoder", encoder)
    model = (
        "model: {arch: xraygpt, model_type: tiny, prompt_template: xraygpt, "
        f"vit_model: run/{encoder}"
    )
    rest = (
        f"datasets: {{toy: {{builder: records, storage: {toy}}}}}\nrun: {{task: report_generation, "
    )
    yaml = tmp_path / "m.yaml"
    yaml.write_text(f"{model}}}\n{rest}output_dir: {tmp_path / 'out'}, max_steps: 1, device: cpu}}")
    build_runner(load(Training, yaml)).train()
    ours = f"{model}, ckpt: {tmp_path / 'out'}}}\n{rest}max_steps: 1, device: cpu}}"
    yaml.write_text(ours)
    build_runner(load(Training, yaml))  # the same encoder
    trained(tmp_path, toy, 1)  # retrain into the same folder
    with pytest.raises(WeightsError, match="features of another encoder"):
        build_runner(load(Training, yaml))


@pytest.mark.slow
def test_a_single_image_is_normalised_as_in_evaluation(run):
    _, _, runner, _ = run
    model = runner.model
    rows = torch.randn(1, model.norm.num_features)
    normalised = model.train()._normalise(rows)
    torch.testing.assert_close(normalised, model.eval()._normalise(rows))
    torch.testing.assert_close(normalised, torch.nn.BatchNorm1d.forward(model.norm, rows))


@pytest.mark.slow
def test_the_probe_needs_the_right_images(run):
    base, corpus, _, _ = run
    experiment = evaluation(base, corpus, "tiny")
    name = f"run/{base / 'encoder'}"
    accelerator = make_accelerator("cpu")
    encoder, train, val = probe.load_splits(experiment, name, accelerator, "val")
    score = probe.probe(train, val, strength=1.0)[0]
    assert score.name == "AUROC/no_finding" and score.low > 0.9
    spec = ImageSpec(**vars(encoder.input_spec), tokens_per_image=1)
    data = experiment.datasets["toy"].build(image_spec=spec).build("val", "eval")
    wrong = probe._load_split(encoder, name, shuffled(data, seed=0), accelerator)
    assert probe.probe(train, wrong, strength=1.0)[0].value < 0.6


def test_probe_scores_of_informative_and_random_features():
    rng = np.random.default_rng(0)
    truth = np.zeros((400, len(FINDINGS)))
    truth[:, 1] = rng.random(400) < 0.3
    signal = truth[:, 1:2] * 2 + rng.normal(size=(400, 1))
    good = np.hstack([signal, rng.normal(size=(400, 5))])
    studies = [f"s{i}" for i in range(400)]

    def split(features, rows):
        return probe.Split(features[rows], truth[rows], studies[rows])

    train, val = slice(0, 250), slice(250, 400)
    score = probe.probe(split(good, train), split(good, val), strength=1.0)[0]
    assert score.name == f"AUROC/{FINDINGS[1]}" and score.low > 0.8
    nothing = rng.normal(size=(400, 6))
    chance = probe.probe(split(nothing, train), split(nothing, val), strength=1.0)[0]
    assert chance.low < 0.5 < chance.high
    table = probe.as_markdown({"a": [score], "b": [chance]}, {FINDINGS[1]: 45})
    assert f"| {FINDINGS[1]} | 45 |" in table and "| b | minus the first |" in table


@pytest.mark.slow
def test_errors(run, tmp_path, toy):
    base, _, _, _ = run
    with pytest.raises(ConfigError, match="nothing to learn"):
        options = ["run.task.matching_weight=0", "run.task.label_weight=0"]
        trained(tmp_path, toy, 1, "pairs", *options)
    with pytest.raises(InputError, match="has its own weights; remove this key"):
        build_vision(f"run/{base / 'encoder'}", None, base / "encoder")
    with pytest.raises(WeightsError, match="no usable checkpoint"):
        build_vision(f"run/{tmp_path}", None, None)
    copy = tmp_path / "step-1"
    shutil.copytree(next((base / "encoder").glob("*/checkpoints/step-*")), copy)
    (copy / "config.yaml").write_text("model: {arch: language_model}")
    with pytest.raises(WeightsError, match=r"config\.yaml"):  # changed since it was written
        build_vision(f"run/{copy}", None, None)
    with pytest.raises(InputError, match="no finding has"):
        rows = probe.Split(np.zeros((3, 2)), np.zeros((3, len(FINDINGS))), ["a", "b", "c"])
        probe.probe(rows, rows)


def test_the_training_processor_rotates_and_changes_grey_levels_by_its_key():
    from xraygpt.processors.image import XrayImageTrain

    spec = ImageSpec(image_size=32, mean=(0.5,), std=(0.5,), tokens_per_image=1)
    config = XrayImageTrain.Config(min_scale=1.0, degrees=15, grey_change=0.3)
    processor = XrayImageTrain(config, image_spec=spec)
    picture = np.tile(np.linspace(0, 1, 64, dtype=np.float32), (64, 1))
    first, same, other = processor(picture, "a"), processor(picture, "a"), processor(picture, "b")
    assert torch.equal(first, same) and not torch.equal(first, other)
    assert first.abs().max() <= 1 and not processor.deterministic
    plain = XrayImageTrain(XrayImageTrain.Config(min_scale=1.0), image_spec=spec)
    assert plain.deterministic and not math.isclose(float((plain(picture) - first).abs().max()), 0)
