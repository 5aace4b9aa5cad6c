"""The page in a real browser (Chromium, headless).

XRAYGPT_SHOTS is a folder for screenshots, for visual inspection.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import toy_image
from tests.demo.bad_files import files_with_warnings, refused_files
from tests.demo.trained_model import REPORTS, build_controller, square
from tests.demo.visitor import Visitor
from tests.media.dicom_files import dataset, save
from xraygpt.demo.display import VIEW_SIDE, thumbnail
from xraygpt.demo.examples import draw_examples
from xraygpt.demo.launch import serve
from xraygpt.media.pixels import read_image
from xraygpt.vocabulary.chest_questions import EXAMPLES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    """The served page; with `slow` each token takes so many seconds, and answers do not end."""
    controller = build_controller()
    controller.images.examples = draw_examples(controller.sessions.root / "examples")
    blocks, url = serve(controller, "127.0.0.1", None, None)
    site = SimpleNamespace(controller=controller, url=url, slow=0.0)
    engine = controller.parts.engine
    tokenizer = engine.renderer.tokenizer
    stops = [tokenizer(s, add_special_tokens=False) for s in engine.renderer.stop_strings]
    end_ids = [*engine.decoder.end_ids, *(ids["input_ids"][0] for ids in stops)]

    def slow_down(_llm: Any, _args: Any, out: Any) -> None:
        if site.slow:
            time.sleep(site.slow)
            out.logits[..., end_ids] = -torch.inf

    hook = engine.model.llm.register_forward_hook(slow_down)
    yield site
    hook.remove()
    blocks.close(verbose=False)
    controller.sessions.close()
    assert not controller.sessions.root.exists()


@pytest.fixture
def visit(chromium: Any, site: SimpleNamespace) -> Iterator[Any]:
    visitors: list[Visitor] = []

    def open_page(width: int = 1440, **context: Any) -> Visitor:
        visitors.append(Visitor(chromium, site, width, **context))
        return visitors[-1]

    yield open_page
    site.slow = 0.0
    for visitor in visitors:
        visitor.close()


def upload_each_format(visitor: Visitor, folder: Path) -> None:
    page = visitor.page
    grey = toy_image("left", 9).astype(np.uint16) * 16
    files = [square(folder, "left", 9, "jpg"), square(folder, "left", 9)]
    files.append(save(folder / "scan", dataset(grey, 12, Modality="CR")))
    for i, file in enumerate(files):
        visitor.upload(file)
        visitor.wait_for_image(f"Image {i + 1} of {i + 1}")
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
    visitor.upload(files[2])
    visitor.wait_for_image("CR, 32 × 32 pixels")


def draft(visitor: Visitor) -> None:
    page = visitor.page
    page.click("#xg-draft")
    visitor.until("value('impression').endsWith('.')")
    visitor.wait()
    texts = [page.input_value(f"#xg-{box} textarea") for box in ("findings", "impression")]
    assert "Findings: {} Impression: {}".format(*texts) == REPORTS["left"]
    visitor.until("document.querySelectorAll('#xg-words button').length === 3")
    assert page.locator("#xg-words button").all_inner_texts() == [
        "A square is on the left.", "No bone is broken.", "Left square.",
    ]  # fmt: skip


def show_maps(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#xg-words button").first.click()
    page.wait_for_selector(".xg-heat")
    visitor.until("find('#xg-looked').innerText.includes('attention went')")
    assert "of the attention went to images" in visitor.text("#xg-looked")
    assert page.locator("#xg-words button").first.get_attribute("aria-pressed") == "true"
    page.fill("#xg-opacity input[type=number]", "20")
    page.keyboard.press("Tab")
    visitor.until("style('.xg-heat').opacity === '0.2'")
    page.get_by_label("Words").check()
    visitor.until("document.querySelectorAll('#xg-words button').length > 8")
    page.locator("#xg-words button").nth(1).click()
    page.wait_for_selector(".xg-heat")


def ask_questions(visitor: Visitor) -> None:
    page = visitor.page
    for question in ("Is it <b>left</b>?", "What else?"):
        visitor.ask(question)
        assert question in visitor.text("#xg-chat")
    page.click('#xg-questions [data-pick="3"]')
    visitor.until(f"value('question') === '{EXAMPLES[3]}'")
    page.click("#xg-ask")
    visitor.until("value('question') === ''")
    visitor.wait()


def show_map_of_draft(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#xg-turn input").click()
    page.get_by_role("option", name="the draft").click()
    visitor.until("find('#xg-words').innerText.includes('square')")
    page.get_by_label("Sentences").check()
    visitor.until("find('#xg-words').innerText.includes('No bone is broken.')")
    page.get_by_role("button", name="No bone is broken.").click()
    visitor.until("find('#xg-looked').innerText.includes('No bone is broken.')")


def stop_and_regenerate(visitor: Visitor, site: SimpleNamespace) -> None:
    page = visitor.page
    site.slow = 0.1
    page.fill("#xg-question textarea", "Stop me.")
    page.click("#xg-ask")
    visitor.until("find('#xg-chat').innerText.includes('Stop me.')")
    for button in ("draft", "ask", "export-pdf"):
        assert page.locator(f"#xg-{button}").is_disabled()
    visitor.until("value('question') === ''")
    page.fill("#xg-question textarea", "Typed meanwhile")
    page.wait_for_timeout(500)
    page.click("#xg-stop")
    visitor.wait()
    site.slow = 0.0
    assert page.input_value("#xg-question textarea") == "Typed meanwhile"
    assert "Stopped." in visitor.text("#xg-status")
    page.click("#xg-again")
    visitor.until("!find('#xg-status').innerText.includes('Stopped.')")
    visitor.wait()
    assert visitor.text("#xg-chat").count("Stop me.") == 1


def edit_and_export(visitor: Visitor) -> None:
    page = visitor.page
    page.fill("#xg-findings textarea", "Edited by hand: Ω.")
    page.keyboard.press("Tab")
    content = json.loads(visitor.download("json"))
    assert content["findings"] == "Edited by hand: Ω." and content["edited"] is True
    assert content["impression"] == "Left square." and content["prompt"] == "Report."
    assert len(content["conversation"]) == 4
    assert b"Edited by hand" in visitor.download("md")
    assert visitor.download("pdf").startswith(b"%PDF")


def clear_and_leave(visitor: Visitor, site: SimpleNamespace) -> None:
    page = visitor.page
    [session] = site.controller.sessions._open.values()
    assert list(session.folder.iterdir())
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
    uploads = site.controller.sessions.uploads.rglob("*")
    assert not list(session.folder.iterdir())
    assert not [path for path in uploads if path.is_file() and path.stat().st_size]
    assert page.input_value("#xg-findings textarea") == ""
    assert visitor.errors == []
    assert {h for h in visitor.hosts if h.startswith("http")} == {site.url.rstrip("/")}
    visitor.close()
    deadline = time.monotonic() + 160
    while len(site.controller.sessions) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(site.controller.sessions) == 0 and not session.folder.exists()


def test_a_full_visit(visit, site, tmp_path):
    width, scheme = 1440, "light"
    visitor = visit(width, color_scheme=scheme)
    assert "research use only" in visitor.text(".xg-notice")
    visitor.screenshot(f"empty-{width}-{scheme}")
    upload_each_format(visitor, tmp_path)
    draft(visitor)
    show_maps(visitor)
    ask_questions(visitor)
    show_map_of_draft(visitor)
    stop_and_regenerate(visitor, site)
    edit_and_export(visitor)
    visitor.screenshot(f"visit-{width}-{scheme}")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") <= width
    clear_and_leave(visitor, site)


CONTROLS = ("draft", "ask", "again", "clear", "export-json", "export-md", "export-pdf")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (390, "light"), (390, "dark")])
def test_everything_is_reachable_on_other_screens(visit, site, tmp_path, width, scheme):
    visitor = visit(width, color_scheme=scheme)
    page = visitor.page
    assert "research use only" in visitor.text(".xg-notice")
    visitor.screenshot(f"empty-{width}-{scheme}")
    visitor.upload(square(tmp_path, "left", 9))
    visitor.wait_for_image("Image 1 of 1")
    draft(visitor)
    page.locator("#xg-words button").first.click()
    page.wait_for_selector(".xg-heat")
    visitor.ask("Is it <b>left</b>?")
    assert "Is it <b>left</b>?" in visitor.text("#xg-chat")
    for control in CONTROLS:  # not covered by another element
        page.locator(f"#xg-{control}").click(trial=True)
    for other in ('#xg-questions [data-pick="3"]', '[data-zoom="in"]', "#xg-turn input"):
        page.locator(other).click(trial=True)
    assert json.loads(visitor.download("json"))["impression"] == "Left square."
    visitor.screenshot(f"visit-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
    assert visitor.errors == []
    assert {h for h in visitor.hosts if h.startswith("http")} == {site.url.rstrip("/")}


def test_bad_files_get_a_message_and_the_page_still_works(visit, tmp_path):
    visitor = visit()
    for name, (file, message) in refused_files(tmp_path).items():
        if not file.stat().st_size:
            continue  # browsers do not send empty files
        visitor.upload(file)
        assert message in visitor.toast(), name
    for name, (file, message) in files_with_warnings(tmp_path).items():
        visitor.upload(file)
        visitor.page.wait_for_function(
            "(text) => document.querySelector('#xg-doubts')?.innerText.includes(text)", arg=message
        )
        assert "You can continue" in visitor.text("#xg-doubts"), name
    visitor.screenshot("warnings")
    visitor.page.click("#xg-draft")
    visitor.until("document.querySelectorAll('#xg-words button').length > 0")


def test_invalid_questions_show_a_message(visit):
    visitor = visit()
    visitor.page.click("#xg-draft")
    assert "upload an X-ray or choose an example first" in visitor.toast()
    visitor.wait()
    visitor.page.click("#xg-ask")
    assert "the question is empty" in visitor.toast()
    visitor.wait()
    visitor.page.fill("#xg-question textarea", "x" * 100_000)
    visitor.page.click("#xg-ask")
    assert "100,000 characters" in visitor.toast()
    visitor.screenshot("toast")
    visitor.wait()
    visitor.ask("Short.")
    attack = '<img src=x onerror="window.attacked = 1"><script>window.attacked = 2</script>'
    visitor.ask(attack)
    assert attack in visitor.text("#xg-chat")
    assert visitor.page.evaluate("window.attacked") is None


def test_closing_the_browser_during_an_answer_ends_the_session(visit, site, tmp_path):
    visitor, other = visit(), visit()
    visitor.upload(square(tmp_path, "left"))
    visitor.wait_for_image("32 × 32")
    other.upload(square(tmp_path, "right"))
    other.wait_for_image("32 × 32")
    site.slow = 0.05
    visitor.page.click("#xg-draft")
    visitor.until("value('findings').length > 3")
    visitor.close()
    deadline = time.monotonic() + 160
    while len(site.controller.sessions) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    site.slow = 0.0
    assert len(site.controller.sessions) == 1
    other.page.click("#xg-draft")  # the model is free again
    other.until("value('impression') === 'Right square.'")


def test_a_page_whose_session_has_ended_shows_a_message(visit, site, tmp_path):
    visitor = visit()
    visitor.upload(square(tmp_path, "left"))
    visitor.wait_for_image("32 × 32")
    for key in list(site.controller.sessions._open):
        site.controller.sessions.end(key, "the connection to this page was lost")
    visitor.page.click("#xg-draft")
    assert "the connection to this page was lost, and its images were deleted" in visitor.toast()
    assert not visitor.page.locator("#xg-draft").is_disabled()
    visitor.page.reload()
    visitor.page.wait_for_selector("#xg-draft")
    visitor.upload(square(tmp_path, "left"))
    visitor.wait_for_image("32 × 32")


def test_frames(visit, tmp_path):
    frames = np.stack([toy_image(kind, 1) for kind in ("none", "left", "right")])
    visitor = visit()
    visitor.upload(save(tmp_path / "cine.dcm", dataset(frames, Modality="XA")))
    visitor.wait_for_image("frame 1 of 3")
    visitor.page.fill("#xg-frame input[type=number]", "3")
    visitor.page.keyboard.press("Tab")
    visitor.wait_for_image("frame 3 of 3")
    assert visitor.page.locator("#xg-frame").is_visible()
    visitor.page.click("#xg-draft")
    visitor.until("value('impression').endsWith('.')")
    visitor.wait()
    expected = REPORTS["right"].split("Impression: ")[1]
    assert visitor.page.input_value("#xg-impression textarea") == expected


def test_examples_several_images_and_keys(visit, site, tmp_path):
    visitor = visit()
    page = visitor.page
    page.locator('#xg-examples [data-pick="0"]').focus()
    page.keyboard.press("Enter")
    visitor.wait_for_image("Image 1 of 1")
    page.click('#xg-examples [data-pick="2"]')  # another case
    page.wait_for_timeout(1000)
    visitor.wait_for_image("Image 1 of 1: SYNTHETIC phantom")
    visitor.upload(draw_examples(tmp_path / "drawn")[1][0])
    visitor.wait_for_image("Image 2 of 2: SYNTHETIC phantom")
    visitor.until("find('#xg-status').innerText.includes('Clear all starts another case')")
    assert "SYNTHETIC phantom" in visitor.text("#xg-facts")
    first = visitor.pixels()
    page.get_by_label("Image 1").check()
    visitor.wait_for_image("Image 1 of 2")
    assert (visitor.pixels() != first).any()
    page.focus(".xg-viewer")
    for key, zoom in (("+", "1.25"), ("+", "1.5625"), ("-", "1.25"), ("0", "1")):
        page.keyboard.press(key)
        actual = page.eval_on_selector(
            "#xg-viewer .xg-pan", "pan => getComputedStyle(pan).getPropertyValue('--xg-z')"
        )
        assert float(actual) == float(zoom)
    page.click('[data-zoom="in"]')
    assert "matrix(1.25" in page.eval_on_selector(
        ".xg-pan", "pan => getComputedStyle(pan).transform"
    )
    page.focus("#xg-draft")
    page.keyboard.press("Enter")
    visitor.until("document.querySelectorAll('#xg-words button').length > 0")
    visitor.wait()
    page.locator("#xg-words button").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".xg-heat")
    assert "Image 2:" in visitor.text("#xg-looked")


@pytest.mark.data
def test_real_dicom_files_are_shown_as_read(visit, real_data):
    for file in sorted((real_data / "dicom").glob("*.dcm")):
        visitor = visit()
        page = visitor.page
        visitor.upload(file)
        visitor.wait_for_image("CR PA")
        level, width = read_image(file).meta["window"]
        assert page.input_value("#xg-level input[type=number]") == f"{level:g}"
        visitor.screenshot(f"dicom-{file.stem}")

        def expected(file=file, invert=False, **options) -> np.ndarray:
            pixels = np.rint(read_image(file, **options).pixels * 255).astype(np.uint8)
            return thumbnail(255 - pixels if invert else pixels, VIEW_SIDE)

        np.testing.assert_array_equal(visitor.pixels(), expected())
        rows, columns = visitor.pixels().shape
        spine = visitor.pixels()[rows // 2 :, columns // 2 - 20 : columns // 2 + 20].mean()
        lung = visitor.pixels()[rows // 3 : rows // 2, columns // 5 : columns // 3].mean()
        assert spine > lung + 20  # bones bright

        def change(action, visitor=visitor) -> None:
            before = visitor.page.locator(".xg-film").get_attribute("src")
            action()
            visitor.page.wait_for_function(
                "(before) => document.querySelector('.xg-film').src !== before", arg=before
            )

        def narrow(page=page, level=level, width=width) -> None:
            page.fill("#xg-width input[type=number]", f"{width // 2:g}")
            page.keyboard.press("Tab")

        change(narrow)
        np.testing.assert_array_equal(visitor.pixels(), expected(window=(level, width // 2)))
        change(lambda page=page: page.get_by_label("Invert").check())
        np.testing.assert_array_equal(
            visitor.pixels(), expected(window=(level, width // 2), invert=True)
        )
        change(lambda page=page: page.get_by_role("button", name="Reset view").click())
        np.testing.assert_array_equal(visitor.pixels(), expected())
