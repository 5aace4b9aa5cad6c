"""A language model that errs: every row ends done or held back with a reason, and is paid once."""

from __future__ import annotations

import asyncio
import csv
import json
import logging
import os
import signal
import socket
import stat
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.curation import endpoint as fakes
from tests.curation.endpoint import captions, rewriting, run, serving, texts, write_corpus
from xraygpt.common.errors import InputError
from xraygpt.curation.endpoint import Endpoint, Price
from xraygpt.curation.engine import Limits
from xraygpt.curation.folder import NothingLeft
from xraygpt.curation.ledger import NAME, Ledger, LedgerError, Row
from xraygpt.curation.limits import Breaker, Patience
from xraygpt.curation.pipeline import Unfinished
from xraygpt.curation.prompts import Prompt, load_prompt
from xraygpt.curation.rules import clean

COUNT = 40
FORM = "not of the form that was asked for"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), COUNT)


def held_back(out: Path) -> dict[str, tuple[str, str]]:
    with (out / "held_back.csv").open(newline="") as file:
        return {row["source_id"]: (row["stage"], row["reason"]) for row in csv.DictReader(file)}


@pytest.mark.slow
def test_answers_become_the_training_folder(corpus, tmp_path):
    with serving() as (url, fake):
        made = run(corpus, tmp_path, rewriting(url))
    expected = {
        f"CXR{n}": clean(list(texts(n))).text for n in range(fakes.FIRST, fakes.FIRST + COUNT)
    }
    assert captions(tmp_path) == expected
    assert made.manifest["accepted"] == fake.stats["calls"] == COUNT
    assert made.manifest["acceptance"]["rate"] == 1
    assert made.manifest["prompt"]["sha256"] == load_prompt("summarise").sha256
    assert made.spent.tokens == sum(fake.tokens)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("kind", "stage", "reason"),
    [
        ("429", "failed", "6 calls: HTTP 429 (rate_limit_exceeded)"),
        ("429_after", "failed", "6 calls: HTTP 429 (rate_limit_exceeded)"),
        ("500", "failed", "6 calls: HTTP 500"),
        ("drop", "failed", "6 calls: no connection"),
        ("cut_body", "failed", "6 calls: an answer that is no JSON"),
        ("wrong_body", "failed", "6 calls: an answer of another shape"),
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
def test_each_fault_is_named_and_retried_only_where_that_helps(
    tmp_path, kind: str, stage: str, reason: str
):
    """The first three rows err for ever; the rest go on."""
    corpus = write_corpus(tmp_path / "corpus", 8)
    bad = {f"Line {n} ends" for n in range(fakes.FIRST, fakes.FIRST + 3)}
    with serving(kinds=(kind,)) as (url, fake):
        fake.fault = lambda data, _: kind if any(b.encode() in data for b in bad) else ""
        run(corpus, tmp_path / "out", rewriting(url, breaker=Breaker(failures=10**6)))
    assert held_back(tmp_path / "out") == {
        f"CXR{n}": (stage, reason) for n in range(fakes.FIRST, fakes.FIRST + 3)
    }
    assert len(captions(tmp_path / "out")) == 5
    calls = {"failed": 6, "invalid": 2, "refused": 1}[stage]
    assert fake.stats["calls"] == 5 + 3 * calls


def test_a_hanging_endpoint_is_left_after_the_timeout(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 2)
    patience = Patience(attempts=2, first_wait=0.01, timeout=0.2)
    with serving(hang=5.0) as (url, fake):
        fake.fault = lambda data, _: "hang" if b"Line 20001" in data else ""
        run(corpus, tmp_path / "out", rewriting(url, patience=patience))
    assert held_back(tmp_path / "out") == {
        "CXR20001": ("failed", "2 calls: no answer within 0.2 s")
    }


@pytest.mark.slow
def test_failed_rows_are_asked_again_and_finished_ones_never(corpus, tmp_path):
    with serving() as (url, fake):
        fake.fault = lambda data, _: "500" if b"Line 20003" in data else ""
        run(corpus, tmp_path, rewriting(url))
        assert set(held_back(tmp_path)) == {"CXR20003"}
        fake.fault = lambda *_: ""
        before = fake.stats["calls"]
        again = run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] == before + 1
        assert again.manifest["accepted"] == COUNT
        assert not held_back(tmp_path)
        run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] == before + 1


