"""Single calls: answers, repairs, resumed runs and interrupts."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import stat
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.curation import fakes
from tests.curation.fakes import (
    captions,
    held_back,
    report_texts,
    rewrite_settings,
    run,
    serving,
    write_corpus,
)
from xraygpt.curation.folder import NothingLeft
from xraygpt.curation.llm import calls
from xraygpt.curation.llm.ledger import LEDGER_FILE
from xraygpt.curation.llm.limits import CircuitBreaker, Limits, RetryPolicy
from xraygpt.curation.llm.prompts import load_prompt
from xraygpt.curation.pipeline import Unfinished
from xraygpt.curation.rules import clean

COUNT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


@pytest.mark.slow
def test_answers_become_the_training_folder(corpus, tmp_path):
    with serving() as (url, fake):
        result = run(corpus, tmp_path, rewrite_settings(url))
    expected = {
        f"CXR{n}": clean(list(report_texts(n))).text
        for n in range(fakes.FIRST, fakes.FIRST + COUNT)
    }
    assert captions(tmp_path) == expected
    assert result.manifest["accepted"] == fake.stats["calls"] == COUNT
    assert result.manifest["acceptance"]["rate"] == 1
    assert result.manifest["prompt"]["sha256"] == load_prompt("summarise").sha256
    assert result.usage.tokens == sum(fake.tokens)
    assert stat.S_IMODE((tmp_path / LEDGER_FILE).stat().st_mode) == 0o600


@pytest.mark.slow
def test_failed_rows_are_retried_and_finished_ones_are_not(corpus, tmp_path):
    with serving() as (url, fake):
        fake.fault = lambda data, _: "500" if b"Line 20003" in data else ""
        run(corpus, tmp_path, rewrite_settings(url))
        assert set(held_back(tmp_path)) == {"CXR20003"}
        fake.fault = lambda *_: ""
        before = fake.stats["calls"]
        again = run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] == before + 1
        assert again.manifest["accepted"] == COUNT
        assert not held_back(tmp_path)
        run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] == before + 1


@pytest.mark.slow
def test_the_repair_call_has_the_reasons_and_is_the_last(corpus, tmp_path):
    seen: list[dict] = []

    def fault(data: bytes, _: str) -> str:
        request = json.loads(data)
        seen.append(request)
        return "prior" if len(request["messages"]) == 2 else ""

    with serving() as (url, fake):
        fake.fault = fault
        result = run(corpus, tmp_path, rewrite_settings(url))
    assert result.manifest["accepted_after_repair"] == result.manifest["accepted"] == COUNT
    repairs = [r["messages"] for r in seen if len(r["messages"]) == 4]
    assert len(repairs) == COUNT
    assert "Unchanged since" in repairs[0][2]["content"]
    assert "it compares with an earlier study" in repairs[0][3]["content"]


@pytest.mark.slow
def test_a_changed_prompt_repeats_only_the_rows_that_depend_on_it(corpus, tmp_path):
    prompt = load_prompt("summarise")
    with serving() as (url, fake):
        fake.fault = lambda data, _: (
            "prior" if b"Line 20005" in data and b"cannot be used" not in data else ""
        )
        run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] == COUNT + 1
        other = dataclasses.replace(prompt, repair=f"{prompt.repair} Please.")
        run(corpus, tmp_path, rewrite_settings(url, prompt=other))
        assert fake.stats["calls"] == COUNT + 2  # only one row had a repair
        other = dataclasses.replace(prompt, system=f"{prompt.system} Please.")
        run(corpus, tmp_path, rewrite_settings(url, prompt=other))
        assert fake.stats["calls"] == 2 * COUNT + 3
        run(corpus, tmp_path, rewrite_settings(url, prompt=other))
        assert fake.stats["calls"] == 2 * COUNT + 3


def test_partial_writes_available_answers_and_lists_the_rest(corpus, tmp_path):
    with serving() as (url, _):
        limits = Limits(concurrency=2, max_tokens=9_000)
        result = run(corpus, tmp_path, rewrite_settings(url, limits=limits, partial=True))
    stages = Counter(stage for stage, _ in held_back(tmp_path).values())
    assert 0 < result.manifest["accepted"] == COUNT - stages["todo"] < COUNT


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no signal handlers in Windows' event loop")
def test_ctrl_c_finishes_calls_in_progress(corpus, tmp_path):
    with serving(latency=0.15) as (url, fake):

        def interrupt() -> None:
            while fake.stats["calls"] < 6:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Unfinished, match="interrupted") as caught:
            run(corpus, tmp_path, rewrite_settings(url, limits=Limits(concurrency=4)))
        thread.join()
        assert caught.value.exit_code == 130
        answered = fake.stats["calls"]
        assert f"{answered} of {COUNT} have an answer" in str(caught.value)
        run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] == COUNT


@pytest.mark.slow
def test_no_report_text_in_logs_messages_or_tables(tmp_path, caplog, capfd, monkeypatch):
    """Canary words in the reports, every kind of fault, and the SDK's debug log switched on."""
    canary = "quokka"
    corpus = write_corpus(tmp_path / "corpus", 60)
    for path in (corpus / "ecgen-radiology").iterdir():
        text = path.read_text().replace("Line", f"{canary} line")
        path.write_text(text + (f"<{canary}" if path.stem.endswith("7") else ""))
    monkeypatch.setenv("OPENAI_LOG", "debug")
    logging.getLogger("openai").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    retry_policy = RetryPolicy(max_attempts=2, initial_wait=0.01, max_wait=0.02, timeout=0.5)
    with serving(faults=0.6, hang=2.0) as (url, _):
        breaker = CircuitBreaker(10**6)
        settings = rewrite_settings(url, retry_policy=retry_policy, breaker=breaker)
        run(corpus, tmp_path / "out", settings)
    out, err = capfd.readouterr()
    files = [(tmp_path / "out" / n).read_text() for n in ("held_back.csv", "manifest.json")]
    assert any(canary in caption.lower() for caption in captions(tmp_path / "out").values())
    for text in (out, err, caplog.text, *files):
        assert canary not in text.lower()
    assert len(held_back(tmp_path / "out")) > 10


