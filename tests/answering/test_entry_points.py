"""The same film and question have one answer in Python, predict.py, the API and the demo."""

from __future__ import annotations

import base64

import pytest

from tests.conftest import REPO
from tests.demo.helpers import upload
from xraygpt.common.config import load
from xraygpt.conversation.api_schema import ApiLimits, ChatRequest
from xraygpt.conversation.api_service import Service
from xraygpt.demo.controller import DemoController
from xraygpt.demo.decoding import DecodingSettings
from xraygpt.demo.responder import question_answers
from xraygpt.experiment import Evaluation, build_chat, build_predictor
from xraygpt.loading import load_model

YAML = REPO / "eval_configs" / "xraygpt_mini.yaml"
FILM = REPO / "examples" / "nih_chestxray14" / "00001299_000.png"
OPTIONS = ["run.task.generate.candidates=6", "run.task.generate.references=6"]
QUESTIONS = ("", "Is there a pneumothorax?", "How large is the heart?", "Which findings are there?",
             "How old is the patient?")  # fmt: skip


@pytest.fixture(scope="module")
def answers():
    """The answers in Python, to each of the questions."""
    model = load_model(YAML, OPTIONS, "cpu")
    return [model.answer(FILM, question) for question in QUESTIONS]


@pytest.fixture(scope="module")
def parts():
    return build_chat(load(Evaluation, YAML, OPTIONS), "cpu")


@pytest.mark.slow
def test_the_answers_are_different_and_the_report_has_its_findings(answers):
    assert len({answer.text for answer in answers}) == len(QUESTIONS)
    probabilities = answers[0].payload["probabilities"]
    assert len(probabilities) > 20 and all(0 <= p <= 1 for p in probabilities.values())
    assert f"{100 * probabilities['cardiomegaly']:.0f} %" in answers[2].text or (
        probabilities["cardiomegaly"] < 0.01
    )


@pytest.mark.slow
def test_predictions_equal_the_answers_in_python(answers, tmp_path):
    for question, expected in zip(QUESTIONS, answers, strict=True):
        predictor = build_predictor(
            load(Evaluation, YAML, OPTIONS), FILM, output_dir=tmp_path, question=question,
            device="cpu",
        )  # fmt: skip
        (prediction,) = predictor.run()
        assert prediction.prediction == expected.text
        assert prediction.payload == expected.payload


@pytest.mark.slow
def test_the_api_equals_the_answers_in_python(answers, parts):
    service = Service(
        parts.engine, parts.read_media, "m", parts.generation, ApiLimits(), "", parts.facts
    )
    url = f"data:image/png;base64,{base64.b64encode(FILM.read_bytes()).decode()}"
    for question, expected in zip(QUESTIONS, answers, strict=True):
        content = [{"type": "image_url", "image_url": {"url": url}}]
        content += [{"type": "text", "text": question}] if question else []
        request = ChatRequest(messages=[{"role": "user", "content": content}])
        _, answer = service.start_answer(request, service.generation_for(request))
        assert answer.text() == expected.text and answer.payload == expected.payload


@pytest.mark.slow
def test_the_demo_equals_the_answers_in_python(answers, parts, tmp_path):
    controller = DemoController(parts, "m", synthetic=False)
    try:
        session = controller.sessions.get("a")
        copy = tmp_path / "film.png"
        copy.write_bytes(FILM.read_bytes())
        upload(controller, session, copy)
        settings = DecodingSettings(max_new_tokens=parts.generation.max_new_tokens)
        list(controller.responder.draft(session, settings))
        for question in QUESTIONS[1:]:
            list(controller.responder.ask(session, question, settings))
        texts = [answer for _, answer in question_answers(session)]
        assert texts == [answer.text for answer in answers]
        assert session.draft is not None and session.draft.payload == answers[0].payload
        # A second draft does not depend on the questions in between.
        list(controller.responder.draft(session, settings))
        assert question_answers(session)[-1][1] == answers[0].text
    finally:
        controller.sessions.close()


@pytest.mark.slow
def test_without_an_image_the_answer_asks_for_one(parts):
    service = Service(
        parts.engine, parts.read_media, "m", parts.generation, ApiLimits(), "", parts.facts
    )
    request = ChatRequest(messages=[{"role": "user", "content": "Hello"}])
    _, answer = service.start_answer(request, service.generation_for(request))
    assert "There is no image yet" in answer.text()
