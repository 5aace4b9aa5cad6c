"""The endpoint, queried with OpenAI's client over a real socket."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import uvicorn
from fastapi.testclient import TestClient
from PIL import Image

from tests.conversation.test_chat import SHORT, build_tiny, image
from xraygpt.answering import Prepared
from xraygpt.conversation import ChatEngine
from xraygpt.conversation.api import NOTICE, make_app
from xraygpt.conversation.api_schema import ApiLimits, Message
from xraygpt.conversation.api_service import Service
from xraygpt.media.base import Media, media_from_tensor
from xraygpt.media.pixels import read_image


def features(path: Path) -> torch.Tensor:
    """Replaces the processor: noise seeded by the mean grey value of the image."""
    grey = round(255 * float(read_image(path).pixels.mean()))
    return image(grey)


def build_service(key: str = "", **limits: Any) -> Service:
    return Service(
        ChatEngine(build_tiny()),
        lambda path: media_from_tensor(features(path)),
        "tiny",
        SHORT,
        ApiLimits(**limits),
        key,
        {"device": "cpu"},
    )


class Served:
    """A running server for a service."""

    def __init__(self, service: Service) -> None:
        self.service = service
        config = uvicorn.Config(make_app(service), host="127.0.0.1", port=0, log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(5)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    server = Served(build_service())
    yield server
    server.stop()


def picture(grey: int, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), grey, np.uint8)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(text: str, *urls: str) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def engine_answer(engine: ChatEngine, *greys: int, question: str = "What is this?") -> str:
    """The engine's answer without a server."""
    conversation = engine.start()
    for grey in greys:
        conversation.add_image(image(grey))
    return conversation.ask(question, SHORT).text()


def checked(path: Path) -> Media:
    """Like `features`, with a warning about bright images."""
    bright = float(read_image(path).pixels.mean()) > 0.5
    return replace(media_from_tensor(features(path)), warnings=("It is bright.",) * bright)


def test_warnings_are_in_the_response_in_the_last_chunk_and_in_later_turns():
    service = build_service()
    service.read_media = checked
    with TestClient(make_app(service)) as client:

        def post(messages: list, **more: Any) -> Any:
            return client.post("/v1/chat/completions", json={"messages": messages, **more})

        assert post([user("What?", picture(40))]).json()["warnings"] == []
        first = [user("What?", picture(200))]
        response = post(first).json()
        assert response["warnings"] == ["It is bright."]
        reply = {"role": "assistant", "content": response["choices"][0]["message"]["content"]}
        follow_up = post([*first, reply, user("And now?")]).json()
        assert follow_up["warnings"] == ["It is bright."]
        lines = post([user("What?", picture(40), picture(200))], stream=True).text.split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line[6:7] == "{"]
        assert chunks[-1]["warnings"] == ["Image 2: It is bright."]
        assert not any("warnings" in chunk for chunk in chunks[:-1])
        service.strict = True
        assert post([user("What?", picture(40))]).status_code == 200
        refused = post(first)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"] == "the image was refused: It is bright."


@pytest.mark.parametrize("greys", [(40,), (40, 200)])
def test_the_official_client_gets_the_engines_answer(served, greys):
    messages = [user("What is this?", *map(picture, greys))]
    client = served.client()
    completion = client.chat.completions.create(model="tiny", messages=messages)
    expected = engine_answer(served.service.engine, *greys)
    assert completion.choices[0].message.content == expected
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage.completion_tokens > 0
    chunks = list(client.chat.completions.create(model="tiny", messages=messages, stream=True))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == expected
    assert len([p for p in pieces if p]) > 1
    assert chunks[-1].choices[0].finish_reason == "length"


def test_another_picture_is_another_answer(served):
    answers = {
        served.client()
        .chat.completions.create(model="tiny", messages=[user("What is this?", picture(grey))])
        .choices[0].message.content
        for grey in (0, 60, 120, 180)
    }  # fmt: skip
    assert len(answers) > 1


def test_a_follow_up_uses_its_cache_and_is_the_same_without_it(served):
    client = served.client()
    messages = [user("What is this?", picture(77))]
    first = client.chat.completions.create(model="tiny", messages=messages)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        user("And the heart?"),
    ]
    second = client.chat.completions.create(model="tiny", messages=messages)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens - 2
    served.service._stored.clear()
    uncached = client.chat.completions.create(model="tiny", messages=messages)
    assert uncached.usage.prompt_tokens_details.cached_tokens == 0
    assert uncached.choices[0].message.content == second.choices[0].message.content


def test_questions_are_prepared_with_all_images_so_far(monkeypatch):
    """Every question, also a restored one, is prepared with the images up to it."""
    service = build_service()
    prepared: list[tuple[str, int]] = []

    def prepare(text, media, report=""):
        prepared.append((text, len(media)))
        return Prepared(text, caption=f"{len(media)} seen")

    monkeypatch.setattr(service.engine, "prepare", prepare)

    def user(text, *greys):
        parts = [{"type": "image_url", "image_url": {"url": picture(g)}} for g in greys]
        return Message(role="user", content=[{"type": "text", "text": text}, *parts])

    messages = [user("A", 3), Message(role="assistant", content="Clear."), user("B", 9)]
    conversation, question = service.conversation(messages)
    assert conversation.history[0].question_text == "(found: 1 seen) A"
    conversation.ask(question, SHORT).text()
    assert conversation.history[1].question_text == "(found: 2 seen) B"
    assert prepared == [("A", 1), ("B", 2)]


