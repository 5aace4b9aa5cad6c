"""Drafts, questions and answers."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch

from tests.demo.helpers import SHORT, final_text, upload
from tests.demo.trained_model import square
from xraygpt.answering.answerer import Prepared
from xraygpt.answering.routes import Kind
from xraygpt.common.errors import InputError
from xraygpt.conversation import Busy
from xraygpt.demo.decoding import DecodingSettings
from xraygpt.demo.examples import draw_examples
from xraygpt.demo.responder import question_answers
from xraygpt.models.base import Generation


@pytest.mark.parametrize(("question", "message"), [
    ("", "question is empty"), ("  \n ", "question is empty"),
    ("x" * 100_000, "100,000 characters; at most 2,000 are allowed"),
    ("long " * 390, "the context of 512 has room"),
])  # fmt: skip
def test_invalid_questions_raise(controller, tmp_path, question, message):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    with pytest.raises(InputError, match=message):
        list(controller.responder.ask(session, question, SHORT))
    assert final_text(controller.responder.ask(session, "What?", SHORT))


def test_nothing_to_draft_regenerate_or_export(controller):
    session = controller.sessions.get("a")
    with pytest.raises(InputError, match="upload an X-ray or choose an example first"):
        list(controller.responder.draft(session, SHORT))
    with pytest.raises(InputError, match="no question has been asked"):
        list(controller.responder.regenerate(session, SHORT))
    with pytest.raises(InputError, match="nothing to export"):
        controller.export(session, "", "", "md")


def test_a_second_question_is_refused_during_an_answer(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    first = controller.responder.draft(session, DecodingSettings(max_new_tokens=200))
    next(first)
    with pytest.raises(Busy, match="still being answered; Stop cancels it"):
        next(controller.responder.ask(session, "And?", SHORT))
    session.conversation.cancel()
    assert list(first)[-1].status.startswith("Stopped.")
    assert final_text(controller.responder.ask(session, "And?", SHORT))


def test_a_reader_that_stops_reading_frees_the_session(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    answers = controller.responder.draft(session, DecodingSettings(max_new_tokens=300))
    next(answers)
    answers.close()
    assert session.lock.acquire(timeout=10)
    session.lock.release()
    assert final_text(controller.responder.ask(session, "And?", SHORT))


@pytest.mark.slow
def test_a_reader_that_stops_reading_does_not_block(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    slow = controller.parts.engine.model.llm.register_forward_pre_hook(lambda *_: time.sleep(1))
    try:
        answers = controller.responder.draft(session, DecodingSettings(max_new_tokens=300))
        next(answers)
        start = time.monotonic()
        answers.close()
        assert time.monotonic() - start < 0.5  # Gradio calls it on its event loop
        assert session.lock.acquire(timeout=10)
        session.lock.release()
    finally:
        slow.remove()
    assert session.draft.ended == "cancelled"  # the partial text is kept


def test_dropped_questions_are_reported(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    statuses = [
        list(controller.responder.ask(session, f"Q{i} " * 20, SHORT))[-1].status for i in range(5)
    ]
    assert "oldest" not in statuses[0]
    assert "oldest" in statuses[-1] and "omitted from the prompt" in statuses[-1]


def test_sampling_depends_on_its_seed_and_greedy_does_not(controller, tmp_path):
    regenerate = controller.responder.regenerate
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    sampled = DecodingSettings("sampling", temperature=1.5, top_p=1.0, max_new_tokens=24, seed=3)
    list(controller.responder.draft(session, sampled))
    first, seed = question_answers(session)[-1][1], session.draft.seed
    again = final_text(regenerate(session, sampled))
    other = final_text(regenerate(session, dataclasses.replace(sampled, seed=4)))
    assert first == again != other and seed == 3 and session.draft.seed == 4
    assert len(question_answers(session)) == 1 and session.draft.index == 0
    assert "temperature 1.5" in session.draft.decoding
    greedy = final_text(regenerate(session, SHORT))
    assert greedy == final_text(regenerate(session, SHORT)) and session.draft.seed is None


@pytest.mark.parametrize("invalid", [
    {"temperature": 0}, {"temperature": float("nan")}, {"seed": 2**70}, {"seed": -1},
    {"max_new_tokens": float("inf")}, {"num_beams": 99}, {"top_p": 1.5}, {"max_new_tokens": 0},
])  # fmt: skip
def test_invalid_decoding_settings_raise(invalid):
    settings = DecodingSettings(**{"mode": "sampling", **invalid})
    with pytest.raises(InputError, match="decoding"):
        settings.to_generation(Generation())


@pytest.mark.slow
def test_a_draft_depends_only_on_its_images(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    first = final_text(controller.responder.draft(session, SHORT))
    list(controller.responder.ask(session, "And?", SHORT))
    assert final_text(controller.responder.draft(session, SHORT)) == first
    assert len(question_answers(session)) == 1 and session.draft.index == 0
    upload(controller, session, square(tmp_path, "right"))
    assert "made without this image: make a new draft" in controller.images.prefill(session)
    list(controller.responder.draft(session, SHORT))
    assert len(session.draft.images) == 2
    controller.images.examples = draw_examples(tmp_path / "examples")
    controller.images.add_example(session, 0)  # another case
    assert len(session.images) == 1 and session.draft is None and question_answers(session) == []
    other = final_text(controller.responder.draft(session, SHORT))
    fresh = controller.sessions.get("b")
    controller.images.add_example(fresh, 0)
    assert final_text(controller.responder.draft(fresh, SHORT)) == other


def test_integers_and_an_empty_seed_are_accepted(controller, tmp_path):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    sampled = DecodingSettings(
        mode="sampling", temperature=2, top_p=1, repetition_penalty=1, seed=None
    )
    assert final_text(controller.responder.draft(session, sampled)) and session.draft.seed == 0


def test_a_draft_is_prepared_with_all_images_and_shown_without_its_plan(
    controller, tmp_path, monkeypatch
):
    session = controller.sessions.get("a")
    upload(controller, session, square(tmp_path, "left"))
    planned: list[list] = []

    def prepare(text, media, report=""):
        planned.append([medium.media for medium in media])
        return Prepared(text, Kind.REPORT, "opacity, left")

    monkeypatch.setattr(controller.parts.engine, "prepare", prepare)
    assert final_text(controller.responder.draft(session, SHORT))
    prompt = controller.responder.report_prompt
    assert question_answers(session)[-1][0] == prompt
    assert session.draft.prompt == f"(found: opacity, left) {prompt}"
    image = session.images[0]
    assert len(planned) == 1 and torch.equal(
        planned[0][0].data, controller.parts.read_media(image.path, image.frame).data
    )
