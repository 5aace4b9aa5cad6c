"""The finding head: fitting, loading, its plans, and the check of its encoder."""

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
from xraygpt.models.findings import FindingScores
from xraygpt.models.vision.base import pooled
from xraygpt.models.vision.finding_head import FindingHead, load_head
from xraygpt.tasks import plan as planning
from xraygpt.vocabulary import get_vocabulary
from xraygpt.vocabulary.chest_labeller import FINDINGS

CHEST = get_vocabulary("chest_xray")

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
    """Toy studies whose codes give the side of the bright square."""
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
    """A head fitted by the command."""
    path = tmp_path_factory.mktemp("file") / "head.safetensors"
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("XRAYGPT_CACHE", str(path.parent / "cache"))
    yaml = experiment_of(corpus) and corpus.parent / "eval.yaml"
    command = ["probe", "--cfg-path", str(yaml), "--strength", "1", "--min-positives", "2"]
    patch.setattr("sys.argv", [*command, "--save", str(path)])
    probe.main()
    return path


def test_probabilities_are_those_of_the_fit(corpus, head):
    accelerator = make_accelerator("cpu")
    experiment = experiment_of(corpus, head)
    encoder, train, val = job.load_splits(experiment, "tiny", accelerator, "val")
    model = build_evaluator(experiment).model
    fitted = job.fit(train.features, train.labels[:, [FINDINGS.index("lung_opacity")]], 1.0)
    data = build_evaluator(experiment).data
    features = torch.stack([data[i]["media"][0].data for i in range(len(data))])
    probabilities = model.finding_head(features, [1] * len(features))
    column = probabilities[:, model.finding_head.names.index("lung_opacity")]
    # Calibration keeps the order of the images.
    assert (np.argsort(column.numpy()) == np.argsort(fitted(pooled(features).numpy())[:, 0])).all()
    assert encoder.digest() == model.finding_head.encoder
    truth = val.labels[:, FINDINGS.index("lung_opacity")]
    assert column[truth == 1].mean() > column[truth == 0].mean() + 0.2
    # The threshold, set by cross-validation in train, separates the images of val.
    threshold = model.finding_head.threshold[model.finding_head.names.index("lung_opacity")]
    assert float(((column >= threshold).numpy() == (truth == 1)).mean()) > 0.75


def test_images_of_a_study_are_averaged():
    torch.manual_seed(0)
    weight, features = torch.randn(2, 8), torch.randn(3, 5, 4)
    head = FindingHead(
        ["edema"], ["cardiomegaly"], weight=weight, bias=torch.zeros(2),
        threshold=torch.tensor([0.5]), encoder="x",
    )  # fmt: skip
    mean = pooled(features[1:]).mean(dim=0)
    torch.testing.assert_close(head(features, [1, 2])[1], (weight @ mean).sigmoid())


def test_findings_are_worded_by_their_most_likely_code():
    names = ["lung_opacity", "lung_lesion", "fracture", "edema"]
    codes = ["opacity/lung/left", "opacity/lung/right/round", "cardiomegaly"]
    thresholds = dict.fromkeys(names, 0.5)

    def words(*probabilities, thresholds=thresholds):
        row = torch.tensor([probabilities])
        scores = FindingScores(tuple(names), (0.5,) * 4, row[:, :4], tuple(codes), row[:, 4:])
        return planning.describe_findings(scores, CHEST, thresholds)[0]

    assert words(0.6, 0.1, 0.1, 0.4, 0.3, 0.2, 0.9) == ["opacity, lung, left"]
    # A round opacity is also a lesion: one code covers both.
    assert words(0.6, 0.6, 0.1, 0.4, 0.1, 0.2, 0.9) == ["opacity, lung, right, round"]
    assert words(0.1, 0.1, 0.7, 0.5, 0.0, 0.0, 0.0) == ["edema", "fracture"]  # without a code
    assert words(*[0.9] * 7, thresholds={"edema": 0.5}) == ["edema"]


def test_the_plan_passes_the_heads_findings_to_the_llm(corpus, head, monkeypatch):
    evaluator = build_evaluator(experiment_of(corpus, head))
    model, questions = evaluator.model, []
    monkeypatch.setattr(
        model,
        "generate",
        lambda batch, *_: questions.extend(batch["question"]) or [""] * len(batch["question"]),
    )
    samples = [evaluator.data[i] for i in range(len(evaluator.data))]
    evaluator.task.predict(model, evaluator.collate.prompts(samples))
    codes = [s["meta"]["codes"] for s in samples]
    planned = ["opacity, lung, left" in text for text in questions]
    expected = [c == CODES["left"] for c in codes]
    agreed = sum(a == b for a, b in zip(planned, expected, strict=True))
    assert agreed > len(samples) * 0.7 and any(planned)
    assert all(q.startswith("(found: ") and q.endswith("show?") for q in questions), questions[:3]
    # Pixels and stored features, chat and evaluation give the same plan.
    parts = build_chat(experiment_of(corpus, head), "cpu")
    image = parts.read_media(evaluator.data.records[0].media[0].path)
    encoded, encode = [], parts.engine.model.encode
    monkeypatch.setattr(parts.engine.model, "encode", lambda x: encoded.append(x) or encode(x))
    prepared = parts.engine.answerer.prepare("", [image])
    assert f"(found: {prepared.caption}) {prepared.question}" == questions[0]
    assert {f.name for f in prepared.findings} >= {"lung_opacity", "hypoinflation"}
    assert len(encoded) == 1  # the plan and the probabilities share the features


def test_a_plan_can_be_restricted_to_some_findings(corpus, head):
    evaluator = build_evaluator(experiment_of(corpus, head, ", findings: [hypoinflation]"))
    prompts = evaluator.collate.prompts([evaluator.data[i] for i in range(9)])
    findings = planning.predict_findings(evaluator.model, prompts, evaluator.task.config.plan)
    assert {w for words in findings for w in words} <= {"lung, hypoinflation", "normal"}
    unrestricted = build_evaluator(experiment_of(corpus, head, ", threshold: 0.0"))
    findings = planning.predict_findings(evaluator.model, prompts, unrestricted.task.config.plan)
    assert findings[0] == ["cardiomegaly, mild", "lung, hypoinflation", "opacity, lung, left"]


def test_errors(corpus, head, tmp_path):
    evaluator = build_evaluator(experiment_of(corpus))
    with pytest.raises(InputError, match=r"set model\.finding_head"):
        evaluator.task.predict(evaluator.model, evaluator.collate.prompts([evaluator.data[0]]))
    with pytest.raises(WeightsError, match="another encoder"):
        load_head(head, "0")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_head(tmp_path / "none", "0")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match="not written by `xraygpt"):
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
