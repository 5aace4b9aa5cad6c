"""Requests to an endpoint: what is sent, failures, privacy and the budget."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.media.dicom_files import dataset, save
from tests.models.endpoint.fake import Fake, decode, failure, images, parts, serving
from xraygpt.common.config import to_yaml
from xraygpt.common.errors import ConfigError, DataError, InputError
from xraygpt.curation.llm import limits
from xraygpt.curation.llm.failures import EndpointError
from xraygpt.datasets.base import Sample
from xraygpt.datasets.collate import Collator
from xraygpt.media.base import Media, MediaRef, read_media_file
from xraygpt.models.base import Generation
from xraygpt.models.capabilities import Chats, ComputesLoss, require, supports
from xraygpt.models.endpoint.journal import JOURNAL_FILE
from xraygpt.models.endpoint.model import OpenAIEndpoint
from xraygpt.processors.plain import DisplayImage
from xraygpt.prompting.content import MediaPart, build_turn
from xraygpt.prompting.renderer import Turn

SECRET = "sk-do-not-write-this-anywhere"


def model_of(fake: Fake, **keys: Any) -> OpenAIEndpoint:
    keys.setdefault("retries", {"initial_wait": 0.01, "max_wait": 0.02, "timeout": 5.0})
    config = OpenAIEndpoint.Config.from_keys(base_url=fake.url, model="m", **keys)
    return OpenAIEndpoint(config)


def display(model: OpenAIEndpoint, pixels: np.ndarray, kind: str = "image", **more: Any) -> Media:
    processor = DisplayImage(DisplayImage.Config(), image_spec=model.image_spec)
    return processor.process(Media(torch.from_numpy(pixels), kind, **more))


def sample(turns: list[Turn], *media: Media, name: str = "s") -> Sample:
    return Sample(
        sample_id=name, study_id=name, media=list(media), turns=turns, meta={}, rng_key="0/0/s"
    )


def ask(model: OpenAIEndpoint, *samples: Sample, **generation: Any) -> list[str]:
    collate = Collator(model.renderer, model.media_collator, max_len=model.context_len)
    return model.generate(collate.prompts(samples), Generation(**generation))


def question(text: str, name: str = "s") -> Sample:
    return sample([Turn(role="user", text=text)], name=name)


def noise(seed: int, *shape: int) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, shape)
    return (values / 255).astype(np.float32)


# ---- What is sent --------------------------------------------------------------------------------


def test_the_request_has_exactly_the_pixels_and_the_text_in_order():
    first, second = noise(0, 20, 30), noise(1, 17, 9, 3)
    turns = [
        Turn(role="user", text="Before: <image> and after: <image> What changed? ❤"),
        Turn(role="assistant", text="Nothing, <image> says."),
        Turn(role="user", text="Sure?"),
        Turn(role="assistant", text="the reference, which is not sent"),
    ]
    with serving(answer=lambda body: " Yes.\n") as fake:
        model = model_of(fake, system="Be brief.")
        media = [display(model, pixels) for pixels in (first, second)]
        assert ask(model, sample(turns, *media), max_new_tokens=7) == ["Yes."]
    (body,) = fake.bodies
    contents = [m.pop("content") for m in body["messages"]]
    a, b = (part for part in contents[1] if part["type"] == "image_url")
    assert body == {
        "model": "m",
        "messages": [{"role": r} for r in ("system", "user", "assistant", "user")],
        "max_tokens": 7,
        "temperature": 0.0,
    }
    assert contents[0] == "Be brief." and contents[2:] == ["Nothing, <image> says.", "Sure?"]
    assert [p.get("text") for p in contents[1]] == [
        "Before:", None, "and after:", None, "What changed? ❤",
    ]  # fmt: skip
    assert np.array_equal(decode(a), (first * 255).round())
    assert np.array_equal(decode(b), (second * 255).round())
    assert a["image_url"].keys() == {"url"}


def test_rows_of_a_batch_get_their_own_images_and_answers_in_order():
    def answer(body: Any) -> str:
        time.sleep(0.05 if images(body)[0].mean() < 100 else 0)  # the first answers last
        return f"{images(body)[0][0, 0]} {parts(body)[-1]['text']}"

    with serving(answer=answer) as fake:
        model = model_of(fake)
        samples = [
            sample(
                [Turn(role="user", text=f"<image> {'long ' * i}q{i}")],
                display(model, np.full((4 + i, 5), (40 + 60 * i) / 255, np.float32)),
                name=f"s{i}",
            )
            for i in range(3)
        ]
        assert ask(model, *samples) == ["40 q0", "100 long q1", "160 long long q2"]


def test_a_large_image_is_reduced_with_its_aspect_ratio_and_sent_as_jpeg():
    with serving() as fake:
        keys = {"format": "jpeg", "max_side": 64, "quality": 95, "detail": "low"}
        model = model_of(fake, image=keys)
        media = display(model, np.full((200, 100, 3), 0.5, np.float32))
        assert media.data.shape == (3, 64, 32)
        ask(model, sample([Turn(role="user", text="<image> What?")], media))
    part = parts(fake.bodies[0])[0]
    assert part["image_url"]["url"].startswith("data:image/jpeg;")
    assert part["image_url"]["detail"] == "low"
    assert decode(part).shape == (64, 32, 3) and np.abs(decode(part).astype(int) - 128).max() <= 2


def test_a_clip_is_sent_as_evenly_spaced_frames_with_their_times():
    frames = np.stack([np.full((6, 4), i / 255, np.float32) for i in range(9)])
    times = tuple(0.04 * i for i in range(9))
    with serving() as fake:
        model = model_of(fake, image={"max_frames": 3})
        clip = display(model, frames, "clip", frame_times=times)
        ask(model, sample([Turn(role="user", text="<video> What moves?")], clip))
    sent = parts(fake.bodies[0])
    labels = ["Frame 1 of 9 (0.00 s):", "Frame 5 of 9 (0.16 s):", "Frame 9 of 9 (0.32 s):"]
    assert [p["text"] for p in sent if p["type"] == "text"] == [*labels, "What moves?"]
    assert [int(pixels[0, 0]) for pixels in images(fake.bodies[0])] == [0, 4, 8]


def test_a_caption_follows_its_image_and_replaces_a_hidden_one():
    shown = build_turn("user", [MediaPart(caption="a nodule"), " What?"])
    hidden = build_turn("user", [MediaPart(caption="a nodule", shown=False), " What?"])
    with serving() as fake:
        model = model_of(fake)
        ask(model, sample([shown], display(model, noise(0, 4, 4))))
        ask(model, sample([hidden]))
    assert [p.get("text") for p in parts(fake.bodies[0])] == [None, "(a nodule) What?"]
    assert fake.bodies[1]["messages"][0]["content"] == "a nodule What?"


def test_sampling_extra_and_omitted_fields():
    with serving() as fake:
        model = model_of(fake, extra={"repetition_penalty": 1.1}, omit=["seed"])
        model.config.token_limit = "max_completion_tokens"
        ask(model, question("a"), do_sample=True, temperature=0.5, top_p=0.9, seed=3)
    del fake.bodies[0]["messages"]
    assert fake.bodies[0] == {
        "model": "m",
        "max_completion_tokens": 120,
        "temperature": 0.5,
        "top_p": 0.9,
        "repetition_penalty": 1.1,
    }


def test_a_sample_without_a_question_names_the_remedy():
    model = model_of(Fake(url="http://127.0.0.1:9/v1"))
    with pytest.raises(DataError, match=r"sample s has no question; set model\.prompt_path"):
        ask(model, sample([Turn(role="user", text="<image>")], display(model, noise(0, 4, 4))))


# ---- What it cannot do ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "generation",
    [
        {"num_beams": 2},
        {"guidance": 1.0},
        {"do_sample": True, "candidates": 4},
        {"repetition_penalty": 1.1},
        {"no_repeat_ngram_size": 3},
    ],
)
def test_settings_that_an_endpoint_cannot_honour_are_named(generation):
    model = model_of(Fake(url="http://127.0.0.1:9/v1"))
    name = list(generation)[-1]
    with pytest.raises(InputError, match=f"an endpoint cannot honour {name}; remove it"):
        model.check_generation(Generation(**generation))


def test_it_has_no_weights_no_likelihoods_and_no_chat():
    model = model_of(Fake(url="http://127.0.0.1:9/v1"))
    assert model.checkpoint_state() == {} and not list(model.parameters())
    assert not supports(model, Chats) and not supports(model, ComputesLoss)
    with pytest.raises(InputError, match=r"cannot be trained or compute .* likelihoods"):
        model({})  # as tasks that compare likelihoods do
    with pytest.raises(InputError, match="which you can chat with directly"):
        require(model, Chats)


# ---- Failures ------------------------------------------------------------------------------------


def test_a_rate_limit_and_a_server_error_are_repeated():
    faults = [failure(429, "rate_limit_exceeded", retry_after="0.01"), failure(500)]
    with serving(faults=faults) as fake:
        assert ask(model_of(fake), question("a")) == ["yes"]
    assert len(fake.bodies) == 3 and fake.bodies[0] == fake.bodies[2]


def test_a_long_retry_after_is_waited_for(monkeypatch):
    """150 s of waiting pass in the clock of the rate limiter only."""
    waited, real = [0.0], asyncio.sleep

    async def sleep(seconds: float) -> None:
        waited[0] += seconds
        await real(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited[0], time=time.time)
    monkeypatch.setattr(limits, "time", clock)
    with serving(faults=[failure(429, "rate_limit_exceeded", retry_after="150")]) as fake:
        assert ask(model_of(fake), question("a")) == ["yes"]
    assert len(fake.bodies) == 2 and 149 < waited[0] < 302


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (failure(401, "invalid_api_key", f"wrong key {SECRET}"), "HTTP 401 .*api_key_env names"),
        (failure(404, "model_not_found"), r"HTTP 404 .*model \(m\): correct model\.base_url"),
        (failure(429, "insufficient_quota"), "the quota is used up"),
        (failure(302, location="http://elsewhere.example/v1"), "set model.base_url to that"),
    ],
)
def test_failures_that_end_the_run_say_what_to_do(fault, message):
    with serving(faults=[fault]) as fake, pytest.raises(EndpointError, match=message) as error:
        ask(model_of(fake), question("a"))
    assert SECRET not in str(error.value) and len(fake.bodies) == 1


def test_an_unknown_model_is_named():
    with serving(model="other") as fake, pytest.raises(EndpointError, match=r"model \(m\)"):
        ask(model_of(fake), question("a"))


def test_a_refused_connection_is_explained():
    model = model_of(Fake(url="http://127.0.0.1:9/v1"))
    with pytest.raises(EndpointError, match=r"no server is listening .*correct model\.base_url"):
        ask(model, question("a"))


@pytest.mark.parametrize(
    "fault",
    [
        failure(400, "context_length_exceeded"),
        failure(400, "", "This model's maximum context length is 4096 tokens. You sent: secret"),
    ],
)
def test_a_sample_that_is_too_long_is_named_and_the_others_are_answered(fault):
    def answer(body: Any) -> str:
        return parts(body)[0]["text"]

    with serving(answer=answer, faults=[fault]) as fake:
        model = model_of(fake, limits={"concurrency": 1})
        samples = [question("a", "long one"), question("b", "short")]
        with pytest.raises(DataError, match=r"sample long one: .*longer than the model's") as error:
            ask(model, *samples)
        assert "max_side" in str(error.value) and "secret" not in str(error.value)
        assert ask(model, samples[1]) == ["b"]  # from the journal
        with pytest.raises(DataError, match="long one"):
            ask(model, samples[0])  # not sent again
    assert len(fake.bodies) == 2


def test_an_endpoint_that_keeps_failing_names_the_sample():
    with serving(faults=[failure(503)] * 2) as fake:
        retries = {"max_attempts": 2, "initial_wait": 0.01}
        with pytest.raises(DataError, match=r"sample s: .*2 calls: HTTP 503"):
            ask(model_of(fake, retries=retries), question("a"))


# ---- Budget and journal --------------------------------------------------------------------------


def test_the_budget_stops_the_run_and_keeps_the_answers(tmp_path):
    names = [f"q{i}" for i in range(10)]
    settings = {"price": {"input": 1.0, "output": 10.0}}  # 0.0002 per call of 100 + 10 tokens
    with serving(answer=lambda body: parts(body)[0]["text"]) as fake:
        model = model_of(fake, limits={"concurrency": 4, "max_cost": 0.0011}, **settings)
        model.keep_answers(tmp_path)
        with pytest.raises(EndpointError, match=r"of model\.limits\.max_cost 0\.00 used") as error:
            ask(model, *(question(q, q) for q in names), max_new_tokens=10)
        assert str(tmp_path) in str(error.value)
        rows = [json.loads(x) for x in (tmp_path / JOURNAL_FILE).read_text().split("\n") if x]
        kept = [row["answer"] for row in rows if "answer" in row]
        assert 1 <= len(kept) == len(fake.bodies) < 6
        assert math.isclose(sum(row.get("cost", 0) for row in rows), 0.0002 * len(kept))
        with (tmp_path / JOURNAL_FILE).open("a") as file:
            file.write('\n{"key": "cut o')  # a process was killed while writing
        again = model_of(fake, limits={"max_cost": 1.0}, **settings)
        again.keep_answers(tmp_path)
        assert ask(again, *(question(q, q) for q in names), max_new_tokens=10) == names
    assert len(fake.bodies) == 10
    third = model_of(fake)
    third.keep_answers(tmp_path)  # lines after the one that was cut off are read
    assert len(third._session.journal.answers) == 10


def test_equal_requests_are_sent_once():
    with serving() as fake:
        assert ask(model_of(fake), question("a", "s1"), question("a", "s2")) == ["yes", "yes"]
    assert len(fake.bodies) == 1


# ---- Privacy -------------------------------------------------------------------------------------

VENDOR = "https://api.vendor.example/v1"


def config(**keys: Any) -> OpenAIEndpoint.Config:
    return OpenAIEndpoint.Config.from_keys(**{"base_url": VENDOR, "model": "m", **keys})


def test_another_host_is_refused_without_a_statement():
    with pytest.raises(ConfigError, match=r"would be sent to api\.vendor\.example") as error:
        config()
    assert "public_data: true" in str(error.value)
    assert config(public_data=True).public_data
    assert config(zero_retention_agreement="contract 7")
    plain = {"base_url": "http://10.0.0.7:8000/v1", "zero_retention_agreement": "ours"}
    with pytest.raises(ConfigError, match="not encrypted; use https"):
        config(**plain)
    for url in ("http://localhost:8000/v1", "http://127.0.0.1:11434/v1", "http://[::1]:1/v1"):
        assert config(base_url=url)
    with pytest.raises(ConfigError, match="would be sent to 127"):
        config(base_url="https://127.0.0.1.vendor.example/v1")


def test_burned_in_text_is_only_sent_to_this_machine_and_no_header_is(tmp_path):
    header = {"BurnedInAnnotation": "YES", "PatientName": "Doe^Jane", "PatientID": "4711-0815"}
    stored = np.arange(64, dtype=np.uint8).reshape(8, 8)
    path = save(tmp_path / "doe.dcm", dataset(stored, **header))
    turns = [Turn(role="user", text="<image> What?")]
    model = OpenAIEndpoint(config(public_data=True))
    processor = DisplayImage(DisplayImage.Config(), image_spec=model.image_spec)
    media = processor.process(read_media_file(MediaRef(path)))
    with pytest.raises(DataError, match="sample s: the image declares burned-in text"):
        ask(model, sample(turns, media))
    with serving() as fake:
        assert ask(model_of(fake), sample(turns, media)) == ["yes"]
    url = parts(fake.bodies[0])[0]["image_url"]["url"]
    sent = json.dumps(fake.bodies).encode() + base64.b64decode(url.partition(",")[2])
    assert not [word for word in (b"Doe", b"doe", b"Jane", b"4711") if word in sent]


def test_the_key_is_sent_and_written_nowhere(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_KEY", SECRET)
    faults = [failure(500, "", SECRET)]
    with serving(faults=faults) as fake:
        model = model_of(fake, api_key_env="MY_KEY")
        model.keep_answers(tmp_path)
        ask(model, question("What?"))
    assert fake.headers[-1]["authorization"] == f"Bearer {SECRET}"
    written = [path.read_text() for path in tmp_path.iterdir()]
    written += [caplog.text, to_yaml(model.config), json.dumps(model.config.identity())]
    assert SECRET not in " ".join([*written, repr(model.config), repr(model)])
    assert "What?" not in " ".join(written)


def test_without_a_key_none_of_the_users_keys_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with serving() as fake:
        ask(model_of(fake), question("a"))
    assert SECRET not in json.dumps(fake.headers)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"base_url": f"http://me:{SECRET}@localhost/v1"}, "contains a user name or password"),
        ({"base_url": "http://localhost/v1?key=1"}, "must not contain a query"),
        ({"base_url": "localhost:8000"}, "expected http://host:port/v1"),
        ({"extra": {"api_key": SECRET}}, "keys are read from api_key_env only"),
        ({"extra": {"messages": []}}, "is set by other keys"),
        ({"omit": ["messages"]}, "cannot be omitted"),
        ({"limits": {"max_cost": 1.0}}, "needs price"),
        ({"limits": {"concurrency": 0}}, "must be at least 1"),
        ({"image": {"quality": 96}}, "image.quality: must be in"),
        ({"model": ""}, "name the model at the server"),
    ],
)
def test_invalid_settings_are_named(keys, message):
    with pytest.raises(ConfigError, match=message) as error:
        config(**{"base_url": "http://localhost:8000/v1", **keys})
    assert SECRET not in str(error.value)


def test_a_key_that_is_not_set_is_missing(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    (missing,) = config(public_data=True, api_key_env="MY_KEY").missing("model")
    assert missing.key == "model.api_key_env" and "MY_KEY is not set" in missing.problem


def test_limits_do_not_change_the_identity_but_the_request_does():
    base = config(public_data=True).identity()
    limits = {"concurrency": 2, "max_tokens": 5}
    same = config(public_data=True, limits=limits, price={"input": 1, "output": 1})
    assert same.identity() == base
    for change in ({"model": "n"}, {"extra": {"seed": 1}}, {"image": {"format": "jpeg"}}):
        assert config(public_data=True, **change).identity() != base
    assert base["base_url"] == VENDOR and base["model"] == "m"