@pytest.mark.slow
def test_a_repair_gets_the_reasons_and_is_the_last_call(corpus, tmp_path):
    seen: list[dict] = []

    def fault(data: bytes, _: str) -> str:
        request = json.loads(data)
        seen.append(request)
        return "prior" if len(request["messages"]) == 2 else ""

    with serving() as (url, fake):
        fake.fault = fault
        made = run(corpus, tmp_path, rewriting(url))
    assert made.manifest["accepted_after_repair"] == made.manifest["accepted"] == COUNT
    repairs = [r["messages"] for r in seen if len(r["messages"]) == 4]
    assert len(repairs) == COUNT
    assert "Unchanged since" in repairs[0][2]["content"]
    assert "it compares with an earlier study" in repairs[0][3]["content"]


def changed(prompt: Prompt, **parts: str) -> Prompt:
    return Prompt(**{**{k: getattr(prompt, k) for k in prompt.__dataclass_fields__}, **parts})


@pytest.mark.slow
def test_a_changed_prompt_asks_again_only_what_it_touches(corpus, tmp_path):
    prompt = load_prompt("summarise")
    with serving() as (url, fake):
        fake.fault = lambda data, _: (
            "prior" if b"Line 20005" in data and b"cannot be used" not in data else ""
        )
        run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] == COUNT + 1
        other = changed(prompt, repair=f"{prompt.repair} Please.")
        run(corpus, tmp_path, rewriting(url, prompt=other))
        assert fake.stats["calls"] == COUNT + 2  # the repair of the one row that had one
        other = changed(prompt, system=f"{prompt.system} Please.")
        run(corpus, tmp_path, rewriting(url, prompt=other))
        assert fake.stats["calls"] == 2 * COUNT + 3
        run(corpus, tmp_path, rewriting(url, prompt=other))
        assert fake.stats["calls"] == 2 * COUNT + 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, {"message": "zebra"}, "the key is wrong"),
        (404, {"message": "zebra"}, "no such address or model"),
        (429, {"message": "zebra", "code": "insufficient_quota"}, "the quota is used up"),
        (400, {"message": "zebra", "param": "temperature"}, "--temperature none"),
        (400, {"message": "zebra"}, "to each of the first 10 requests"),
        (307, {"message": "zebra"}, "redirects elsewhere"),
    ],
)
def test_what_no_retry_mends_stops_the_run_with_its_remedy(
    corpus, tmp_path, monkeypatch, status: int, body: dict, said: str
):
    async def chat(fake, data, headers):
        fake.stats["calls"] += 1
        more = ("location: http://192.0.2.1/v1",) if status == 307 else ()
        text = json.dumps({"error": body}).encode()
        return fakes.fake_endpoint.Response(status, text, more)

    monkeypatch.setattr(fakes.fake_endpoint, "chat", chat)
    with serving() as (url, fake), pytest.raises(Unfinished, match="0 of 40") as caught:
        run(corpus, tmp_path, rewriting(url))
    assert said in str(caught.value)
    assert "zebra" not in str(caught.value)
    assert caught.value.exit_code == 1
    assert fake.stats["calls"] < COUNT
    assert not (tmp_path / "filter_cap.json").exists()


@pytest.mark.slow
def test_an_endpoint_that_is_down_stops_the_run_and_loses_no_row(corpus, tmp_path):
    with serving() as (url, fake):
        fake.fault = lambda *_: "500"
        breaker = Breaker(failures=20, cooldown=0.05)
        with pytest.raises(Unfinished, match="fails every time: HTTP 500"):
            run(corpus, tmp_path, rewriting(url, breaker=breaker))
        assert fake.stats["calls"] < 20 + 16 + 5  # not 6 for each row
        fake.fault = lambda *_: ""
        assert run(corpus, tmp_path, rewriting(url)).manifest["accepted"] == COUNT


