"""Models in Python: the same answers as predict.py, and LAVIS's entry point."""

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
def made(reading, tmp_path_factory):
    """The evaluation YAML of a toy model that answers by the image, and its corpus."""
    path = tmp_path_factory.mktemp("loading") / "eval.yaml"
    run = "  task: {name: report_generation, generate: {max_new_tokens: 24}}\n"
    path.write_text(toy_yaml(reading / "corpus", run, f"{MODEL}  ckpt: {reading}/out\n"))
    return path, reading / "corpus"


def test_answers_are_those_of_predict(made, tmp_path):
    path, corpus = made
    model = xraygpt.load_model(path, device="cpu")
    table = tmp_path / "asked.jsonl"
    rows = [{"image": str(corpus / f"images/s{i}.png"), "id": f"s{i}.png"} for i in range(6)]
    table.write_text("".join(json.dumps(r) + "\n" for r in rows))
    experiment = load(Evaluation, path)
    question = "What is there?"
    predictor = build_predictor(
        experiment, table, output_dir=tmp_path, question=question, device="cpu", workers=0
    )
    expected = [p.prediction for p in predictor.run()]
    found = [model.ask(corpus / f"images/s{i}.png", question) for i in range(6)]
    assert found == expected
    assert len(set(found)) > 1  # another image, another answer
    with Image.open(corpus / "images/s0.png") as picture:
        assert model.ask(picture, question) == found[0]
        assert model.ask(np.asarray(picture), question) == found[0]
        assert model.ask(np.asarray(picture, dtype=np.float32) / 255, question) == found[0]
    assert model.ask(model.read(corpus / "images/s0.png"), question) == found[0]
    two = model.report([corpus / "images/s0.png", corpus / "images/s1.png"], question)
    assert isinstance(two, str) and model.answer(corpus / "images/s0.png", question).payload == {}
    talk = model.chat()
    talk.add_image(model.read(corpus / "images/s1.png"))
    assert talk.ask(question).text() == found[1]


def test_mistakes_get_a_sentence(made):
    path, corpus = made
    model = xraygpt.load_model(path, device="cpu")
    for wrong, why in (
        (np.full((8, 8), 300.0, np.float32), "uint8 or float in"),
        (np.zeros((8, 8, 4), np.uint8), r"\(H, W\) or \(H, W, 3\)"),
        (Image.new("I;16", (8, 8)), "does not say what is white"),
    ):
        with pytest.raises(InputError, match=why):
            model.ask(wrong, "?")
    with pytest.raises(InputError, match="no such file"):
        model.ask(corpus / "images/none.png", "?")
    with pytest.raises(InputError, match="question is empty"):
        model.ask(corpus / "images/s0.png", "  ")
    with pytest.raises(InputError, match=r"no model xraygpt_mni; did you mean 'xraygpt_mini'"):
        xraygpt.load_model("xraygpt_mni")
    with pytest.raises(InputError, match="has 0 GPUs"):
        xraygpt.load_model(path, device="cuda:7")


def test_as_lavis_has_it():
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
