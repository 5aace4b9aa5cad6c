"""Yes/no questions by probability: from likelihoods, beside controls that are fair."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from tests.conftest import write_toy_corpus
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.controls import shuffled_whole
from xraygpt.experiment import Evaluation, Training, build_evaluator, build_runner
from xraygpt.tasks.base import Prediction
from xraygpt.tasks.plan import answered
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
def made(tmp_path_factory):
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
def test_a_model_that_reads_ranks_studies_and_the_controls_do_not(made):
    base, corpus = made
    evaluator = evaluator_of(base, corpus)
    assert len(evaluator.data) == 3 * 24  # every heading of every study
    rows = evaluator.run()["scores"]
    found = {(r["name"], r["condition"]): r for r in rows}
    true = found["AUROC_macro", "true"]
    assert true["value"] > 0.85 and true["n"] == 24
    assert found["AUROC/opacity", "true"]["value"] > 0.7
    wrong = found["AUROC_macro", "shuffled"]
    assert 0.3 < wrong["value"] < 0.7 and wrong["true_minus"]["low"] > 0.2
    assert found["AUROC_macro", "blank"]["value"] == pytest.approx(0.5)
    assert found["AUROC_macro", "most_common"]["value"] == pytest.approx(0.5)
    page = (evaluator.folder / "report.html").read_text()
    assert "AUROC_macro" in page


@pytest.mark.slow
def test_probabilities_are_those_of_the_two_likelihoods(made):
    base, corpus = made
    evaluator = evaluator_of(base, corpus)
    samples = [evaluator.data[i] for i in range(4)]
    said = evaluator.task.predict(evaluator.model, evaluator.collate.prompts(samples))
    for sample, one in zip(samples, said, strict=True):
        loss = []
        for answer in ("yes.", "no."):
            turns = [*sample["turns"][:-1], {"role": "assistant", "text": answer}]
            with torch.no_grad():
                batch = evaluator.collate([{**sample, "turns": turns}])
                loss.append(float(evaluator.model(batch).loss))
        wanted = 1 / (1 + math.exp(loss[0] - loss[1]))
        word, number = one.text.split(" ")
        assert one.payload["probabilities"]["yes"] == pytest.approx(wanted, abs=1e-4)
        assert float(number) == pytest.approx(wanted, abs=1e-4)
        assert word == ("yes" if wanted >= 0.5 else "no")


def test_answers_stand_after_each_prompt_of_a_batch():
    prompts = {
        "input_ids": torch.tensor([[0, 5, 6], [7, 8, 9]]),
        "labels": torch.full((2, 3), -100),
        "attention_mask": torch.tensor([[0, 1, 1], [1, 1, 1]]),
    }
    batch = answered(prompts, [3, 4])
    assert batch["input_ids"].tolist() == [[0, 5, 6, 3, 4], [7, 8, 9, 3, 4]]
    assert batch["labels"].tolist() == [[-100] * 3 + [3, 4]] * 2
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1], [1] * 5]


@pytest.mark.slow
def test_the_control_gives_all_questions_of_an_image_the_same_other_one(made):
    base, corpus = made
    data = evaluator_of(base, corpus).data
    wrong = shuffled_whole(data, seed=1)
    other = {}
    for record, same in zip(data.records, wrong.records, strict=True):
        assert other.setdefault(record.media, same.media) == same.media != record.media
    codes = {r.media: str(r.meta["codes"]) for r in data.records}
    same_codes = sum(codes[a] == codes[b] for a, b in other.items()) / len(other)
    assert 0.1 < same_codes < 0.6  # as chance has it, a third


def test_scores_against_scikit_learn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    truth, p = rng.random(60) < 0.4, rng.random(60)
    said = [
        Prediction(f"s{i}/scar", f"s{i}", "<image> Is this coded: scar?",
                   f"yes {p[i]:.6f}", "yes, left." if truth[i] else "no.", 0)
        for i in range(60)
    ]  # fmt: skip
    scores = {s.name: s for s in YesNo(YesNo.Config()).score(said)}
    wanted = roc_auc_score(truth, p.round(6))
    assert scores["AUROC/scar"].value == pytest.approx(wanted) and scores["AUROC/scar"].n == 60


def test_answers_of_another_task_are_refused():
    said = [Prediction("a", "a", "Is this coded: scar?", "The heart is large.", "no.", 0)]
    with pytest.raises(InputError, match="no answer of the task yes_no"):
        YesNo(YesNo.Config()).score(said)
    with pytest.raises(ValueError, match="same answer"):
        YesNo.Config(yes="No", no="no.")
