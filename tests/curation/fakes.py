"""A fake endpoint in a thread, and a small corpus of made-up reports to send to it."""

from __future__ import annotations

import asyncio
import csv
import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from tests.conftest import REPO
from xraygpt.curation.llm.endpoint import Endpoint
from xraygpt.curation.llm.limits import CircuitBreaker, Limits, RetryPolicy
from xraygpt.curation.llm.prompts import load_prompt
from xraygpt.curation.llm.settings import RewriteSettings
from xraygpt.curation.llm.tasks import TASKS
from xraygpt.curation.pipeline import CurationResult, curate
from xraygpt.curation.select import Filters

_spec = importlib.util.spec_from_file_location("fake_endpoint", REPO / "tools" / "fake_endpoint.py")
assert _spec is not None
assert _spec.loader is not None
fake_endpoint = importlib.util.module_from_spec(_spec)
sys.modules["fake_endpoint"] = fake_endpoint
_spec.loader.exec_module(fake_endpoint)

XML = (
    '<eCitation><uId id="CXR{0}"/><AbstractText Label="FINDINGS">{1}</AbstractText>'
    '<AbstractText Label="IMPRESSION">{2}</AbstractText>'
    '<parentImage id="CXR{0}_1_IM-0001-4001"/></eCitation>'
)
FIRST = 20001  # above the ids of OpenI, so no study is in its test split
HEART_SENTENCES = ("The heart is enlarged.", "Stable cardiomegaly.", "The heart size is normal.")
SIDES = ("left", "right", "bilateral")
LUNG_SENTENCES = (
    "There is a {} pleural effusion.", "{} lower lobe consolidation is seen.",
    "No pneumothorax. A {} apical nodule is noted.", "Lungs are clear, XXXX {} rib fracture.",
)  # fmt: skip


def report_texts(number: int) -> tuple[str, str]:
    """Findings and impression of a made-up report; each is different."""
    heart = HEART_SENTENCES[number % 3]
    lungs = LUNG_SENTENCES[number // 3 % 4].format(SIDES[number // 12 % 3])
    lines = f"Line {number} ends in the superior vena cava. No acute bony abnormality is seen."
    return f"{heart} {lungs} {lines}", "Findings as described above."


def write_corpus(folder: Path, count: int) -> Path:
    """Write `ecgen-radiology/` and `png/` with made-up studies."""
    reports, images = folder / "ecgen-radiology", folder / "png"
    reports.mkdir(parents=True)
    images.mkdir()
    for number in range(FIRST, FIRST + count):
        (reports / f"{number}.xml").write_text(XML.format(number, *report_texts(number)))
        Image.new("L", (8, 8), number % 255).save(images / f"CXR{number}_1_IM-0001-4001.png")
    return folder


@contextmanager
def serving(**settings: Any) -> Iterator[tuple[str, Any]]:
    """Run a fake endpoint in a thread; gives its base URL and state."""
    fake = fake_endpoint.FakeEndpoint(**settings)
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    addresses: list[str] = []

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(
            lambda r, w: fake_endpoint.serve(fake, r, w), "127.0.0.1", 0, limit=2**24, backlog=512
        )
        addresses.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        ready.set()
        return server

    def serve_until_stopped() -> None:
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(lambda *_: None)  # open connections of a killed client
        server = loop.run_until_complete(start())
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=serve_until_stopped, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield addresses[0], fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


FAST = RetryPolicy(initial_wait=0.01, max_wait=0.05, timeout=1.0)


def rewrite_settings(url: str, task: str = "summarise", **changes: Any) -> RewriteSettings:
    """Settings for the language model at `url`, with short waits."""
    settings: dict[str, Any] = {
        "endpoint": Endpoint(model="fake", base_url=url),
        "task": TASKS[task],
        "prompt": load_prompt(task),
        "limits": Limits(concurrency=16),
        "retry_policy": FAST,
        "breaker": CircuitBreaker(failures=40, cooldown=0.05),
        "poll_seconds": 0.02,
    }
    return RewriteSettings(**{**settings, **changes})


def run(corpus: Path, out: Path, settings: RewriteSettings | None) -> CurationResult:
    """Curate the made-up corpus."""
    reports, images = corpus / "ecgen-radiology", corpus / "png"
    return curate("openi", reports, images, out, Filters(), settings=settings)


def captions(out: Path) -> dict[str, str]:
    """Study -> caption of a folder."""
    rows = json.loads((out / "filter_cap.json").read_text())["annotations"]
    assert len({row["image_id"] for row in rows}) == len(rows)  # no row twice
    return {row["study"]: row["caption"] for row in rows}


def held_back(out: Path) -> dict[str, tuple[str, str]]:
    """Source id -> stage and reason of the items without a text."""
    with (out / "held_back.csv").open(newline="") as file:
        return {row["source_id"]: (row["stage"], row["reason"]) for row in csv.DictReader(file)}
