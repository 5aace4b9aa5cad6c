"""The Python interface gives the same answers as predict.py; LAVIS's entry point works."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import xraygpt
from tests import processes
from tests.conftest import REPO, toy_yaml
from tests.runners.test_train_loop import MODEL
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.datasets.input_check import InputCheck
from xraygpt.experiment import Evaluation, build_chat, build_predictor
from xraygpt.phantom.render import Study, render


@pytest.fixture(scope="module")
def trained(reading, tmp_path_factory):
    """The evaluation YAML of a toy model whose answers depend on the image, and its corpus."""
    path = tmp_path_factory.mktemp("loading") / "eval.yaml"
    run = "  task: {name: report_generation, generate: {max_new_tokens: 24}}\n"
    path.write_text(toy_yaml(reading / "corpus", run, f"{MODEL}  ckpt: {reading}/out\n"))
    return path, reading / "corpus"


def test_answers_equal_those_of_predict(trained, tmp_path):
    path, corpus = trained
    model = xraygpt.load_model(path, device="cpu")
    table = tmp_path / "questions.jsonl"
    rows = [{"image": str(corpus / f"images/s{i}.png"), "id": f"s{i}.png"} for i in range(6)]
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    experiment = load(Evaluation, path)
    question = "What is there?"
    predictor = build_predictor(
        experiment, table, output_dir=tmp_path, question=question, device="cpu", workers=0
    )
    expected = [p.prediction for p in predictor.run()]
    answers = [model.ask(corpus / f"images/s{i}.png", question) for i in range(6)]
    assert answers == expected
    assert len(set(answers)) > 1  # they depend on the image
    with Image.open(corpus / "images/s0.png") as picture:
        assert model.ask(picture, question) == answers[0]
        assert model.ask(np.asarray(picture), question) == answers[0]
        assert model.ask(np.asarray(picture, dtype=np.float32) / 255, question) == answers[0]
    assert model.ask(model.read(corpus / "images/s0.png"), question) == answers[0]


@pytest.mark.slow
def test_sampled_answers_depend_on_the_content_alone(trained, tmp_path):
    """Not on the file's name, the entry point or the other images in the batch."""
    path, corpus = trained
    settings = {"do_sample": "true", "temperature": 9, "candidates": 2}
    options = [f"run.task.generate.{key}={value}" for key, value in settings.items()]
    first, other = (corpus / f"images/s{i}.png" for i in (0, 1))
    question = "What is there?"
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    for name, source in (("a", first), ("b", other), ("c", first), ("d", first)):
        (inputs / f"{name}.png").write_bytes(source.read_bytes())
    expected = {}
    for size in (1, 4):
        experiment = load(Evaluation, path, options)
        predictor = build_predictor(
            experiment, inputs, output_dir=tmp_path / str(size), question=question, device="cpu",
            batch_size=size,
        )  # fmt: skip
        expected[size] = [p.prediction for p in predictor.run()]
    assert expected[1] == expected[4]
    a, b, c, d = expected[1]
    assert a == c == d and a != b
    model = xraygpt.load_model(path, options, device="cpu")
    with Image.open(first) as picture:
        assert model.report(picture, question) == model.report(first, question) == a
    generation = model.task.config.generate
    chat = model.chat()
    chat.add_image(model.read(inputs / "c.png"))
    assert chat.ask(question, generation).text() == a
    seeds = {model.report(other, question)} | {
        xraygpt.load_model(path, [*options, f"run.task.generate.seed={s}"]).report(other, question)
        for s in (1, 2)
    }
    assert len(seeds) > 1, "the test needs answers that depend on the random numbers"


def test_reports_and_chats(trained):
    path, corpus = trained
    model = xraygpt.load_model(path, device="cpu")
    question = "What is there?"
    two = model.report([corpus / "images/s0.png", corpus / "images/s1.png"], question)
    assert isinstance(two, str) and model.answer(corpus / "images/s0.png", question).payload == {}
    chat = model.chat()
    chat.add_image(model.read(corpus / "images/s1.png"))
    assert chat.ask(question).text() == model.ask(corpus / "images/s1.png", question)


