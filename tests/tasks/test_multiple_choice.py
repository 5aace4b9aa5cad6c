"""Multiple-choice questions: options in tables, likelihoods of letters, and a model that looks."""

from __future__ import annotations

import json

import pytest

from tests.models.prefix_lm.toy import runner, tree, write_toy, write_yaml
from xraygpt.common.config import load
from xraygpt.common.errors import DataError, InputError
from xraygpt.datasets.choices import choice_question
from xraygpt.datasets.media_paths import RecordError
from xraygpt.experiment import Evaluation, build_evaluator
from xraygpt.prompting.choices import option_letters, write_options
from xraygpt.tasks.base import Prediction
from xraygpt.tasks.multiple_choice import MultipleChoice

ROW = {"a": "none", "b": "mild", "c": "severe", "d": None, "all": ["none", "mild"]}
COLUMNS = ["a", "b", "c", "d"]


@pytest.mark.parametrize("answer", ["B", "b.", "mild", 1, "1"])
def test_an_answer_is_a_letter_a_text_or_a_number(answer):
    text, letter = choice_question("How much? ", answer, ROW, COLUMNS)
    assert text == "How much?\nA. none\nB. mild\nC. severe"
    assert letter == "B"


def test_options_may_be_a_list_in_one_column():
    assert choice_question("How much?", "none", ROW, ["all"])[1] == "A"
    text = json.dumps(["x", "y", "z"])
    assert choice_question("Which?", "z", {"all": text}, ["all"])[1] == "C"


@pytest.mark.parametrize(
    ("answer", "columns", "message"),
    [
        ("D", COLUMNS, "'D' is none of the options"),
        ("moderate", COLUMNS, "'moderate' is none of the options"),
        ("A", ["a"], "a must be a list of options, got 'none'"),
        ("A", ["a", "d"], "needs 2 to 10 options, but there are 1"),
        ("A", ["a", "a"], "two options are the same"),
    ],
)
def test_faulty_questions_are_named(answer, columns, message):
    with pytest.raises(RecordError, match=message):
        choice_question("How much?", answer, ROW, columns)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        (write_options("Which?", ["a", "b", "c"]), "ABC"),
        ("Which? A. one B. two", "AB"),
        ("Is it hepatitis C. Which? A. one B. two", "AB"),
        ("Which view shows B. first?", ""),
        ("Only A. one", ""),
    ],
)
def test_letters_are_found_in_a_question(text, letters):
    assert option_letters(text) == letters


def test_accuracy_stands_beside_that_of_chance():
    def answered(name, text, truth, options, **probabilities):
        return Prediction(
            sample_id=name, study_id=name, prompt=write_options("Which?", options),
            prediction=text, reference=truth, payload={"probabilities": probabilities}, seed=0,
        )  # fmt: skip

    rows = [
        answered("s1", "A 0.7", "A", ["x", "y"], A=0.7, B=0.3),
        answered("s2", "B 0.5", "C", ["x", "y", "z", "w"], A=0.1, B=0.5, C=0.2, D=0.2),
    ]
    scores = {s.name: s.value for s in MultipleChoice(MultipleChoice.Config()).score(rows)}
    assert scores["accuracy"] == 0.5
    assert scores["accuracy_of_chance"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    assert scores["probability_of_truth"] == pytest.approx(0.45)


@pytest.mark.slow
def test_a_report_writer_learns_to_answer_and_looks(tmp_path):
    """Fine-tuning on questions from the weights and the tokenizer of a trained report writer."""
    corpus = write_toy(tmp_path / "corpus", 32)
    config = tree(corpus, tmp_path / "run", run__max_steps=30, run__batch_size_train=8)
    writer = runner(tmp_path / "run.yaml", config)
    writer.train()
    rows = [json.loads(x) for x in (corpus / "studies.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        options = ["small", "large"] if i % 3 else ["large", "small"]
        row |= {"question": "What is the size?", "first": options[0], "second": options[1]}
        row["answer"] = "large" if "large" in row["findings"] else "small"
    (corpus / "studies.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = tree(
        corpus, tmp_path / "tuned", run__max_steps=250, run__batch_size_train=8, run__task="vqa",
        model__ckpt=str(writer.run_folder), model__text={"prompt_template": "study_chat"},
        run__init_lr=0.01, datasets__toy__target="question",
        datasets__toy__fields={"options": ["first", "second"]},
    )  # fmt: skip
    tuned = runner(tmp_path / "tuned.yaml", config)
    assert tuned.model.tokenizer.get_vocab() == writer.model.tokenizer.get_vocab()
    tuned.train()
    chosen = {
        **config,
        "model": {**config["model"], "ckpt": str(tuned.run_folder)},
        "run": {"task": "multiple_choice", "output_dir": str(tmp_path / "e"), "split": "val"},
    }
    result = build_evaluator(load(Evaluation, write_yaml(tmp_path / "e.yaml", chosen))).run()
    accuracy = {s["condition"]: s["value"] for s in result["scores"] if s["name"] == "accuracy"}
    assert accuracy["true"] > 0.8
    assert accuracy["shuffled"] < 0.7
    del chosen["datasets"]["toy"]["fields"]
    with pytest.raises(InputError, match="the question has no options"):
        build_evaluator(load(Evaluation, write_yaml(tmp_path / "f.yaml", chosen))).run()
    chosen["datasets"]["toy"]["fields"] = {"options": ["first", "third"]}
    with pytest.raises(DataError, match=r"no record has the field 'third' \(fields.options\)"):
        build_evaluator(load(Evaluation, write_yaml(tmp_path / "g.yaml", chosen))).run()