def test_answers_before_an_unexpected_error_are_saved(corpus, tmp_path, monkeypatch):
    real, checked = calls.check_reply, []

    def broken(*args):
        checked.append(1)
        if len(checked) == 10:
            raise RuntimeError("a bug")
        return real(*args)

    monkeypatch.setattr(calls, "check_reply", broken)
    with serving() as (url, fake):
        with pytest.raises(RuntimeError, match="a bug"):
            run(corpus, tmp_path, rewrite_settings(url, limits=Limits(concurrency=4)))
        before = fake.stats["calls"]
        monkeypatch.setattr(calls, "check_reply", real)
        run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] <= before + COUNT - 9 + 4
    assert len(captions(tmp_path)) == COUNT


def test_each_picture_is_sent_and_gets_its_own_text(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 3)
    seen: list[dict] = []
    with serving() as (url, fake):
        fake.fault = lambda data, _: seen.append(json.loads(data)) or ""
        result = run(corpus, tmp_path / "out", rewrite_settings(url, "describe"))
    assert result.manifest["accepted"] == 3
    parts = seen[0]["messages"][1]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert all(c.startswith("This is") for c in captions(tmp_path / "out").values())


@pytest.mark.slow
def test_a_rejected_first_answer_is_not_requested_again(corpus, tmp_path):
    """After a run that stopped between the two calls, the next one requests only the repair."""
    with serving() as (url, fake):
        fake.fault = lambda data, _: "prior" if b"cannot be used" not in data else "500"
        settings = rewrite_settings(
            url, retry_policy=RetryPolicy(max_attempts=1), breaker=CircuitBreaker(10**6)
        )
        with pytest.raises(NothingLeft, match="1 call: HTTP 500"):
            run(corpus, tmp_path, settings)
        before = fake.stats["calls"]
        assert before == 2 * COUNT
        fake.fault = lambda *_: ""
        result = run(corpus, tmp_path, rewrite_settings(url))
        assert fake.stats["calls"] == before + COUNT
    assert result.manifest["accepted_after_repair"] == COUNT
