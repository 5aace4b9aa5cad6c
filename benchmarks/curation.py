"""Curation with a language model against a serial loop of the same calls, and how limits hold.

python benchmarks/curation.py

The fake endpoint runs in a process of its own and answers after 200 ms. Both sides send the same
requests through the same SDK; concurrent calls also check each answer and write the ledger.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import openai

from xraygpt.curation.llm.calls import run_calls
from xraygpt.curation.llm.completions import request_body
from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.items import Item, build_messages, item_key
from xraygpt.curation.llm.ledger import Ledger
from xraygpt.curation.llm.limits import Limits
from xraygpt.curation.llm.prompts import load_prompt
from xraygpt.curation.llm.run_context import RunContext
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.llm.tasks import TASKS

REPO = Path(__file__).resolve().parents[1]
TASK, PROMPT = TASKS["summarise"], load_prompt("summarise")
SIDES = ("left", "right", "bilateral")


def items(endpoint: Endpoint, count: int) -> list[Item]:
    """Made-up reports, each another."""
    made = []
    for number in range(count):
        sections = {
            "findings": f"The heart is enlarged. There is a {SIDES[number % 3]} pleural effusion. "
            f"Line {number} ends in the superior vena cava. No pneumothorax is seen.",
            "impression": "Cardiomegaly and effusion.",
        }
        key = item_key(endpoint, TASK, PROMPT, f"r{number}", sections)
        made.append(Item(key, f"r{number}", sections, " ".join(sections.values())))
    return made


def serial(endpoint: Endpoint, rows: list[Item]) -> float:
    """Seconds a row of one call after the other."""
    client = openai.OpenAI(base_url=endpoint.base_url, api_key="none")
    begun = time.perf_counter()
    for item in rows:
        client.chat.completions.create(**request_body(endpoint, TASK, build_messages(item, PROMPT)))
    return (time.perf_counter() - begun) / len(rows)


def concurrent(endpoint: Endpoint, rows: list[Item], limits: Limits) -> float:
    """Seconds per row of concurrent calls, with a new ledger."""
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        ledger.prepare([(item.key, item.source_id) for item in rows], PROMPT.repair_sha256)
        settings = RewriteSettings(endpoint=endpoint, task=TASK, prompt=PROMPT, limits=limits)
        context = RunContext(ledger, settings)
        begun = time.perf_counter()
        run_calls(context, rows)
        taken = (time.perf_counter() - begun) / len(rows)
        assert context.states["done"] == len(rows), context.states
    return taken


def stats(endpoint: Endpoint) -> dict:
    """What the endpoint saw."""
    with urllib.request.urlopen(endpoint.base_url.replace("/v1", "/stats")) as answer:
        return json.load(answer)


def most_in_a_minute(times: list[float], sizes: list[int]) -> int:
    """Largest sum of `sizes` in any 60 seconds of `times`."""
    best = total = first = 0
    for last, at in enumerate(times):
        total += sizes[last]
        while at - times[first] >= 60:
            total -= sizes[first]
            first += 1
        best = max(best, total)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rpm", type=int, default=3000)
    given = parser.parse_args()
    logging.getLogger("httpx2").setLevel(logging.ERROR)
    command = [sys.executable, REPO / "tools" / "fake_endpoint.py", "--port", "0"]
    server = subprocess.Popen([*command, "--latency", "0.2"], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        endpoint = Endpoint(model="fake", base_url=url)
        rows = items(endpoint, given.rows)
        concurrent(endpoint, rows[:64], Limits(concurrency=given.concurrency))  # warm up
        alone = serial(endpoint, rows[:150])
        ours = concurrent(endpoint, rows, Limits(concurrency=given.concurrency))
        print(
            f"a serial loop: {1 / alone:.2f} rows/s; ours at concurrency {given.concurrency}: "
            f"{1 / ours:.1f} rows/s, {alone / ours:.1f} times as many"
        )
        for name in ("rpm", "tpm"):
            before = stats(endpoint)
            size = sum(before["tokens"]) // len(before["tokens"])
            limit = given.rpm * (size if name == "tpm" else 1)
            many = items(endpoint, round(given.rpm * 1.25))
            concurrent(endpoint, many, Limits(concurrency=64, **{name: limit}))
            seen = stats(endpoint)
            times = seen["times"][len(before["times"]) :]
            tokens = seen["tokens"][len(before["tokens"]) :]
            most = most_in_a_minute(times, tokens if name == "tpm" else [1] * len(times))
            print(
                f"--{name} {limit}: at most {most} in any minute, {most / limit:.1%} of the limit"
            )
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
