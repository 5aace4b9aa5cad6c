"""Yes/no questions: probabilities from likelihoods, and fair controls."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.conftest import write_toy_corpus
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.controls import shuffled_per_image
from xraygpt.experiment import Evaluation, Training, build_evaluator, build_runner
from xraygpt.tasks.base import Prediction
from xraygpt.tasks.questions import append_answer
from xraygpt.tasks.yes_no import YesNo

MODEL = "arch: xraygpt, model_type: tiny, prompt_template: xraygpt"
DATA = """
  toy:
    builder: records
    storage: %s
    target: %s
    min_code_count: 5
    fields: {turns: none_of_them}
"""
CODES = {"left": ["Opacity/left", "Scar"], "right": ["Scar"], "none": ["normal"]}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A coded corpus, and a model trained to answer about its codes."""
    base = tmp_path_factory.mktemp("yes_no")
    corpus = write_toy_corpus(base / "corpus", count=96)
    path = corpus / "corpus.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for i, row in enumerate(rows):
        row["codes"] = CODES[("left", "right", "none")[i % 3]]
        row["none_of_them"] = None
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = f"{{task: image_text_pretrain, output_dir: {base / 'run'}, device: cpu, max_steps: 150, "
    run += "batch_size_train: 16, init_lr: 3e-3, eval_every: 0, save_every: 0}"
    yaml = base / "train.yaml"
    data = DATA % (corpus, "code_questions") + "    questions: 3\n"
    model = f"{MODEL}, freeze_llm: false"
    yaml.write_text(f"model: {{{model}}}\ndatasets:{data}run: {run}\n")
    build_runner(load(Training, yaml)).train()
    return base, corpus


def evaluator_of(base, corpus, *options: str):
    yaml = base / "eval.yaml"
    data = DATA % (corpus, "every_code_question")
    model = f"{MODEL}, freeze_llm: false, ckpt: {base / 'run'}"
    run = f"{{task: {{name: yes_no, min_positives: 4}}, output_dir: {base / 'out'}, split: val}}"
    yaml.write_text(f"model: {{{model}}}\ndatasets:{data}run: {run}\n")
    return build_evaluator(load(Evaluation, yaml, options))


@pytest.mark.slow
def test_a_trained_model_ranks_studies_better_than_the_controls(trained):
    base, corpus = trained
    evaluator = evaluator_of(base, corpus)
    assert len(evaluator.data) == 3 * 24  # every heading of every study
    rows = evaluator.run()["scores"]
    scores = {(r["name"], r["condition"]): r for r in rows}
    true = scores["AUROC_macro", "true"]
    assert true["value"] > 0.85 and true["n"] == 24
    assert scores["AUROC/opacity", "true"]["value"] > 0.7
    wrong = scores["AUROC_macro", "shuffled"]
    assert 0.3 < wrong["value"] < 0.7 and wrong["true_minus"]["low"] > 0.2
    assert scores["AUROC_macro", "blank"]["value"] == pytest.approx(0.5)
    assert scores["AUROC_macro", "most_common"]["value"] == pytest.approx(0.5)
    page = (evaluator.folder / "report.html").read_text()
    assert "AUROC_macro" in page


@pytest.mark.slow
def test_probabilities_match_the_two_likelihoods(trained):
    base, corpus = trained
    evaluator = evaluator_of(base, corpus)
    samples = [evaluator.data[i] for i in range(4)]
    predictions = evaluator.task.predict(evaluator.model, evaluator.collate.prompts(samples))
    for sample, prediction in zip(samples, predictions, strict=True):
        loss = []
        for answer in ("yes.", "no."):
            turns = [*sample["turns"][:-1], {"role": "assistant", "text": answer}]
            with torch.no_grad():
                batch = evaluator.collate([{**sample, "turns": turns}])
                loss.append(float(evaluator.model(batch).loss))
        expected = 1 / (1 + math.exp(loss[0] - loss[1]))
        word, number = prediction.text.split(" ")
        assert prediction.payload["probabilities"]["yes"] == pytest.approx(expected, abs=1e-4)
        assert float(number) == pytest.approx(expected, abs=1e-4)
        assert word == ("yes" if expected >= 0.5 else "no")


def test_an_answer_is_appended_to_each_prompt():
    prompts = {
        "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "labels": torch.full((2, 3), -100),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    batch = append_answer(prompts, [3, 4])
    assert batch["input_ids"].tolist() == [[0, 5, 6, 3, 4], [7, 8, 9, 3, 4]]
    assert batch["labels"].tolist() == [[-100] * 3 + [3, 4]] * 2
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1] * 5]


@pytest.mark.slow
def test_the_control_replaces_an_image_for_all_its_questions(trained):
    base, corpus = trained
    data = evaluator_of(base, corpus).data
    wrong = shuffled_per_image(data, seed=1)
    other = {}
    for record, same in zip(data.records, wrong.records, strict=True):
        assert other.setdefault(record.media, same.media) == same.media != record.media
    codes = {r.media: str(r.meta["codes"]) for r in data.records}
    same_codes = sum(codes[a] == codes[b] for a, b in other.items()) / len(other)
    assert 0.1 < same_codes < 0.6  # a third by chance


def test_scores_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth, p = rng.random(60) < 0.4, rng.random(60)
    predictions = [
        Prediction(f"s{i}/scar", f"s{i}", "<image> Is this coded: scar?",
                   f"yes {p[i]:.6f}", "yes, left." if truth[i] else "no.", 0)
        for i in range(60)
    ]  # fmt: skip
    scores = {s.name: s for s in YesNo(YesNo.Config()).score(predictions)}
    expected = roc_auc_score(truth, p.round(6))
    assert scores["AUROC/scar"].value == pytest.approx(expected) and scores["AUROC/scar"].n == 60


def test_answers_of_another_task_are_refused():
    predictions = [Prediction("a", "a", "Is this coded: scar?", "The heart is large.", "no.", 0)]
    with pytest.raises(InputError, match="not an answer of the task yes_no"):
        YesNo(YesNo.Config()).score(predictions)
    with pytest.raises(ValueError, match="is the same as the answer for yes"):
        YesNo.Config(yes="No", no="no.")