@pytest.mark.slow
def test_a_temperature_samples_by_seed(served):
    def ask(seed: int) -> str:
        done = served.client().chat.completions.create(
            model="tiny", messages=[user("What?", picture(9))], temperature=2.0, seed=seed
        )
        return done.choices[0].message.content or ""

    assert ask(1) == ask(1)
    assert len({ask(seed) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [user("x", "https://example.org/a.png")]}, "URLs are not fetched"),
        ({"messages": [user("x", "http://127.0.0.1/a.png")]}, "URLs are not fetched"),
        ({"messages": [user("x", "file:///etc/passwd")]}, "URLs are not fetched"),
        ({"messages": [user("x", "data:image/png;base64,!!!")]}, "not valid base64"),
        ({"messages": [user("x", picture(1)[:60])]}, "base64|truncated|cannot|corrupt|not"),
        (
            {
                "messages": [
                    user("x", "data:image/png;base64," + base64.b64encode(b"text").decode())
                ]
            },
            "not|no ",
        ),
        ({"messages": [user("x", *[picture(1)] * 9)]}, "more than 8 images"),
        ({"messages": [user("long " * 5000)]}, "the context of 512 has room"),
        ({"messages": [user("")]}, "the question is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must have the role 'user'"),
        ({"messages": [user("a"), user("b")]}, "two user messages in a row"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "quokka"}]}, "messages.0.role"),
        ({"max_tokens": 10**6}, "max_tokens must be at most 1024"),
        ({"temperature": 9}, "temperature"),
        ({"n": 3}, "n: "),
        ({"model": "gpt-4"}, "model 'gpt-4' not found; this server provides tiny"),
    ],
)
def test_bad_requests_get_a_message_and_no_traceback(served, change: dict, message: str):
    request = {"model": "tiny", "messages": [user("What is this?")], **change}
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        served.client().chat.completions.create(**request)
    assert caught.value.status_code in (400, 404)
    assert "Traceback" not in str(caught.value)
    assert "/tmp" not in str(caught.value)
    assert "quokka" not in str(caught.value)
    fine = served.client().chat.completions.create(model="tiny", messages=[user("Alive?")])
    assert fine.choices[0].message.content


def test_models_health_and_the_notice(served):
    assert [m.id for m in served.client().models.list()] == ["tiny"]
    with urllib.request.urlopen(f"{served.url}/health") as answer:
        health = json.load(answer)
        assert answer.headers["x-notice"] == NOTICE
    assert health["status"] == "ok"
    assert "not for diagnosis" in health["notice"]


def test_a_key_is_required_if_one_is_set():
    served = Served(build_service(key="sesame"))
    try:
        with pytest.raises(openai.AuthenticationError, match="the API key is wrong or missing"):
            served.client("other").models.list()
        assert [m.id for m in served.client("sesame").models.list()] == ["tiny"]
        with urllib.request.urlopen(f"{served.url}/health") as answer:
            assert answer.status == 200
    finally:
        served.stop()


def test_too_many_or_too_large_requests_are_refused():
    served = Served(build_service(max_waiting=2, max_body_bytes=10_000))
    try:
        with served.service.engine.lock:  # no answer can be generated
            threads = [
                threading.Thread(
                    target=served.client().chat.completions.create,
                    kwargs={"model": "tiny", "messages": [user("What?")]},
                )
                for _ in range(2)
            ]
            for thread in threads:
                thread.start()
            while served.service.waiting < 2:
                time.sleep(0.01)
            with pytest.raises(
                openai.RateLimitError, match="too many requests are waiting"
            ) as caught:
                served.client().chat.completions.create(model="tiny", messages=[user("What?")])
            assert caught.value.response.headers["retry-after"] == "5"
        for thread in threads:
            thread.join(20)
        assert served.service.waiting == 0
        with pytest.raises(openai.APIStatusError, match="the request is too large"):
            served.client().chat.completions.create(model="tiny", messages=[user("x" * 20_000)])
    finally:
        served.stop()


def test_a_client_that_disconnects_while_streaming_frees_the_model(served):
    before = served.service.generation
    served.service.generation = SHORT.__class__(max_new_tokens=300, no_repeat_ngram_size=2)
    try:
        stream = served.client().chat.completions.create(
            model="tiny", messages=[user("What is this?", picture(5))], stream=True
        )
        next(iter(stream))
        stream.close()
        served.service.generation = before
        again = served.client().chat.completions.create(model="tiny", messages=[user("Alive?")])
        assert again.choices[0].message.content
        end = time.monotonic() + 20
        while served.service.waiting and time.monotonic() < end:
            time.sleep(0.05)
        assert served.service.waiting == 0
    finally:
        served.service.generation = before


@pytest.mark.slow
def test_a_client_that_disconnects_before_the_answer_frees_the_model(served):
    before = served.service.generation
    served.service.generation = SHORT.__class__(max_new_tokens=300, no_repeat_ngram_size=2)
    llm = served.service.engine.model.llm
    slow = llm.register_forward_pre_hook(lambda *_: time.sleep(0.1))  # 30 seconds in total
    try:
        with pytest.raises(openai.APITimeoutError):
            served.client().with_options(timeout=1.0).chat.completions.create(
                model="tiny", messages=[user("What is this?", picture(6))]
            )
        end = time.monotonic() + 5
        while served.service.waiting and time.monotonic() < end:
            time.sleep(0.05)
        assert served.service.waiting == 0
    finally:
        slow.remove()
        served.service.generation = before
