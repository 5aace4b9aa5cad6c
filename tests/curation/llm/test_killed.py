"""Many rows, many faults, and SIGKILL: no row is lost or duplicated."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.conftest import REPO
from tests.curation import fakes
from tests.curation.fakes import captions, held_back, rewrite_settings, run, serving, write_corpus
from xraygpt.curation.llm.limits import CircuitBreaker, Limits, RetryPolicy
from xraygpt.curation.pipeline import Unfinished

ROWS = 400
KILL_BEFORE = """
import importlib, os, runpy, signal, sys
module, *names, last, number = sys.argv[1].split(",")
owner = importlib.import_module(module)
for name in names:
    owner = getattr(owner, name)
original, calls_left = getattr(owner, last), int(number)
def kill_before(*args, **kwargs):
    global calls_left
    calls_left -= 1
    if not calls_left:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(owner, last, kill_before)
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
LEDGER, FOLDER = "xraygpt.curation.llm.ledger,Ledger", "xraygpt.curation.folder"
POINTS = {  # a function, and the number of the call before which the process is killed
    "calls": [
        f"{LEDGER},reserve,40",  # before a request is recorded
        f"{LEDGER},finish,60",  # before an answer is saved
        f"{LEDGER},save_draft,2",  # before a rejected first answer is saved
        f"{LEDGER},add_usage,100",
        f"{FOLDER},link_pictures,1",  # all answers saved, the folder unfinished
        f"{FOLDER},_build_manifest,1",
    ],
    "batch": [
        f"{LEDGER},add_batch,1",
        f"{LEDGER},update_batch,1",
        f"{LEDGER},update_batch,2",
        f"{LEDGER},finish,60",
        f"{FOLDER},_build_manifest,1",
    ],
}


@pytest.mark.slow
def test_five_thousand_requests_with_faults_are_answered_or_have_a_reason(tmp_path):
    """10 % of the calls fail, in each of the twelve ways."""
    count = 4700
    corpus = write_corpus(tmp_path / "corpus", count)
    retry_policy = RetryPolicy(initial_wait=0.02, max_wait=0.1, timeout=3.0)
    with serving(faults=0.1, hang=5.0) as (url, fake):
        settings = rewrite_settings(url, retry_policy=retry_policy, limits=Limits(concurrency=64))
        result = run(corpus, tmp_path / "out", settings)
        calls, kinds = fake.stats["calls"], Counter(fake.stats)
    assert calls >= 5000
    assert all(kinds[kind] > 10 for kind in fakes.fake_endpoint.FAULTS)
    assert 0.08 < 1 - kinds["good"] / calls < 0.12
    rejected = held_back(tmp_path / "out")
    texts = captions(tmp_path / "out")
    assert not set(rejected) & set(texts)
    assert len(rejected) + len(texts) == count
    assert {stage for stage, _ in rejected.values()} <= {"refused", "invalid", "failed"}
    assert all(reason for _, reason in rejected.values())
    assert result.manifest["acceptance"]["low"] > 0.97


def contents(out: Path) -> dict[str, bytes]:
    """The output without the ledger."""
    files = [p for p in out.rglob("*") if p.is_file() and not p.name.startswith("ledger")]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("mode", ["calls", "batch"])
def test_a_killed_and_resumed_run_has_the_output_of_an_uninterrupted_one(tmp_path, mode: str):
    """Killed at each of `POINTS` in turn, and after a random request.

    The uninterrupted run starts a new interpreter, the others are forked.
    """
    corpus = write_corpus(tmp_path / "corpus", ROWS)
    with serving(faults=0.1, hang=3.0, latency=0.02) as (url, fake):

        def command(out: Path) -> list[str]:
            batch_options = ["--batch", "--poll-seconds", "0.2"] if mode == "batch" else []
            arguments = [
                sys.executable, "-m", "xraygpt.curate", "openi", "--reports",
                corpus / "ecgen-radiology", "--images", corpus / "png", "--out", out,
                "--provider", "local", "--base-url", url, "--model", "fake",
                "--concurrency", "16", "--timeout", "2", *batch_options,
            ]  # fmt: skip
            return [str(argument) for argument in arguments]

        def finish(out: Path, start: Any) -> None:
            done = start(command(out), cwd=REPO, capture_output=True, text=True, check=False)
            assert done.returncode == 3, done.stderr[-2000:]  # 3: some rows are refused or invalid

        quiet = {"cwd": REPO, "stdout": processes.DEVNULL, "stderr": processes.DEVNULL}
        finish(tmp_path / "uninterrupted", subprocess.run)
        extra_requests = random.Random().randint(1, fake.stats["requests"] // 2)
        python, *words = command(tmp_path / "killed")
        for point in POINTS[mode]:
            with processes.Popen([python, "-c", KILL_BEFORE, point, *words], **quiet) as process:
                assert process.wait() == -signal.SIGKILL, point
        finish(tmp_path / "killed", processes.run)
        kill_at = fake.stats["requests"] + extra_requests
        with processes.Popen(command(tmp_path / "random"), **quiet) as process:
            while process.poll() is None:
                time.sleep(0.002)
                if fake.stats["requests"] >= kill_at:
                    process.send_signal(signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL, extra_requests
        finish(tmp_path / "random", processes.run)
    expected = contents(tmp_path / "uninterrupted")
    assert contents(tmp_path / "killed") == expected
    assert contents(tmp_path / "random") == expected, extra_requests


@pytest.mark.slow
def test_a_run_stops_when_the_endpoint_dies_and_resumes_later(tmp_path):
    """The connection is lost in the middle: the run stops by itself, the next one finishes."""
    corpus = write_corpus(tmp_path / "corpus", 200)
    with serving() as (url, fake):
        fake.fault = lambda *_: "drop" if fake.stats["calls"] > 100 else ""
        with pytest.raises(Unfinished, match="no connection"):
            breaker = CircuitBreaker(40, cooldown=0.2)
            run(corpus, tmp_path / "out", rewrite_settings(url, breaker=breaker))
        fake.fault = lambda *_: ""
        before = fake.stats["calls"]
        result = run(corpus, tmp_path / "out", rewrite_settings(url))
        assert result.manifest["accepted"] == 200
        assert fake.stats["calls"] - before <= 200 - 80
