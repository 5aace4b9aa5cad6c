"""The Python interface gives the same answers as predict.py; LAVIS's entry point works."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import xraygpt
from tests.conftest import toy_yaml
from tests.runners.test_train_loop import MODEL
from xraygpt.common.config import load
from xraygpt.common.errors import InputError
from xraygpt.experiment import Evaluation, build_predictor


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
