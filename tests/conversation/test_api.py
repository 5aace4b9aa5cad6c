"""The endpoint, asked by OpenAI's own client over a real socket."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import uvicorn
from PIL import Image

from tests.conversation.test_chat import SHORT, image, made
from xraygpt.conversation import ChatEngine
from xraygpt.conversation.api import NOTICE, ApiLimits, Message, Service, make_app
from xraygpt.media.pixels import read_image
from xraygpt.tasks.plan import Planned


def features(path: Path) -> torch.Tensor:
    """Stands in for the processor: noise by the mean grey of the real reader's pixels."""
    grey = round(255 * float(read_image(path).pixels.mean()))
    return image(grey)


def service(key: str = "", **limits: Any) -> Service:
    return Service(
        ChatEngine(made()), features, "tiny", SHORT, ApiLimits(**limits), key, {"device": "cpu"}
    )


class Served:
    """A service on a port of its own."""

    def __init__(self, of: Service) -> None:
        self.of = of
        config = uvicorn.Config(make_app(of), host="127.0.0.1", port=0, log_level="error")
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
    found = Served(service())
    yield found
    found.stop()


def picture(grey: int, kind: str = "PNG") -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), grey, np.uint8)).save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def user(text: str, *urls: str) -> dict[str, Any]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def said(engine: ChatEngine, *greys: int, question: str = "What is this?") -> str:
    """What the engine says without a server."""
    conversation = engine.start()
    for grey in greys:
        conversation.add_image(image(grey))
    return conversation.ask(question, SHORT).text()


@pytest.mark.parametrize("greys", [(40,), (40, 200)])
def test_the_official_client_hears_what_the_engine_says(served, greys):
    messages = [user("What is this?", *map(picture, greys))]
    client = served.client()
    whole = client.chat.completions.create(model="tiny", messages=messages)
    expected = said(served.of.engine, *greys)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens > 0
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


def test_a_follow_up_finds_its_cache_and_says_the_same_without_it(served):
    client = served.client()
    messages = [user("What is this?", picture(77))]
    first = client.chat.completions.create(model="tiny", messages=messages)
    messages += [
        {"role": "assistant", "content": first.choices[0].message.content},
        user("And the heart?"),
    ]
    second = client.chat.completions.create(model="tiny", messages=messages)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens - 2
    served.of._kept.clear()
    anew = client.chat.completions.create(model="tiny", messages=messages)
    assert anew.usage.prompt_tokens_details.cached_tokens == 0
    assert anew.choices[0].message.content == second.choices[0].message.content


def test_a_first_report_is_asked_for_with_what_was_found():
    of = service()
    of.engine.renderer.prompts = ["<image> Describe it.", "Another."]
    of.plan = lambda images, question: Planned(question, f"{len(images)} seen")

    def user(text, *greys):
        parts = [{"type": "image_url", "image_url": {"url": picture(g)}} for g in greys]
        return Message(role="user", content=[{"type": "text", "text": text}, *parts])

    assert of.conversation([user("Describe  it.", 3, 9)])[1] == Planned("Describe  it.", "2 seen")
    assert of.conversation([user("", 3, 9)])[1] == Planned("Describe it.", "2 seen")
    assert of.conversation([user("Is it large?", 3)])[1] == Planned("Is it large?")
    assert of.conversation([user("Describe it.")])[1] == Planned("Describe it.")
    said = Message(role="assistant", content="Clear.")
    conversation, question = of.conversation([user("Another.", 3), said, user("Describe it.", 9)])
    assert question == Planned("Describe it.")  # not the first
    assert conversation.exchanges[0].plain == "(found: 1 seen) Another."
    of.plan = None
    assert of.conversation([user("Describe it.", 3)])[1] == Planned("Describe it.")


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
    ("change", "said"),
    [
        ({"messages": [user("x", "https://example.org/a.png")]}, "no address is fetched"),
        ({"messages": [user("x", "http://127.0.0.1/a.png")]}, "no address is fetched"),
        ({"messages": [user("x", "file:///etc/passwd")]}, "no address is fetched"),
        ({"messages": [user("x", "data:image/png;base64,!!!")]}, "no base64"),
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
        ({"messages": [user("long " * 5000)]}, "the context of 512 holds"),
        ({"messages": [user("")]}, "the question is empty"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "must be the user's"),
        ({"messages": [user("a"), user("b")]}, "two user messages in a row"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "quokka"}]}, "messages.0.role"),
        ({"max_tokens": 10**6}, "max_tokens is at most 1024"),
        ({"temperature": 9}, "temperature"),
        ({"n": 3}, "n: "),
        ({"model": "gpt-4"}, "no model 'gpt-4'; tiny is here"),
    ],
)
def test_bad_requests_get_a_sentence_and_no_trace(served, change: dict, said: str):
    request = {"model": "tiny", "messages": [user("What is this?")], **change}
    with pytest.raises(openai.APIStatusError, match=said) as caught:
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
        told = json.load(answer)
        assert answer.headers["x-notice"] == NOTICE
    assert told["status"] == "ok"
    assert "not for diagnosis" in told["notice"]