@pytest.mark.slow
def test_the_budget_is_never_overstepped(corpus, tmp_path):
    with serving() as (url, fake):
        price = Price(input=1.0, output=1.0)
        limits = Limits(concurrency=4, max_money=0.01)
        with pytest.raises(Unfinished, match=r"--max-\w+ [\d.,]+ are used over all runs"):
            run(corpus, tmp_path, rewriting(url, limits=limits, price=price))
        assert 0 < sum(fake.tokens) <= 10_000
        some = fake.stats["calls"]
        limits = Limits(max_tokens=10**9)
        made = run(corpus, tmp_path, rewriting(url, limits=limits, price=price))
        assert fake.stats["calls"] == COUNT  # what was paid for is not asked again
        assert made.calls == COUNT - some
        assert made.spent.money == pytest.approx(sum(fake.tokens) / 1e6)


def test_partial_writes_what_is_there_and_names_the_rest(corpus, tmp_path):
    with serving() as (url, _):
        limits = Limits(concurrency=2, max_tokens=9_000)
        made = run(corpus, tmp_path, rewriting(url, limits=limits, partial=True))
    stages = Counter(stage for stage, _ in held_back(tmp_path).values())
    assert 0 < made.manifest["accepted"] == COUNT - stages["todo"] < COUNT


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no signal handlers in Windows' event loop")
def test_ctrl_c_finishes_what_is_under_way(corpus, tmp_path):
    with serving(latency=0.15) as (url, fake):

        def interrupt() -> None:
            while fake.stats["calls"] < 6:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(Unfinished, match="interrupted") as caught:
            run(corpus, tmp_path, rewriting(url, limits=Limits(concurrency=4)))
        thread.join()
        assert caught.value.exit_code == 130
        asked = fake.stats["calls"]
        assert f"{asked} of {COUNT} have an answer" in str(caught.value)
        run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] == COUNT


@pytest.mark.slow
def test_no_report_text_in_logs_messages_or_side_files(tmp_path, caplog, capfd, monkeypatch):
    """Canary sentences in the reports, under every fault, with the SDK told to log all."""
    canary = "quokka"
    corpus = write_corpus(tmp_path / "corpus", 60)
    for path in (corpus / "ecgen-radiology").iterdir():
        text = path.read_text().replace("Line", f"{canary} line")
        path.write_text(text + (f"<{canary}" if path.stem.endswith("7") else ""))
    monkeypatch.setenv("OPENAI_LOG", "debug")
    logging.getLogger("openai").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    patience = Patience(attempts=2, first_wait=0.01, longest_wait=0.02, timeout=0.5)
    with serving(faults=0.6, hang=2.0) as (url, _):
        run(corpus, tmp_path / "out", rewriting(url, patience=patience, breaker=Breaker(10**6)))
    out, err = capfd.readouterr()
    files = [(tmp_path / "out" / n).read_text() for n in ("held_back.csv", "manifest.json")]
    assert any(canary in caption.lower() for caption in captions(tmp_path / "out").values())
    for text in (out, err, caplog.text, *files):
        assert canary not in text.lower()
    assert len(held_back(tmp_path / "out")) > 10


def test_an_unexpected_error_names_no_text_either(corpus, tmp_path, monkeypatch):
    """A fault of our own in the middle of a row: the ledger keeps what was answered."""
    from xraygpt.curation import engine

    real, calls = engine.judge, []

    def broken(*given):
        calls.append(1)
        if len(calls) == 10:
            raise RuntimeError("a fault of ours")
        return real(*given)

    monkeypatch.setattr(engine, "judge", broken)
    with serving() as (url, fake):
        with pytest.raises(RuntimeError, match="of ours"):
            run(corpus, tmp_path, rewriting(url, limits=Limits(concurrency=4)))
        asked = fake.stats["calls"]
        monkeypatch.setattr(engine, "judge", real)
        run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] <= asked + COUNT - 9 + 4
    assert len(captions(tmp_path)) == COUNT


