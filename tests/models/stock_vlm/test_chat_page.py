"""The page with a model that reads clips, in a real browser (Chromium, headless)."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.demo.visitor import Visitor
from tests.models.stock_vlm.clip_files import frames_of, write_cine, write_video
from tests.models.stock_vlm.stock_batches import image
from tests.models.stock_vlm.test_chat_entry_points import QUESTION, evaluation
from xraygpt.demo.controller import DemoController
from xraygpt.demo.launch import serve
from xraygpt.experiment import build_chat

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]


@pytest.fixture
def visitor(tiny, tmp_path):
    parts = build_chat(evaluation(tmp_path, tiny("qwen2_5_vl")), "cpu")
    controller = DemoController(parts, "tiny Qwen2.5-VL", synthetic=False)
    with playwright.sync_playwright() as driver:
        from types import SimpleNamespace

        blocks, url = serve(controller, "127.0.0.1", None, None)
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        visitor = Visitor(browser, SimpleNamespace(controller=controller, url=url))
        yield visitor
        visitor.close()
        browser.close()
        blocks.close(verbose=False)
        controller.sessions.close()


def files(folder: Path) -> list[Path]:
    still = folder / "still.png"
    Image.fromarray(image(0, 240, 320)).save(still)
    video = write_video(folder / "apical.mp4", frames_of(0, 24, 240, 320))
    return [still, video, write_cine(folder / "cine.dcm", frames_of(2, 8, 240, 320))]


def test_images_and_clips_are_shown_and_asked_about(visitor, tmp_path):
    page = visitor.page
    assert "Images and clips" in visitor.text("#xg-upload")
    assert "Upload images or clips." in visitor.text(".xg-empty")
    still, video, cine = files(tmp_path)
    visitor.upload(still)
    visitor.wait_for_image("Image 1 of 1")
    visitor.upload(video)
    page.wait_for_selector("#xg-clip .xg-cine canvas")
    assert page.locator("#xg-viewer .xg-film").count() == 0
    visitor.until("find('#xg-facts').innerText.includes('24 frames')")
    visitor.until("find('#xg-status').innerText.includes('Image read by the model')")
    shown = "find('#xg-clip canvas').toDataURL()"
    page.click('#xg-clip [data-cine="next"]')
    before = page.evaluate("document.querySelector('#xg-clip canvas').toDataURL()")
    page.click('#xg-clip [data-cine="next"]')
    visitor.until(f"{shown} !== {before!r}")
    visitor.ask(QUESTION)
    assert QUESTION in visitor.text("#xg-chat")
    visitor.screenshot("clip")
    page.get_by_label("Image 1").check()
    visitor.wait_for_image("Image 1 of 2")
    assert page.locator("#xg-clip .xg-cine").count() == 0
    visitor.upload(cine)
    visitor.until("find('#xg-facts').innerText.includes('8 frames')")
    visitor.ask("And this one?")
    visitor.screenshot("cine")
    assert visitor.errors == []
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
