"""Faults of an endpoint: retries, messages, timeouts and the circuit breaker."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from tests.curation import fakes
from tests.curation.fakes import (
    captions,
    held_back,
    rewrite_settings,
    run,
    serving,
    write_corpus,
)
from xraygpt.curation.folder import NothingLeft
from xraygpt.curation.llm.limits import CircuitBreaker, RetryPolicy
from xraygpt.curation.pipeline import Unfinished

COUNT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


FORM = "not of the form that was asked for"


@pytest.mark.parametrize(
    ("kind", "stage", "reason"),
    [
        ("429", "failed", "6 calls: HTTP 429 (rate_limit_exceeded)"),
        ("429_after", "failed", "6 calls: HTTP 429 (rate_limit_exceeded)"),
        ("500", "failed", "6 calls: HTTP 500"),
        ("drop", "failed", "6 calls: no connection"),
        ("cut_body", "failed", "6 calls: the response is not JSON"),
        ("wrong_body", "failed", "6 calls: the response has an unexpected shape"),
        ("cut_json", "invalid", f"{FORM}: the answer json_invalid"),
        ("length", "invalid", "cut off at the limit of tokens"),
        (
            "wrong_json",
            "invalid",
            "not of the form that was asked for: (unknown) extra_forbidden, summary missing",
        ),
        ("prior", "invalid", "it compares with an earlier study"),
        ("refusal", "refused", "the model refused"),
    ],
)
def test_each_fault_has_a_reason_and_is_retried_only_if_that_helps(
    tmp_path, kind: str, stage: str, reason: str
):
    """The first three rows fail every time; the others succeed."""
    corpus = write_corpus(tmp_path / "corpus", 8)
    bad = {f"Line {n} ends" for n in range(fakes.FIRST, fakes.FIRST + 3)}
    with serving(kinds=(kind,)) as (url, fake):
        fake.fault = lambda data, _: kind if any(b.encode() in data for b in bad) else ""
        run(corpus, tmp_path / "out", rewrite_settings(url, breaker=CircuitBreaker(failures=10**6)))
    assert held_back(tmp_path / "out") == {
        f"CXR{n}": (stage, reason) for n in range(fakes.FIRST, fakes.FIRST + 3)
    }
    assert len(captions(tmp_path / "out")) == 5
    calls = {"failed": 6, "invalid": 2, "refused": 1}[stage]
    assert fake.stats["calls"] == 5 + 3 * calls


def test_a_hanging_call_times_out(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 2)
    retry_policy = RetryPolicy(max_attempts=2, initial_wait=0.01, timeout=0.2)
    with serving(hang=5.0) as (url, fake):
        fake.fault = lambda data, _: "hang" if b"Line 20001" in data else ""
        run(corpus, tmp_path / "out", rewrite_settings(url, retry_policy=retry_policy))
    assert held_back(tmp_path / "out") == {
        "CXR20001": ("failed", "2 calls: no answer within 0.2 s")
    }


def test_a_response_sent_byte_by_byte_times_out(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus", 1)

    async def drip(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100\r\n\r\n")
        for _ in range(100):
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.1)

    monkeypatch.setattr(fakes.fake_endpoint, "serve", lambda _, r, w: drip(r, w))
    with serving() as (url, _), pytest.raises(NothingLeft, match=r"no answer within 0\.4 s"):
        run(
            corpus,
            tmp_path / "out",
            rewrite_settings(url, retry_policy=RetryPolicy(max_attempts=1, timeout=0.4)),
        )


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, {"message": "zebra"}, "the key is wrong"),
        (404, {"message": "zebra"}, "no such address or model"),
        (429, {"message": "zebra", "code": "insufficient_quota"}, "the quota is used up"),
        (400, {"message": "zebra", "param": "temperature"}, "--temperature none"),
        (400, {"message": "zebra"}, "for each of the first 10 requests"),
        (307, {"message": "zebra"}, "redirects to another address"),
    ],
)
def test_permanent_errors_stop_the_run_and_name_the_remedy(
    corpus, tmp_path, monkeypatch, status: int, body: dict, message: str
):
    async def chat(fake, data, headers):
        fake.stats["calls"] += 1
        more = ("location: http://192.0.2.1/v1",) if status == 307 else ()
        text = json.dumps({"error": body}).encode()
        return fakes.fake_endpoint.Response(status, text, more)

    monkeypatch.setattr(fakes.fake_endpoint, "chat", chat)
    with serving() as (url, fake), pytest.raises(Unfinished, match="0 of 40") as caught:
        run(corpus, tmp_path, rewrite_settings(url))
    assert message in str(caught.value)
    assert "zebra" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert fake.stats["calls"] < COUNT
    assert not (tmp_path / "filter_cap.json").exists()


@pytest.mark.slow
def test_an_endpoint_that_is_down_stops_the_run_and_loses_no_row(corpus, tmp_path):
    with serving() as (url, fake):
        fake.fault = lambda *_: "500"
        breaker = CircuitBreaker(failures=20, cooldown=0.05)
        with pytest.raises(Unfinished, match="every call fails: HTTP 500"):
            run(corpus, tmp_path, rewrite_settings(url, breaker=breaker))
        assert fake.stats["calls"] < 20 + 16 + 5  # rather than 6 per row
        fake.fault = lambda *_: ""
        assert run(corpus, tmp_path, rewrite_settings(url)).manifest["accepted"] == COUNT


def test_a_trial_call_with_a_permanent_error_closes_the_breaker(corpus, tmp_path, monkeypatch):
    """HTTP 500 until the breaker opens, then 400 (content filter) for each call: no deadlock."""
    real = fakes.fake_endpoint.chat

    async def chat(fake, data, headers):
        if fake.stats["calls"] < 12:
            return await real(fake, data, headers)
        fake.stats["calls"] += 1
        text = json.dumps({"error": {"message": "x", "code": "content_filter"}}).encode()
        return fakes.fake_endpoint.Response(400, text)

    monkeypatch.setattr(fakes.fake_endpoint, "chat", chat)
    with serving() as (url, fake):
        fake.fault = lambda *_: "500"
        settings = rewrite_settings(
            url, breaker=CircuitBreaker(failures=10, cooldown=0.1), partial=True
        )
        with pytest.raises(NothingLeft, match="refused, such as: HTTP 400"):
            run(corpus, tmp_path, settings)


def test_no_text_from_the_endpoint_in_messages(corpus, tmp_path, monkeypatch):
    """Its error has an invalid parameter and code, and quotes the report."""

    async def chat(fake, data, headers):
        text = {"error": {"message": "quokka", "param": ["quokka"], "code": {"quokka": 1}}}
        return fakes.fake_endpoint.Response(400, json.dumps(text).encode())

    monkeypatch.setattr(fakes.fake_endpoint, "chat", chat)
    with serving() as (url, _), pytest.raises(Unfinished, match="HTTP 400 for each") as caught:
        run(corpus, tmp_path, rewrite_settings(url))
    assert "quokka" not in str(caught.value)


def test_a_missing_server_stops_the_run(corpus, tmp_path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
        with pytest.raises(Unfinished, match="no server is listening there; start it"):
            run(corpus, tmp_path, rewrite_settings(url))
