"""The head on frozen features: what was fitted, in the coders' words, of its encoder alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import write_toy_corpus
from xraygpt import probe
from xraygpt.common.config import load
from xraygpt.common.distributed import make_accelerator
from xraygpt.common.errors import ConfigError, InputError, WeightsError
from xraygpt.experiment import Evaluation, build_chat, build_evaluator
from xraygpt.jobs import probe as job
from xraygpt.models.vision.base import pooled
from xraygpt.models.vision.finding_head import FindingHead, load_head
from xraygpt.tasks import plan as planning
from xraygpt.vocabulary import vocabulary_of
from xraygpt.vocabulary.chest_labeller import FINDINGS

CHEST = vocabulary_of("chest_xray")

CODES = {
    "left": ["Opacity/lung/left", "Cardiomegaly/mild"],
    "right": ["Lung/hypoinflation"],
    "none": ["normal"],
}
YAML = """
model: {arch: xraygpt, model_type: tiny, prompt_template: xraygpt, prompt_path: %s%s}
datasets: {toy: {builder: records, storage: %s}}
run: {task: {name: report_generation, plan: {by: head%s}}, output_dir: %s, split: val}
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Toy studies whose coding says on which side the bright square lies."""
    folder = write_toy_corpus(tmp_path_factory.mktemp("head") / "corpus", count=60)
    path = folder / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["findings"] = text = row.pop("turns")[1]["text"]
        side = next((s for s in ("left", "right") if s in text.lower()), "none")
        row["codes"] = CODES[side]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    (folder.parent / "prompts.txt").write_text("What does it show?\n")
    return folder


def experiment_of(corpus, head=None, plan=""):
    base = corpus.parent
    path = base / "eval.yaml"
    more = f", finding_head: {head}" if head else ""
    path.write_text(YAML % (base / "prompts.txt", more, corpus, plan, base / "out"))
    return load(Evaluation, path)


@pytest.fixture(scope="module")
def head(corpus, tmp_path_factory, request):
    """What the command writes, and the splits it was fitted on and measured on."""
    path = tmp_path_factory.mktemp("file") / "head.safetensors"
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("XRAYGPT_CACHE", str(path.parent / "cache"))
    yaml = experiment_of(corpus) and corpus.parent / "eval.yaml"
    command = ["probe", "--cfg-path", str(yaml), "--strength", "1", "--min-positives", "2"]
    patch.setattr("sys.argv", [*command, "--save", str(path), "--over", "1"])
    probe.main()
    return path


def test_it_says_what_was_fitted(corpus, head):
    place = make_accelerator("cpu")
    experiment = experiment_of(corpus, head)
    encoder, train, val = job.splits_of(experiment, "tiny", place)
    model = build_evaluator(experiment).model
    fitted = job.fit(train.features, train.truth[:, [FINDINGS.index("lung_opacity")]], 1.0)
    data = build_evaluator(experiment).data
    features = torch.stack([data[i]["media"][0].data for i in range(len(data))])
    said = model.finding_head(features, [1] * len(features))
    column = said[:, model.finding_head.names.index("lung_opacity")]
    np.testing.assert_allclose(column, fitted(pooled(features).numpy())[:, 0], atol=1e-4)
    assert encoder.digest() == model.finding_head.encoder
    truth = val.truth[:, FINDINGS.index("lung_opacity")]
    assert column[truth == 1].mean() > column[truth == 0].mean() + 0.2  # and it is to be seen
    # Named as often on val as in training: that is where the threshold lies.
    share = train.truth[:, FINDINGS.index("lung_opacity")].mean()
    least = model.finding_head.threshold[model.finding_head.names.index("lung_opacity")]
    assert (column >= least).float().mean() == pytest.approx(share, abs=0.15)


def test_a_study_of_several_images_is_their_mean():
    torch.manual_seed(0)
    weight, features = torch.randn(2, 8), torch.randn(3, 5, 4)
    head = FindingHead(
        ["edema"], ["cardiomegaly"], weight=weight, bias=torch.zeros(2),
        threshold=torch.tensor([0.5]), encoder="x",
    )  # fmt: skip
    mean = pooled(features[1:]).mean(dim=0)
    torch.testing.assert_close(head(features, [1, 2])[1], (weight @ mean).sigmoid())


def test_findings_are_said_by_the_likeliest_code_that_means_them():
    names = ["lung_opacity", "lung_lesion", "fracture", "edema"]
    codes = ["opacity/lung/left", "opacity/lung/right/round", "cardiomegaly"]
    head = FindingHead(
        names, codes, weight=torch.zeros(7, 2), bias=torch.zeros(7),
        threshold=torch.full((4,), 0.5), encoder="x",
    )  # fmt: skip
    least = dict.fromkeys(names, 0.5)

    def words(*said):
        return planning.in_words(head, CHEST, torch.tensor([said]), least)[0]

    assert words(0.6, 0.1, 0.1, 0.4, 0.3, 0.2, 0.9) == ["opacity, lung, left"]
    # A round opacity is a lesion as well: one code says both.
    assert words(0.6, 0.6, 0.1, 0.4, 0.1, 0.2, 0.9) == ["opacity, lung, right, round"]
    assert words(0.1, 0.1, 0.7, 0.5, 0.0, 0.0, 0.0) == ["edema", "fracture"]  # by their names
    assert planning.in_words(head, CHEST, torch.full((1, 7), 0.9), {"edema": 0.5}) == [["edema"]]


def test_the_plan_tells_what_the_head_holds(corpus, head, monkeypatch):
    evaluator = build_evaluator(experiment_of(corpus, head))
    model, said = evaluator.model, []
    monkeypatch.setattr(
        model, "generate", lambda batch, how, bonus=None: said.extend(batch["question"])
    )
    samples = [evaluator.data[i] for i in range(len(evaluator.data))]
    evaluator.task.predict(model, evaluator.collate.prompts(samples))
    codes = [s["meta"]["codes"] for s in samples]
    opaque = ["opacity, lung, left" in text for text in said]
    wanted = [c == CODES["left"] for c in codes]
    agreed = sum(a == b for a, b in zip(opaque, wanted, strict=True))
    assert agreed > len(samples) * 0.7 and any(opaque)
    assert all(t.startswith("(found: ") and t.endswith("show?") for t in said), said[:3]
    # The same of pixels as of stored features, and in a chat as in evaluation.
    parts = build_chat(experiment_of(corpus, head), "cpu")
    image = parts.read_media(evaluator.data.records[0].media[0].path)
    planned = parts.plan([image], "What does it show?")
    assert f"(found: {planned.caption}) {planned.question}" == said[0]


def test_the_plan_can_ask_for_less(corpus, head):
    evaluator = build_evaluator(experiment_of(corpus, head, ", findings: [hypoinflation]"))
    prompts = evaluator.collate.prompts([evaluator.data[i] for i in range(9)])
    held = planning.held_likely(evaluator.model, prompts, evaluator.task.config.plan)
    assert {w for words in held for w in words} <= {"lung, hypoinflation", "normal"}
    all_of_it = build_evaluator(experiment_of(corpus, head, ", threshold: 0.0"))
    held = planning.held_likely(evaluator.model, prompts, all_of_it.task.config.plan)
    assert held[0] == ["cardiomegaly, mild", "lung, hypoinflation", "opacity, lung, left"]


def test_mistakes_are_named(corpus, head, tmp_path):
    evaluator = build_evaluator(experiment_of(corpus))
    with pytest.raises(InputError, match=r"set model\.finding_head"):
        evaluator.task.predict(evaluator.model, evaluator.collate.prompts([evaluator.data[0]]))
    with pytest.raises(WeightsError, match="another encoder"):
        load_head(head, "0")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_head(tmp_path / "none", "0")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="none that `xraygpt"):
        load_head(tmp_path / "other.safetensors", "0")
    (tmp_path / "torn").write_bytes(head.read_bytes()[:90])
    with pytest.raises(WeightsError, match="cannot be read"):
        load_head(tmp_path / "torn", "0")
    with pytest.raises(ConfigError, match="freeze_vit: true"):
        load(
            Evaluation,
            corpus.parent / "eval.yaml",
            ["model.finding_head=x", "model.freeze_vit=false"],
        )