def test_pictures_go_along_and_each_has_its_own_text(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", 3)
    seen: list[dict] = []
    with serving() as (url, fake):
        fake.fault = lambda data, _: seen.append(json.loads(data)) or ""
        made = run(corpus, tmp_path / "out", rewriting(url, "describe"))
    assert made.manifest["accepted"] == 3
    parts = seen[0]["messages"][1]["content"]
    assert [p["type"] for p in parts] == ["text", "image_url"]
    assert parts[1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert all(c.startswith("This is") for c in captions(tmp_path / "out").values())


def test_the_ledger_takes_one_writer_and_only_its_own_file(tmp_path):
    with Ledger(tmp_path), pytest.raises(InputError, match="in use by another run"):
        Ledger(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).write_text("this is no database, but long enough to be one " * 99)
    with pytest.raises(InputError, match="no ledger of ours"):
        Ledger(tmp_path / "other")


def test_a_key_is_asked_for_by_the_name_of_its_variable(corpus, tmp_path, monkeypatch):
    for name in list(os.environ):
        if "OPENAI" in name:
            monkeypatch.delenv(name)
    with pytest.raises(InputError, match="set OPENAI_API_KEY"):
        run(corpus, tmp_path, rewriting("", endpoint=Endpoint(provider="openai", model="m")))
    with pytest.raises(InputError, match="set AZURE_OPENAI_ENDPOINT"):
        run(corpus, tmp_path, rewriting("", endpoint=Endpoint(provider="azure", model="m")))


def test_azure_is_asked_by_deployment(corpus, tmp_path, monkeypatch):
    seen: list[tuple[str, str]] = []

    async def route(fake, method, path, data, headers):
        seen.append((path, headers.get("api-key", "")))
        return await fakes.fake_endpoint.chat(fake, data, headers)

    monkeypatch.setattr(fakes.fake_endpoint, "route", route)
    with serving() as (url, _):
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", url.removesuffix("/v1"))
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", "secret")
        monkeypatch.setenv("AZURE_OPENAI_API_VERSION", "2024-10-21")
        how = rewriting("", endpoint=Endpoint(provider="azure", model="gpt-x"))
        assert run(corpus, tmp_path, how).manifest["accepted"] == COUNT
    path = "/openai/deployments/gpt-x/chat/completions?api-version=2024-10-21"
    assert set(seen) == {(path, "secret")}
    for file in tmp_path.glob("*"):
        if file.is_file():
            assert b"secret" not in file.read_bytes()


def test_a_trial_call_that_ends_for_good_closes_the_breaker(corpus, tmp_path, monkeypatch):
    """500 until the breaker opens, then a content filter's 400 for each call: no deadlock."""
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
        how = rewriting(url, breaker=Breaker(failures=10, cooldown=0.1), partial=True)
        with pytest.raises(NothingLeft, match="refused, such as: HTTP 400"):
            run(corpus, tmp_path, how)


@pytest.mark.slow
def test_a_budget_that_suffices_finishes_at_any_concurrency(corpus, tmp_path):
    with serving() as (url, fake):
        run(corpus, tmp_path / "plain", rewriting(url))
        needed = sum(fake.tokens)
        limits = Limits(concurrency=32, max_tokens=needed + 1500)
        made = run(corpus, tmp_path / "tight", rewriting(url, limits=limits))
    assert made.manifest["accepted"] == COUNT
    assert made.spent.tokens == needed


def test_an_endpoint_that_counts_otherwise_does_not_overstep_the_budget(
    corpus, tmp_path, monkeypatch
):
    """It counts eight times what we guess, and half its answers are of another shape."""
    real, used = fakes.fake_endpoint.completion, []

    def completion(request, fault):
        made = real(request, "")
        made["usage"]["prompt_tokens"] *= 8
        used.append(made["usage"]["prompt_tokens"] + made["usage"]["completion_tokens"])
        return made | {"choices": []} if len(used) % 2 else made

    monkeypatch.setattr(fakes.fake_endpoint, "completion", completion)
    with serving() as (url, _):
        limits = Limits(concurrency=16, max_tokens=60_000)
        with pytest.raises(Unfinished, match=r"--max-\w+ [\d.,]+ are used over all runs"):
            run(corpus, tmp_path, rewriting(url, limits=limits))
        with Ledger(tmp_path) as ledger:
            assert ledger.spent().tokens == sum(used) <= 60_000


@pytest.mark.slow
def test_a_paid_first_answer_waits_for_its_repair(corpus, tmp_path):
    """Stopped between a first answer and its repair, the next run asks for the repair alone."""
    with serving() as (url, fake):
        fake.fault = lambda data, _: "prior" if b"cannot be used" not in data else "500"
        once = Patience(attempts=1)
        with pytest.raises(NothingLeft, match="1 call: HTTP 500"):
            run(corpus, tmp_path, rewriting(url, patience=once, breaker=Breaker(10**6)))
        asked = fake.stats["calls"]
        assert asked == 2 * COUNT
        fake.fault = lambda *_: ""
        made = run(corpus, tmp_path, rewriting(url))
        assert fake.stats["calls"] == asked + COUNT
    assert made.manifest["accepted_after_repair"] == COUNT


def test_calls_under_way_at_a_kill_are_counted(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.plan([("a", "A"), ("b", "B")], "")
        ledger.hold("a", 100, 50, 0.5)
        ledger.hold("b", 100, 50, 0.5)
        ledger.unhold("b")
    with Ledger(tmp_path) as ledger:
        assert (ledger.spent().tokens, ledger.spent().money) == (150, 0.5)
        assert ledger.plan([("a", "A"), ("b", "B")], "") == ["a", "b"]
    with Ledger(tmp_path) as ledger:
        assert ledger.spent().tokens == 150


def test_a_run_of_one_prompt_leaves_the_rows_of_another_alone(tmp_path):
    with Ledger(tmp_path) as ledger:
        ledger.plan([("a", "A")], "R1")
        ledger.finish(Row("a", "A", "done", answer="{}", repair="R1"), "m")
        ledger.plan([("b", "B")], "R2", ["refused"])
        assert ledger.plan([("a", "A")], "R1") == []


def test_a_full_disk_is_said_as_such(tmp_path, monkeypatch):
    with Ledger(tmp_path) as ledger:
        ledger.plan([("a", "A")], "")
        ledger._db.execute("PRAGMA max_page_count=1")
        long = Row("a", "A", "done", answer="x" * 10**6)
        with pytest.raises(LedgerError, match="make room and type the same again"):
            ledger.finish(long, "m")


def test_an_endpoint_that_drips_is_left_after_the_timeout(tmp_path, monkeypatch):
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
        run(corpus, tmp_path / "out", rewriting(url, patience=Patience(attempts=1, timeout=0.4)))


def test_what_the_endpoint_says_never_reaches_a_message(corpus, tmp_path, monkeypatch):
    """Its error names a parameter as no endpoint should, and repeats the report."""

    async def chat(fake, data, headers):
        text = {"error": {"message": "quokka", "param": ["quokka"], "code": {"quokka": 1}}}
        return fakes.fake_endpoint.Response(400, json.dumps(text).encode())

    monkeypatch.setattr(fakes.fake_endpoint, "chat", chat)
    with serving() as (url, _), pytest.raises(Unfinished, match="HTTP 400 to each") as caught:
        run(corpus, tmp_path, rewriting(url))
    assert "quokka" not in str(caught.value)


def test_a_server_that_is_not_there_is_said_at_once(corpus, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(Unfinished, match="nobody answers there; start the server"):
            run(corpus, tmp_path, rewriting(url))
