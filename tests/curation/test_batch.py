"""The Batch API: rounds of files, resumed from wherever a run was stopped."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from tests.curation import endpoint as fakes
from tests.curation.endpoint import captions, rewriting, run, serving, write_corpus
from xraygpt.common.errors import InputError
from xraygpt.curation import batch
from xraygpt.curation.endpoint import Endpoint, Price
from xraygpt.curation.engine import Limits
from xraygpt.curation.ledger import Ledger
from xraygpt.curation.limits import Patience
from xraygpt.curation.pipeline import Unfinished
from xraygpt.curation.prompts import load_prompt

COUNT = 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


@pytest.mark.slow
def test_batches_say_what_single_calls_say(corpus, tmp_path):
    with serving() as (url, _):
        run(corpus, tmp_path / "single", rewriting(url))
        made = run(corpus, tmp_path / "batch", rewriting(url, batch=True))
    assert captions(tmp_path / "batch") == captions(tmp_path / "single")
    assert made.calls <= 5
    for name in ("filter_cap.json", "held_back.csv", "manifest.json"):
        one, other = ((tmp_path / way / name).read_bytes() for way in ("batch", "single"))
        assert one == other


def test_failed_lines_and_repairs_make_further_rounds(corpus, tmp_path):
    with serving(faults=0.5, seed=3) as (url, fake):
        made = run(corpus, tmp_path, rewriting(url, batch=True))
        with (tmp_path / "held_back.csv").open(newline="") as file:
            held = {row["source_id"]: row["stage"] for row in csv.DictReader(file)}
        assert fake.stats["batches"] > 2
    assert made.manifest["accepted"] + len(held) == COUNT
    assert made.manifest["accepted_after_repair"] > 0
    assert set(held.values()) <= {"refused", "invalid", "failed"}


@pytest.mark.slow
def test_files_stay_under_the_limits(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_LINES", 15)
    with serving() as (url, fake):
        run(corpus, tmp_path / "lines", rewriting(url, batch=True))
        assert sorted(
            len(f.splitlines()) for n, f in fake.files.items() if n.startswith("file")
        ) == [10, 15, 15]
    monkeypatch.setattr(batch, "MAX_BYTES", 20_000)
    with serving() as (url, fake):
        run(corpus, tmp_path / "bytes", rewriting(url, batch=True))
        sizes = [len(f) for n, f in fake.files.items() if n.startswith("file")]
    assert len(sizes) > 3
    assert max(sizes) <= 20_000


@pytest.mark.parametrize(
    "stopped_after", ["add_batch", "uploaded", "created", "sent", "judged", "read"]
)
def test_a_stopped_run_sends_nothing_twice(corpus, tmp_path, monkeypatch, stopped_after: str):
    """Stopped (as if killed) at each step between writing and sending; the next run goes on."""

    class KilledError(BaseException):
        pass

    def killed(*_, **__):
        raise KilledError

    with serving() as (url, fake), monkeypatch.context() as patch:
        real_set, real_judge, judged = Ledger.set_batch, batch._Run._judge, []

        def set_batch(self, number, state, **ids):
            if stopped_after == "created" and state == "sent":
                raise KilledError
            real_set(self, number, state, **ids)
            if stopped_after == state:
                raise KilledError

        def judge(self, line, response):
            judged.append(line)
            if stopped_after == "judged" and len(judged) == 20:
                raise KilledError
            return real_judge(self, line, response)

        patch.setattr(Ledger, "set_batch", set_batch)
        patch.setattr(batch._Run, "_judge", judge)
        if stopped_after == "add_batch":
            patch.setattr(batch._Run, "_send", killed)
        with pytest.raises(KilledError):
            run(corpus, tmp_path, rewriting(url, batch=True))
        patch.undo()
        made = run(corpus, tmp_path, rewriting(url, batch=True))
        assert fake.stats["files"] == fake.stats["batches"] == 1
        assert made.manifest["accepted"] == len(captions(tmp_path)) == COUNT
        assert made.spent.tokens == sum(  # each answer was counted once
            (row["body"]["usage"]["total_tokens"])
            for name, data in fake.files.items()
            if "output" in name
            for row in [json.loads(line)["response"] for line in data.splitlines()]
        )


def test_a_budget_cuts_a_batch_and_its_discount_counts(corpus, tmp_path):
    price = Price(input=1.0, output=1.0, batch_discount=0.5)
    with serving() as (url, _):
        how = rewriting(url, batch=True, price=price, limits=Limits(max_money=0.01))
        with pytest.raises(Unfinished, match="could overstep the budget"):
            run(corpus, tmp_path, how)
        with Ledger(tmp_path) as ledger:
            spent = ledger.spent()
    assert 0 < spent.money <= 0.01
    assert spent.money == pytest.approx(spent.tokens / 2e6)


def test_lines_that_never_come_back_fail_with_their_count(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 4)
    with serving(kinds=("500",)) as (url, fake):
        fake.fault = lambda data, _: "500" if b"Line 20002" in data else ""
        patience = Patience(attempts=3, first_wait=0.01)
        made = run(corpus, tmp_path / "out", rewriting(url, batch=True, patience=patience))
        assert fake.stats["batches"] == 3
    assert made.manifest["left_out"] == {"failed": 1}
    text = (tmp_path / "out" / "held_back.csv").read_text()
    assert "CXR20002" in text
    assert "3 batches: no answer" in text


@pytest.mark.slow
def test_batches_that_were_sent_are_not_forgotten(corpus, tmp_path, monkeypatch):
    """Neither by a run without --batch nor by one with another prompt."""

    def stopped(*_):
        raise KeyboardInterrupt

    with serving() as (url, fake):
        with monkeypatch.context() as patch:
            patch.setattr(batch._Run, "_collect", stopped)
            with pytest.raises(KeyboardInterrupt):
                run(corpus, tmp_path, rewriting(url, batch=True))
        with pytest.raises(InputError, match="add --batch to collect them"):
            run(corpus, tmp_path, rewriting(url))
        other = Endpoint(model="fake", base_url=url.replace("127.0.0.1", "localhost"))
        with pytest.raises(InputError, match="collect them there"):
            run(corpus, tmp_path, rewriting(url, batch=True, endpoint=other))
        prompt = dataclasses.replace(load_prompt("summarise"), system="Another.")
        made = run(corpus, tmp_path, rewriting(url, batch=True, prompt=prompt))
        assert fake.stats["batches"] == 2
        assert made.spent.tokens == sum(
            json.loads(line)["response"]["body"]["usage"]["total_tokens"]
            for name, data in fake.files.items() if "output" in name
            for line in data.splitlines()
        )  # fmt: skip
        run(corpus, tmp_path, rewriting(url))  # nothing is left to collect


@pytest.mark.parametrize("how", ["failed", "gone"])
def test_a_batch_that_was_refused_or_is_gone_is_sent_anew(corpus, tmp_path, how: str):
    with serving() as (url, fake):

        def spoil() -> None:
            if how == "gone":
                fake.batches.clear()
            for made in fake.batches.values():
                error = {"code": "token_limit_exceeded", "message": "quokka"}
                made.update(status="failed", output_file_id=None, errors={"data": [error]})

        real = fakes.fake_endpoint.new_batch

        def new_batch(*given):
            made = real(*given)
            spoil()
            return made

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fakes.fake_endpoint, "new_batch", new_batch)
            patch.setattr(fakes.fake_endpoint, "poll", lambda batch: None)
            said = "token_limit_exceeded" if how == "failed" else "not there any more"
            with pytest.raises(Unfinished, match=said) as caught:
                run(corpus, tmp_path, rewriting(url, batch=True))
        assert "quokka" not in str(caught.value)
        made = run(corpus, tmp_path, rewriting(url, batch=True))
        assert made.manifest["accepted"] == COUNT