def test_a_key_is_wanted_where_one_is_set():
    served = Served(service(key="sesame"))
    try:
        with pytest.raises(openai.AuthenticationError, match="the key is wrong or absent"):
            served.client("other").models.list()
        assert [m.id for m in served.client("sesame").models.list()] == ["tiny"]
        with urllib.request.urlopen(f"{served.url}/health") as answer:
            assert answer.status == 200
    finally:
        served.stop()


def test_too_much_at_once_is_told_to_come_back():
    served = Served(service(max_waiting=2, max_body_bytes=10_000))
    try:
        with served.of.engine.lane:  # nobody can answer
            asked = [
                threading.Thread(
                    target=served.client().chat.completions.create,
                    kwargs={"model": "tiny", "messages": [user("What?")]},
                )
                for _ in range(2)
            ]
            for thread in asked:
                thread.start()
            while served.of.waiting < 2:
                time.sleep(0.01)
            with pytest.raises(openai.RateLimitError, match="too many requests wait") as caught:
                served.client().chat.completions.create(model="tiny", messages=[user("What?")])
            assert caught.value.response.headers["retry-after"] == "5"
        for thread in asked:
            thread.join(20)
        assert served.of.waiting == 0
        with pytest.raises(openai.APIStatusError, match="the request is too large"):
            served.client().chat.completions.create(model="tiny", messages=[user("x" * 20_000)])
    finally:
        served.stop()


def test_who_leaves_in_the_middle_frees_the_model(served):
    before = served.of.how
    served.of.how = SHORT.__class__(max_new_tokens=300, no_repeat_ngram_size=2)
    try:
        stream = served.client().chat.completions.create(
            model="tiny", messages=[user("What is this?", picture(5))], stream=True
        )
        next(iter(stream))
        stream.close()
        served.of.how = before
        again = served.client().chat.completions.create(model="tiny", messages=[user("Alive?")])
        assert again.choices[0].message.content
        end = time.monotonic() + 20
        while served.of.waiting and time.monotonic() < end:
            time.sleep(0.05)
        assert served.of.waiting == 0
    finally:
        served.of.how = before


@pytest.mark.slow
def test_who_leaves_before_a_whole_answer_frees_the_model_too(served):
    before = served.of.how
    served.of.how = SHORT.__class__(max_new_tokens=300, no_repeat_ngram_size=2)
    llm = served.of.engine.model.llm
    slow = llm.register_forward_pre_hook(lambda *_: time.sleep(0.1))  # half a minute in all
    try:
        with pytest.raises(openai.APITimeoutError):
            served.client().with_options(timeout=1.0).chat.completions.create(
                model="tiny", messages=[user("What is this?", picture(6))]
            )
        end = time.monotonic() + 5
        while served.of.waiting and time.monotonic() < end:
            time.sleep(0.05)
        assert served.of.waiting == 0
    finally:
        slow.remove()
        served.of.how = before
