"""The Batch API: rounds of files, and resumption from every point a run can stop at."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from tests.curation import fakes
from tests.curation.fakes import captions, rewrite_settings, run, serving, write_corpus
from xraygpt.common.errors import InputError
from xraygpt.curation.llm import batch
from xraygpt.curation.llm.batch import BatchRunner
from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.limits import Limits, RetryPolicy
from xraygpt.curation.llm.prices import Price
from xraygpt.curation.llm.prompts import load_prompt
from xraygpt.curation.pipeline import Unfinished

COUNT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


@pytest.mark.slow
def test_batches_give_the_same_output_as_single_calls(corpus, tmp_path):
    with serving() as (url, _):
        run(corpus, tmp_path / "single", rewrite_settings(url))
        result = run(corpus, tmp_path / "batch", rewrite_settings(url, batch=True))
    assert captions(tmp_path / "batch") == captions(tmp_path / "single")
    assert result.calls <= 5
    for name in ("filter_cap.json", "held_back.csv", "manifest.json"):
        assert (tmp_path / "batch" / name).read_bytes() == (tmp_path / "single" / name).read_bytes()


def test_failed_lines_and_repairs_make_further_rounds(corpus, tmp_path):
    with serving(faults=0.5, seed=3) as (url, fake):
        result = run(corpus, tmp_path, rewrite_settings(url, batch=True))
        with (tmp_path / "held_back.csv").open(newline="") as file:
            stages = {row["source_id"]: row["stage"] for row in csv.DictReader(file)}
        assert fake.stats["batches"] > 2
    assert result.manifest["accepted"] + len(stages) == COUNT
    assert result.manifest["accepted_after_repair"] > 0
    assert set(stages.values()) <= {"refused", "invalid", "failed"}


@pytest.mark.slow
def test_files_stay_under_the_limits(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_LINES", 15)
    with serving() as (url, fake):
        run(corpus, tmp_path / "lines", rewrite_settings(url, batch=True))
        assert sorted(
            len(f.splitlines()) for n, f in fake.files.items() if n.startswith("file")
        ) == [10, 15, 15]
    monkeypatch.setattr(batch, "MAX_BYTES", 20_000)
    with serving() as (url, fake):
        run(corpus, tmp_path / "bytes", rewrite_settings(url, batch=True))
        sizes = [len(f) for n, f in fake.files.items() if n.startswith("file")]
    assert len(sizes) > 3
    assert max(sizes) <= 20_000


@pytest.mark.parametrize(
    "stopped_after", ["add_batch", "uploaded", "created", "sent", "recorded", "read"]
)
def test_a_stopped_run_sends_nothing_twice(corpus, tmp_path, monkeypatch, stopped_after: str):
    """Stopped as if killed at each step between saving and sending; the next run continues."""

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    with serving() as (url, fake), monkeypatch.context() as patch:
        real_update, real_record = Ledger.update_batch, BatchRunner._record
        recorded = []

        def update_batch(self, number, state, **ids):
            if stopped_after == "created" and state == "sent":
                raise KilledError
            real_update(self, number, state, **ids)
            if stopped_after == state:
                raise KilledError

        def record(self, line, response):
            recorded.append(line)
            if stopped_after == "recorded" and len(recorded) == 20:
                raise KilledError
            return real_record(self, line, response)

        patch.setattr(Ledger, "update_batch", update_batch)
        patch.setattr(BatchRunner, "_record", record)
        if stopped_after == "add_batch":
            patch.setattr(BatchRunner, "_send", killed)
        with pytest.raises(KilledError):
            run(corpus, tmp_path, rewrite_settings(url, batch=True))
        patch.undo()
        result = run(corpus, tmp_path, rewrite_settings(url, batch=True))
        assert fake.stats["files"] == fake.stats["batches"] == 1
        assert result.manifest["accepted"] == len(captions(tmp_path)) == COUNT
        assert result.usage.tokens == sum(  # each answer was counted once
            (row["body"]["usage"]["total_tokens"])
            for name, data in fake.files.items()
            if "output" in name
            for row in [json.loads(line)["response"] for line in data.splitlines()]
        )


def test_a_budget_limits_a_batch_and_its_discount_applies(corpus, tmp_path):
    price = Price(input=1.0, output=1.0, batch_discount=0.5)
    with serving() as (url, _):
        settings = rewrite_settings(url, batch=True, price=price, limits=Limits(max_cost=0.01))
        with pytest.raises(Unfinished, match="could exceed the budget"):
            run(corpus, tmp_path, settings)
        with Ledger(tmp_path) as ledger:
            usage = ledger.total_usage()
    assert 0 < usage.cost <= 0.01
    assert usage.cost == pytest.approx(usage.tokens / 2e6)


def test_lines_without_an_answer_fail_with_the_number_of_batches(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 4)
    with serving(kinds=("500",)) as (url, fake):
        fake.fault = lambda data, _: "500" if b"Line 20002" in data else ""
        retry_policy = RetryPolicy(max_attempts=3, initial_wait=0.01)
        settings = rewrite_settings(url, batch=True, retry_policy=retry_policy)
        result = run(corpus, tmp_path / "out", settings)
        assert fake.stats["batches"] == 3
    assert result.manifest["left_out"] == {"failed": 1}
    text = (tmp_path / "out" / "held_back.csv").read_text()
    assert "CXR20002" in text
    assert "3 batches: no answer" in text


@pytest.mark.slow
def test_sent_batches_must_be_collected(corpus, tmp_path, monkeypatch):
    """By a later run, also with another prompt; a run without --batch refuses to start."""

    def stopped(*_):
        raise KeyboardInterrupt

    with serving() as (url, fake):
        with monkeypatch.context() as patch:
            patch.setattr(BatchRunner, "_collect", stopped)
            with pytest.raises(KeyboardInterrupt):
                run(corpus, tmp_path, rewrite_settings(url, batch=True))
        with pytest.raises(InputError, match="add --batch to collect them"):
            run(corpus, tmp_path, rewrite_settings(url))
        other = Endpoint(model="fake", base_url=url.replace("127.0.0.1", "localhost"))
        with pytest.raises(InputError, match="collect them from there"):
            run(corpus, tmp_path, rewrite_settings(url, batch=True, endpoint=other))
        prompt = dataclasses.replace(load_prompt("summarise"), system="Another.")
        result = run(corpus, tmp_path, rewrite_settings(url, batch=True, prompt=prompt))
        assert fake.stats["batches"] == 2
        assert result.usage.tokens == sum(
            json.loads(line)["response"]["body"]["usage"]["total_tokens"]
            for name, data in fake.files.items() if "output" in name
            for line in data.splitlines()
        )  # fmt: skip
        run(corpus, tmp_path, rewrite_settings(url))  # nothing is left to collect


@pytest.mark.parametrize("problem", ["failed", "deleted"])
def test_a_failed_or_deleted_batch_is_sent_again(corpus, tmp_path, problem: str):
    with serving() as (url, fake):

        def spoil() -> None:
            if problem == "deleted":
                fake.batches.clear()
            for stored in fake.batches.values():
                error = {"code": "token_limit_exceeded", "message": "quokka"}
                stored.update(status="failed", output_file_id=None, errors={"data": [error]})

        real = fakes.fake_endpoint.new_batch

        def new_batch(*args):
            response = real(*args)
            spoil()
            return response

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fakes.fake_endpoint, "new_batch", new_batch)
            patch.setattr(fakes.fake_endpoint, "poll", lambda batch: None)
            message = "token_limit_exceeded" if problem == "failed" else "no longer exists"
            with pytest.raises(Unfinished, match=message) as caught:
                run(corpus, tmp_path, rewrite_settings(url, batch=True))
        assert "quokka" not in str(caught.value)
        result = run(corpus, tmp_path, rewrite_settings(url, batch=True))
        assert result.manifest["accepted"] == COUNT
