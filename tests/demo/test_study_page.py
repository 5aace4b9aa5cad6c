"""The page for studies in a real browser: upload, progress, cine, exports and errors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.demo.painted_hearts import build_desk, zip_of, zipped_cine
from xraygpt.demo.launch import serve_studies
from xraygpt.studies.report import NOTICE

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
PIXELS = """canvas => { const all = canvas.getContext('2d')
    .getImageData(0, 0, canvas.width, canvas.height).data; let sum = 0;
    for (let i = 0; i < all.length; i++) sum = (sum * 31 + all[i]) % 1000000007; return sum; }"""


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    desk = build_desk(seconds=0.2)
    blocks, url = serve_studies(desk, "127.0.0.1", None, None)
    yield SimpleNamespace(desk=desk, url=url)
    blocks.close(verbose=False)
    desk.sessions.close()


@pytest.fixture
def page(site: SimpleNamespace) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_context(viewport={"width": 390, "height": 844}).new_page()
        page.errors, page.hosts = [], set()
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("request", lambda request: page.hosts.add(request.url.split("/")[2]))
        page.goto(site.url)
        page.wait_for_selector("#xg-study-analyse")
        yield page
        browser.close()


def analyse(page: Any, file: Path) -> None:
    page.set_input_files("#xg-study-upload input[type=file]", str(file))
    page.wait_for_selector("#xg-study-analyse:not([disabled])")
    page.click("#xg-study-analyse")


def frame(page: Any) -> int:
    return int(page.locator(".xg-cine").get_attribute("data-frame"))


def test_a_study_is_analysed_played_and_exported(page, site, tmp_path):
    analyse(page, zipped_cine(tmp_path))
    page.wait_for_selector("#xg-study-status progress")
    page.wait_for_selector(".xg-cine[data-frame]", timeout=60_000)
    assert "LV ejection fraction" in page.inner_text("#xg-study-summary")
    assert NOTICE in page.inner_text("#xg-study-summary")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    canvas = page.locator(".xg-cine canvas")
    for _ in range(2):  # it plays, and plays on
        before = frame(page)
        page.wait_for_function(
            "before => document.querySelector('.xg-cine').dataset.frame != before", arg=before
        )
    page.click('[data-cine="play"]')
    before, pixels = frame(page), canvas.evaluate(PIXELS)
    page.wait_for_timeout(500)
    assert frame(page) == before and canvas.evaluate(PIXELS) == pixels  # paused
    page.focus(".xg-cine")
    page.keyboard.press("ArrowRight")
    assert frame(page) == (before + 1) % 5 and canvas.evaluate(PIXELS) != pixels
    with_contours = canvas.evaluate(PIXELS)
    page.uncheck('[data-cine="contours"]')
    assert canvas.evaluate(PIXELS) != with_contours
    page.keyboard.press("c")
    assert canvas.evaluate(PIXELS) == with_contours
    page.select_option('[data-cine="clip"]', "2")
    assert "slice 3 of 3" in page.inner_text('[data-cine="caption"]')
    page.locator('[data-cine="frame"]').fill("4")
    assert frame(page) == 4 and "frame 5 of 5 · 640 ms" in page.inner_text('[data-cine="place"]')
    for kind, suffix in (("json", ".json"), ("html", ".html"), ("all", ".zip")):
        with page.expect_download() as download:
            page.click(f"#xg-study-export-{kind}")
        assert download.value.suggested_filename.endswith(suffix)
    page.click("#xg-study-clear")
    page.wait_for_selector(".xg-cine", state="detached")
    assert page.errors == [] and page.hosts == {site.url.split("/")[2]}


def test_stop_and_a_broken_file(page, tmp_path):
    analyse(page, zipped_cine(tmp_path))
    page.wait_for_selector("#xg-study-status progress")
    page.click("#xg-study-stop")
    page.get_by_text("Stopped.", exact=True).wait_for()
    page.click("#xg-study-clear")
    page.get_by_text("the study was deleted").wait_for()
    analyse(page, zip_of(tmp_path / "x.zip", {"notes.txt": b"hello"}))
    alert = page.locator("#xg-study-status [role=alert]")
    alert.wait_for()
    assert "there is nothing that can be read" in alert.inner_text()
    assert "Traceback" not in page.content() and page.errors == []
