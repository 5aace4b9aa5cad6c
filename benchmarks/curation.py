"""Compare concurrent curation with a serial loop of the same calls, and check the rate limits.

python benchmarks/curation.py

The fake endpoint runs in a separate process and answers after 200 ms. Both sides send the same
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


def build_items(endpoint: Endpoint, count: int) -> list[Item]:
    """Build items from made-up reports; each is different."""
    items = []
    for number in range(count):
        sections = {
            "findings": f"The heart is enlarged. There is a {SIDES[number % 3]} pleural effusion. "
            f"Line {number} ends in the superior vena cava. No pneumothorax is seen.",
            "impression": "Cardiomegaly and effusion.",
        }
        key = item_key(endpoint, TASK, PROMPT, f"r{number}", sections)
        items.append(Item(key, f"r{number}", sections, " ".join(sections.values())))
    return items


def time_serial(endpoint: Endpoint, items: list[Item]) -> float:
    """Return seconds per row of a serial loop."""
    client = openai.OpenAI(base_url=endpoint.base_url, api_key="none")
    start = time.perf_counter()
    for item in items:
        client.chat.completions.create(**request_body(endpoint, TASK, build_messages(item, PROMPT)))
    return (time.perf_counter() - start) / len(items)


def time_concurrent(endpoint: Endpoint, items: list[Item], limits: Limits) -> float:
    """Return seconds per row of concurrent calls, with a new ledger."""
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder)) as ledger:
        ledger.prepare([(item.key, item.source_id) for item in items], PROMPT.repair_sha256)
        settings = RewriteSettings(endpoint=endpoint, task=TASK, prompt=PROMPT, limits=limits)
        context = RunContext(ledger, settings)
        start = time.perf_counter()
        run_calls(context, items)
        seconds = (time.perf_counter() - start) / len(items)
        assert context.states["done"] == len(items), context.states
    return seconds


def read_stats(endpoint: Endpoint) -> dict:
    """Return the counts of the fake endpoint."""
    with urllib.request.urlopen(endpoint.base_url.replace("/v1", "/stats")) as response:
        return json.load(response)


def max_in_a_minute(times: list[float], sizes: list[int]) -> int:
    """Return the largest sum of `sizes` within 60 seconds of `times`."""
    largest = total = first = 0
    for last, now in enumerate(times):
        total += sizes[last]
        while now - times[first] >= 60:
            total -= sizes[first]
            first += 1
        largest = max(largest, total)
    return largest


def measure_limit(endpoint: Endpoint, name: str, rpm: int) -> None:
    """Send more rows than a limit allows and print the largest use within a minute.

    Args:
        endpoint: The fake endpoint.
        name: ``rpm`` or ``tpm``.
        rpm: Requests per minute; for ``tpm``, the tokens of as many requests.
    """
    before = read_stats(endpoint)
    tokens_per_request = sum(before["tokens"]) // len(before["tokens"])
    limit = rpm * (tokens_per_request if name == "tpm" else 1)
    items = build_items(endpoint, round(rpm * 1.25))
    time_concurrent(endpoint, items, Limits(concurrency=64, **{name: limit}))
    after = read_stats(endpoint)
    times = after["times"][len(before["times"]) :]
    tokens = after["tokens"][len(before["tokens"]) :]
    used = max_in_a_minute(times, tokens if name == "tpm" else [1] * len(times))
    print(f"--{name} {limit}: at most {used} in any minute, {used / limit:.1%} of the limit")


def main() -> None:
    """Measure and print the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--rpm", type=int, default=3000)
    args = parser.parse_args()
    logging.getLogger("httpx2").setLevel(logging.ERROR)
    command = [sys.executable, REPO / "tools" / "fake_endpoint.py", "--port", "0"]
    server = subprocess.Popen([*command, "--latency", "0.2"], stdout=subprocess.PIPE, text=True)
    try:
        url = server.stdout.readline().strip()
        endpoint = Endpoint(model="fake", base_url=url)
        items = build_items(endpoint, args.rows)
        time_concurrent(endpoint, items[:64], Limits(concurrency=args.concurrency))  # warm up
        serial = time_serial(endpoint, items[:150])
        concurrent = time_concurrent(endpoint, items, Limits(concurrency=args.concurrency))
        print(
            f"serial loop: {1 / serial:.2f} rows/s; concurrency {args.concurrency}: "
            f"{1 / concurrent:.1f} rows/s, {serial / concurrent:.1f} times as many"
        )
        for name in ("rpm", "tpm"):
            measure_limit(endpoint, name, args.rpm)
    finally:
        server.terminate()


if __name__ == "__main__":
    main()