def test_mistakes_are_explained(trained):
    path, corpus = trained
    model = xraygpt.load_model(path, device="cpu")
    for picture, message in (
        (np.full((8, 8), 300.0, np.float32), "uint8 or float in"),
        (np.zeros((8, 8, 4), np.uint8), r"\(H, W\) or \(H, W, 3\)"),
        (Image.new("I;16", (8, 8)), "white level of an image with mode I;16 is unknown"),
    ):
        with pytest.raises(InputError, match=message):
            model.ask(picture, "?")
    with pytest.raises(InputError, match="no such file"):
        model.ask(corpus / "images/none.png", "?")
    with pytest.raises(InputError, match="question is empty"):
        model.ask(corpus / "images/s0.png", "  ")
    with pytest.raises(InputError, match=r"no model xraygpt_mni; did you mean 'xraygpt_mini'"):
        xraygpt.load_model("xraygpt_mni")
    with pytest.raises(InputError, match="has 0 GPUs"):
        xraygpt.load_model(path, device="cuda:7")


def test_load_model_and_preprocess():
    model, vis, text = xraygpt.load_model_and_preprocess("xraygpt", "tiny", is_eval=True)
    assert not model.model.training and set(vis) == set(text) == {"train", "eval"}
    image = vis["eval"](np.linspace(0, 1, 48 * 40, dtype=np.float32).reshape(48, 40))
    assert image.shape == (3, 32, 32) and text["eval"]("No effusion.") == "No effusion."
    assert isinstance(model.ask(image, "What is it?"), str)
    assert isinstance(model.report(torch.stack([image, image])), str)  # a clip of two frames
    with pytest.raises(InputError, match="unknown preset 'tny'; did you mean 'tiny'"):
        xraygpt.load_model_and_preprocess("xraygpt", "tny")
    with pytest.raises(InputError, match="unknown model 'xraygtp'"):
        xraygpt.load_model_and_preprocess("xraygtp")
    with pytest.raises(AttributeError, match="no attribute 'load_modell'"):
        xraygpt.load_modell  # noqa: B018


def test_answers_carry_the_warnings_about_their_images(trained, tmp_path, caplog):
    path, _ = trained
    model = xraygpt.load_model(path, device="cpu")
    blank = "It is blank: all parts of it are equally bright."
    white = np.ones((160, 160), np.float32)
    assert model.answer(white, "What is there?").warnings == (blank,)
    assert f"the image: {blank}" in caplog.text
    Image.fromarray((white * 255).astype(np.uint8)).save(tmp_path / "white.png")
    assert model.answer(tmp_path / "white.png", "What is there?").warnings == (blank,)
    chest = render(Study("chest", [], seed=3), "frontal", 160).pixels
    assert model.answer(chest, "What is there?").warnings == ()
    unchecked = xraygpt.load_model(path, ["datasets.toy.input_check=false"], device="cpu")
    assert unchecked.answer(white, "What is there?").warnings == ()


@pytest.mark.slow
def test_the_included_model_loads_from_any_folder_and_thread(tmp_path, monkeypatch):
    """The working directory is empty, and it stays the same."""
    monkeypatch.chdir(tmp_path)
    config = REPO / "eval_configs/xraygpt_mini.yaml"
    fast = [
        "run.task.generate.candidates=1",
        "run.task.generate.references=0",
        "run.task.generate.recombine=false",
    ]
    picture = render(Study("chest", [], seed=3), "frontal", 160).pixels
    answers = [
        xraygpt.load_model(source, options, device="cpu").report(picture)
        for source, options in ((config, fast), ("xraygpt_mini", fast))
    ]
    assert answers[0] == answers[1] != ""
    assert xraygpt.load_model(REPO / "weights/xraygpt_mini", device="cpu").report(picture)
    assert Path.cwd() == tmp_path and not list(tmp_path.iterdir())
    Image.fromarray(picture).save(tmp_path / "chest.png")
    command = [str(REPO / "predict.py"), "--cfg-path", str(config), "--input", "chest.png"]
    done = processes.run(
        [sys.executable, *command, "--device", "cpu", "--options", *fast],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert next((tmp_path / "output/predict").glob("chest-*/predictions.csv"))
    experiment = load(Evaluation, config, fast)
    assert build_chat(experiment, "cpu").input_check == InputCheck(("frontal",))  # demo and serve
