"""Many rows, many faults, and SIGKILL: nothing is lost, nothing stands twice."""

from __future__ import annotations

import csv
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
from tests.curation import endpoint as fakes
from tests.curation.endpoint import captions, rewriting, run, serving, write_corpus
from xraygpt.curation.engine import Limits
from xraygpt.curation.limits import Breaker, Patience

ROWS = 400
KILL_BEFORE = """
import importlib, os, runpy, signal, sys
module, *names, last, number = sys.argv[1].split(",")
owner = importlib.import_module(module)
for name in names:
    owner = getattr(owner, name)
original, left = getattr(owner, last), int(number)
def deadly(*args, **how):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **how)
setattr(owner, last, deadly)
sys.argv = sys.argv[3:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
LEDGER, FOLDER = "xraygpt.curation.ledger,Ledger", "xraygpt.curation.folder"
POINTS = {  # a function, and the call of it that never comes about
    "calls": [
        f"{LEDGER},hold,40",  # a request not yet noted
        f"{LEDGER},finish,60",  # an answer that came and is not kept
        f"{LEDGER},keep_draft,2",  # a first answer that could not stand
        f"{LEDGER},spend,100",
        f"{FOLDER},bring_pictures,1",  # all answers there, a folder that stands unfinished
        f"{FOLDER},_manifest,1",
    ],
    "batch": [
        f"{LEDGER},add_batch,1",
        f"{LEDGER},set_batch,1",
        f"{LEDGER},set_batch,2",
        f"{LEDGER},finish,60",
        f"{FOLDER},_manifest,1",
    ],
}


@pytest.mark.slow
def test_five_thousand_requests_with_faults_end_done_or_with_a_reason(tmp_path):
    """10 % of the calls err, in each of the twelve ways."""
    count = 4700
    corpus = write_corpus(tmp_path / "corpus", count)
    patience = Patience(first_wait=0.02, longest_wait=0.1, timeout=3.0)
    with serving(faults=0.1, hang=5.0) as (url, fake):
        how = rewriting(url, patience=patience, limits=Limits(concurrency=64))
        made = run(corpus, tmp_path / "out", how)
        asked, kinds = fake.stats["calls"], Counter(fake.stats)
    assert asked >= 5000
    assert all(kinds[kind] > 10 for kind in fakes.fake_endpoint.KINDS)
    assert 0.08 < 1 - kinds["good"] / asked < 0.12
    with (tmp_path / "out" / "held_back.csv").open(newline="") as file:
        held = {row["source_id"]: row for row in csv.DictReader(file)}
    texts = captions(tmp_path / "out")
    assert not set(held) & set(texts)
    assert len(held) + len(texts) == count
    assert all(
        row["reason"] and row["stage"] in ("refused", "invalid", "failed") for row in held.values()
    )
    assert made.manifest["acceptance"]["low"] > 0.97


def contents(out: Path) -> dict[str, bytes]:
    """The output; the ledger apart."""
    files = [p for p in out.rglob("*") if p.is_file() and not p.name.startswith("ledger")]
    return {str(p.relative_to(out)): p.read_bytes() for p in files}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is POSIX")
@pytest.mark.parametrize("way", ["calls", "batch"])
def test_killed_at_any_point_the_output_is_that_of_an_uninterrupted_run(tmp_path, way: str):
    """At each of `POINTS` in turn; and after a random request. The whole run is a cold start."""
    corpus = write_corpus(tmp_path / "corpus", ROWS)
    with serving(faults=0.1, hang=3.0, latency=0.02) as (url, fake):

        def command(out: Path) -> list[str]:
            more = ["--batch", "--poll-seconds", "0.2"] if way == "batch" else []
            words = [
                sys.executable, "-m", "xraygpt.curate", "openi", "--reports",
                corpus / "ecgen-radiology", "--images", corpus / "png", "--out", out,
                "--provider", "local", "--base-url", url, "--model", "fake",
                "--concurrency", "16", "--timeout", "2", *more,
            ]  # fmt: skip
            return [str(word) for word in words]

        def finish(out: Path, start: Any) -> None:
            done = start(command(out), cwd=REPO, capture_output=True, text=True, check=False)
            assert done.returncode == 3, done.stderr[-2000:]  # some rows are refused or invalid

        quiet = {"cwd": REPO, "stdout": processes.DEVNULL, "stderr": processes.DEVNULL}
        finish(tmp_path / "whole", subprocess.run)
        drawn = random.Random().randint(1, fake.stats["requests"] // 2)
        python, *words = command(tmp_path / "killed")
        for point in POINTS[way]:
            with processes.Popen([python, "-c", KILL_BEFORE, point, *words], **quiet) as process:
                assert process.wait() == -signal.SIGKILL, point
        finish(tmp_path / "killed", processes.run)
        wanted = fake.stats["requests"] + drawn
        with processes.Popen(command(tmp_path / "drawn"), **quiet) as process:
            while process.poll() is None:
                time.sleep(0.002)
                if fake.stats["requests"] >= wanted:
                    process.send_signal(signal.SIGKILL)
            assert process.returncode == -signal.SIGKILL, drawn
        finish(tmp_path / "drawn", processes.run)
    whole = contents(tmp_path / "whole")
    assert contents(tmp_path / "killed") == whole
    assert contents(tmp_path / "drawn") == whole, drawn


@pytest.mark.slow
def test_an_endpoint_that_dies_and_comes_back(tmp_path):
    """The connection goes in the middle: the run stops by itself, the next one finishes."""
    from xraygpt.curation.pipeline import Unfinished

    corpus = write_corpus(tmp_path / "corpus", 200)
    with serving() as (url, fake):
        fake.fault = lambda *_: "drop" if fake.stats["calls"] > 100 else ""
        with pytest.raises(Unfinished, match="no connection"):
            run(corpus, tmp_path / "out", rewriting(url, breaker=Breaker(40, cooldown=0.2)))
        fake.fault = lambda *_: ""
        before = fake.stats["calls"]
        made = run(corpus, tmp_path / "out", rewriting(url))
        assert made.manifest["accepted"] == 200
        assert fake.stats["calls"] - before <= 200 - 80
