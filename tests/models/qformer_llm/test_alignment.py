"""The Q-Former's warm-up: losses as in papers, wrong pairs that are wrong, a start for stage 1."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from tests.conftest import write_toy_corpus
from xraygpt.common.config import load
from xraygpt.common.errors import ConfigError, WeightsError
from xraygpt.experiment import Training, build_runner
from xraygpt.models.qformer_llm.alignment import Aligned, _sample_negatives
from xraygpt.tasks.alignment import QFormerAlignmentTask
from xraygpt.vocabulary.chest_labeller import FINDINGS

QFORMER = "qformer: {layers: 2, hidden: 64, cross_attention_every: 1, dropout: 0.0}"
YAML = """
model: {arch: qformer_alignment, vit_model: tiny, num_query_token: 4, vocab_size: 300, %s}
datasets: {toy: {builder: records, storage: %s}}
run:
  task: {name: qformer_alignment, matching: %s}
  output_dir: %s
  device: cpu
  max_steps: %d
  batch_size_train: 16
  init_lr: 3e-3
  save_every: 0
"""


def trained(base, corpus, steps, matching="semantic", *options):
    path = base / "warm.yaml"
    path.write_text(YAML % (QFORMER, corpus, matching, base / "warm", steps))
    runner = build_runner(load(Training, path, options))
    return runner, runner.train()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = tmp_path_factory.mktemp("alignment")
    corpus = write_toy_corpus(base / "corpus", count=96, text_only=2)
    return base, corpus, *trained(base, corpus, 150, "semantic", "datasets.toy.only_images=false")


def task(**settings) -> QFormerAlignmentTask:
    return QFormerAlignmentTask(QFormerAlignmentTask.Config(**settings))


@pytest.mark.slow
def test_it_learns_which_text_goes_with_which_image(run):
    _, _, runner, scores = run
    assert scores["val/image_gap"] > 0.3
    val = runner.splits["val"].parts[0]
    kept = [s for s in (val[i] for i in range(len(val))) if s["media"]]
    kinds = [s["turns"][-1]["text"] for s in kept]
    with torch.no_grad():
        found = runner.model.eval()(runner.collate(kept))
    nearest = found.similarity.argmax(dim=1).tolist()
    assert sum(kinds[i] == kinds[j] for i, j in enumerate(nearest)) > 0.6 * len(
        kept
    )  # chance: 0.33
    fits = (found.matched > 0).float().mean(dim=0)  # own pair, wrong text, wrong image
    assert fits[0] > fits[1:].max() + 0.3


@pytest.mark.slow
def test_stage_one_begins_with_it_and_reads_the_same(run, tmp_path):
    base, corpus, runner, _ = run
    model = f"""
model:
  {{arch: xraygpt, model_type: tiny, prompt_template: xraygpt, vit_model: tiny, num_query_token: 4,
  {QFORMER}, q_former_model: {base / "warm"}}}
datasets: {{toy: {{builder: records, storage: {corpus}, only_images: false}}}}
run: {{task: image_text_pretrain, output_dir: {tmp_path}, device: cpu, max_steps: 1}}
"""
    path = tmp_path / "one.yaml"
    path.write_text(model)
    stage = build_runner(load(Training, path)).model.eval()
    patches = torch.randn(3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(stage.qformer(patches), runner.model.eval().qformer(patches))
    path.write_text(model.replace("vit_model: tiny", "vit_model: eva_tiny"))
    with pytest.raises(WeightsError, match="reads features of tiny"):
        build_runner(load(Training, path))


def test_plain_contrast_is_the_loss_of_the_paper():
    g = torch.Generator().manual_seed(0)
    similarity = torch.randn(5, 5, generator=g)
    found = Aligned(similarity, torch.arange(5), torch.tensor(3.0), torch.zeros(5, 3))
    own = torch.arange(5)
    logits = similarity * 3
    wanted = sum(
        functional.cross_entropy(side, own, label_smoothing=0.1) for side in (logits, logits.T)
    )
    said = task(matching="pairs").contrast_loss(found, torch.zeros(5, len(FINDINGS))).mean()
    assert float(said) == pytest.approx(float(wanted) / 2, abs=1e-6)
    even = task().matching_loss(found)
    assert even.tolist() == pytest.approx([math.log(2)] * 5)


def test_wrong_partners_are_alike_but_never_right():
    own = torch.eye(6, dtype=torch.bool)
    same = own.clone()
    same[0, 1] = same[1, 0] = True  # two of the same findings
    logits = torch.zeros(6, 6)
    logits[0, 3] = 4.0
    drawn = torch.stack([_sample_negatives(logits, same, own) for _ in range(300)])
    assert not (drawn == torch.arange(6)).any()
    assert not (drawn[:, 0] == 1).any() and not (drawn[:, 1] == 0).any()
    assert (drawn[:, 0] == 3).float().mean() > 0.8  # the most alike, as a rule
    everything = torch.ones(6, 6, dtype=torch.bool)  # all of one finding: any other row
    again = torch.stack([_sample_negatives(logits, everything, own) for _ in range(50)])
    assert not (again == torch.arange(6)).any()


@pytest.mark.slow
def test_texts_alone_and_single_rows_bring_no_loss_and_touch_every_parameter(run):
    _, _, runner, _ = run
    train = runner.splits["train"].parts[0]
    alone = next(s for s in (train[i] for i in range(len(train))) if not s["media"])
    model = runner.model.train()
    for batch in (runner.collate([alone, alone]), runner.collate([train[0]])):
        output = runner.task.loss(model, batch)
        output.loss.backward()
        assert float(output.loss.detach()) == 0
        assert all(p.grad is not None for n, p in model.trainable_parameters())
        model.zero_grad()
    mixed = runner.task.loss(model, runner.collate([alone, train[0], train[1]]))
    assert mixed.row_loss[0] == 0 and (mixed.row_loss[1:] > 0).all()


def test_nothing_to_learn_is_refused(tmp_path, toy):
    with pytest.raises(ConfigError, match="nothing to learn"):
        trained(tmp_path, toy, 1, "pairs", "run.task.contrast_weight=0", "run.task.match_weight=0")
