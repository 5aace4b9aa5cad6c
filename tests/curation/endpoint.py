"""The project's fake endpoint in a thread, and a small corpus to send it."""

from __future__ import annotations

import asyncio
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
from xraygpt.curation.endpoint import Endpoint
from xraygpt.curation.engine import Limits
from xraygpt.curation.limits import Breaker, Patience
from xraygpt.curation.pipeline import Curated, Rewriting, curate
from xraygpt.curation.prompts import load_prompt
from xraygpt.curation.select import Filters
from xraygpt.curation.tasks import TASKS

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
FIRST = 20001  # beyond OpenI's own ids, so no study is one of its test split
HEARTS = ("The heart is enlarged.", "Stable cardiomegaly.", "The heart size is normal.")
SIDES = ("left", "right", "bilateral")
THINGS = (
    "There is a {} pleural effusion.", "{} lower lobe consolidation is seen.",
    "No pneumothorax. A {} apical nodule is noted.", "Lungs are clear, XXXX {} rib fracture.",
)  # fmt: skip


def texts(number: int) -> tuple[str, str]:
    """Findings and impression of a made-up report; no two are the same."""
    heart = HEARTS[number % 3]
    thing = THINGS[number // 3 % 4].format(SIDES[number // 12 % 3])
    lines = f"Line {number} ends in the superior vena cava. No acute bony abnormality is seen."
    return f"{heart} {thing} {lines}", "Findings as described above."


def write_corpus(folder: Path, count: int) -> Path:
    """`ecgen-radiology/` and `png/` of made-up studies."""
    reports, images = folder / "ecgen-radiology", folder / "png"
    reports.mkdir(parents=True)
    images.mkdir()
    for number in range(FIRST, FIRST + count):
        (reports / f"{number}.xml").write_text(XML.format(number, *texts(number)))
        Image.new("L", (8, 8), number % 255).save(images / f"CXR{number}_1_IM-0001-4001.png")
    return folder


@contextmanager
def serving(**settings: Any) -> Iterator[tuple[str, Any]]:
    """Base URL and state of a fake endpoint in a thread of this process."""
    fake = fake_endpoint.Fake(**settings)
    loop = asyncio.new_event_loop()
    ready = threading.Event()
    address: list[str] = []

    async def start() -> asyncio.Server:
        server = await asyncio.start_server(
            lambda r, w: fake_endpoint.serve(fake, r, w), "127.0.0.1", 0, limit=2**24, backlog=512
        )
        address.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
        ready.set()
        return server

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(lambda *_: None)  # connections a killed client left
        server = loop.run_until_complete(start())
        loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield address[0], fake
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


FAST = Patience(first_wait=0.01, longest_wait=0.05, timeout=1.0)


def rewriting(url: str, task: str = "summarise", **more: Any) -> Rewriting:
    """A language model at `url`, impatient."""
    settings: dict[str, Any] = {
        "endpoint": Endpoint(model="fake", base_url=url),
        "task": TASKS[task],
        "prompt": load_prompt(task),
        "limits": Limits(concurrency=16),
        "patience": FAST,
        "breaker": Breaker(failures=40, cooldown=0.05),
        "poll_seconds": 0.02,
    }
    return Rewriting(**{**settings, **more})


def run(corpus: Path, out: Path, how: Rewriting | None) -> Curated:
    """Curate the made-up corpus."""
    return curate(
        "openi", corpus / "ecgen-radiology", corpus / "png", out, Filters(), rewriting=how
    )


def captions(out: Path) -> dict[str, str]:
    """Study -> caption of a folder."""
    rows = json.loads((out / "filter_cap.json").read_text())["annotations"]
    assert len({row["image_id"] for row in rows}) == len(rows)  # no output row twice
    return {row["study"]: row["caption"] for row in rows}
