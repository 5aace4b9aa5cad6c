"""The page in a real browser (Chromium, headless).

XRAYGPT_SHOTS names a folder for screenshots, to be looked at.
"""

from __future__ import annotations

import json
import os
import re
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
from tests.demo.hostile import doubted, refused
from tests.demo.taught import REPORTS, desk, square
from tests.media.test_dicom import dataset, save
from xraygpt.demo.launch import phantoms, serve
from xraygpt.media.pixels import read_image

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is absent")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine"),
]
DONE = "find('#xg-stop').disabled && !find('#xg-ask').disabled"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def site() -> Iterator[SimpleNamespace]:
    """The served page; `slow` seconds pass before each token, and no answer ends meanwhile."""
    at = desk()
    at.examples = phantoms(at.sessions.root / "examples")
    blocks, url = serve(at, "127.0.0.1", None, None)
    found = SimpleNamespace(desk=at, url=url, slow=0.0)
    renderer, decoder = at.parts.engine.renderer, at.parts.engine.decoder
    starts = (renderer.tokenizer(s, add_special_tokens=False) for s in renderer.stop_strings)
    ends = [*decoder.end_ids, *(ids["input_ids"][0] for ids in starts)]

    def dawdle(_llm: Any, _args: Any, out: Any) -> None:
        if found.slow:
            time.sleep(found.slow)
            out.logits[..., ends] = -torch.inf

    hook = at.parts.engine.model.llm.register_forward_hook(dawdle)
    yield found
    hook.remove()
    blocks.close(verbose=False)
    at.sessions.close()
    assert not at.sessions.root.exists()


class Visitor:
    """Somebody at the page."""

    def __init__(self, chromium: Any, site: SimpleNamespace, width: int = 1440, **how: Any) -> None:
        self.context = chromium.new_context(viewport={"width": width, "height": 1000}, **how)
        self.page = self.context.new_page()
        self.wrong: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on(
            "request", lambda r: self.hosts.add(re.sub(r"^(\w+://[^/]*).*", r"\1", r.url[:200]))
        )
        self.page.goto(site.url)
        self.page.wait_for_selector("#xg-draft")
        self.page.wait_for_selector("#xg-viewer .xg-viewer")

    def upload(self, *files: Path) -> None:
        self.page.set_input_files("#xg-upload input[type=file]", [str(f) for f in files])

    def see(self, what: str) -> str:
        return self.page.locator(what).inner_text()

    def until(self, holds: str) -> None:
        """Wait for a condition in JavaScript; `find` and `value` take selectors."""
        self.page.wait_for_function(
            f"""() => {{
                const find = (what) => document.querySelector(what);
                const value = (box) => find(`#xg-${{box}} textarea`).value;
                const style = (what) => getComputedStyle(find(what));
                return {holds};
            }}"""
        )

    def wait(self) -> None:
        self.until(DONE)

    def shown(self, label: str) -> None:
        """Until the viewer shows an image of this description."""
        self.page.wait_for_selector(f'.xg-film[alt*="{label}"]')

    def pixels(self) -> np.ndarray:
        """(H, W) red of the film as the browser decoded it."""
        script = """async (film) => {
            await film.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [film.naturalWidth, film.naturalHeight];
            const context = canvas.getContext('2d');
            context.drawImage(film, 0, 0);
            const all = context.getImageData(0, 0, canvas.width, canvas.height).data;
            let text = '';
            for (let i = 0; i < all.length; i += 4) text += String.fromCharCode(all[i]);
            return [canvas.height, canvas.width, btoa(text)];
        }"""
        import base64

        height, width, red = self.page.locator(".xg-film").evaluate(script)
        return np.frombuffer(base64.b64decode(red), np.uint8).reshape(height, width)

    def ask(self, question: str) -> None:
        self.page.fill("#xg-question textarea", question)
        self.page.click("#xg-ask")
        self.until("value('question') === ''")
        self.wait()

    def download(self, kind: str) -> bytes:
        with self.page.expect_download() as waiting:
            self.page.click(f"#xg-export-{kind}")
        assert waiting.value.suggested_filename.endswith(f".{kind}")
        return Path(waiting.value.path()).read_bytes()

    def toast(self) -> str:
        """What the page says in passing; it is closed then."""
        body = self.page.locator(".toast-body")
        text = body.first.inner_text()
        self.page.locator(".toast-close").first.click()
        body.first.wait_for(state="detached")
        return text

    def shoot(self, name: str) -> None:
        if folder := os.environ.get("XRAYGPT_SHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def leave(self) -> None:
        self.context.close()


@pytest.fixture
def visit(chromium: Any, site: SimpleNamespace) -> Iterator[Any]:
    visitors: list[Visitor] = []

    def arrive(width: int = 1440, **how: Any) -> Visitor:
        visitors.append(Visitor(chromium, site, width, **how))
        return visitors[-1]

    yield arrive
    site.slow = 0.0
    for visitor in visitors:
        visitor.leave()


def test_a_whole_visit(visit, site, tmp_path):
    from xraygpt.demo.layout import QUESTIONS

    width, scheme = 1440, "light"
    visitor = visit(width, color_scheme=scheme)
    page = visitor.page
    assert "research use only" in visitor.see(".xg-notice")
    visitor.shoot(f"empty-{width}-{scheme}")
    grey = toy_image("left", 9).astype(np.uint16) * 16
    files = [square(tmp_path, "left", 9, "jpg"), square(tmp_path, "left", 9)]
    files.append(save(tmp_path / "scan", dataset(grey, 12, Modality="CR")))
    for i, file in enumerate(files):
        visitor.upload(file)
        visitor.shown(f"Image {i + 1} of {i + 1}")
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
    visitor.upload(files[2])
    visitor.shown("CR, 32 × 32 pixels")

    page.click("#xg-draft")
    visitor.until("value('impression').endsWith('.')")
    visitor.wait()
    said = [page.input_value(f"#xg-{box} textarea") for box in ("findings", "impression")]
    assert "Findings: {} Impression: {}".format(*said) == REPORTS["left"]
    visitor.until("document.querySelectorAll('#xg-words button').length === 3")
    assert page.locator("#xg-words button").all_inner_texts() == [
        "A square is on the left.", "No bone is broken.", "Left square.",
    ]  # fmt: skip
    page.locator("#xg-words button").first.click()
    page.wait_for_selector(".xg-heat")
    visitor.until("find('#xg-looked').innerText.includes('attention went')")
    assert "of the attention went to images" in visitor.see("#xg-looked")
    assert page.locator("#xg-words button").first.get_attribute("aria-pressed") == "true"
    page.fill("#xg-opacity input[type=number]", "20")
    page.keyboard.press("Tab")
    visitor.until("style('.xg-heat').opacity === '0.2'")
    page.get_by_label("Words").check()
    visitor.until("document.querySelectorAll('#xg-words button').length > 8")
    page.locator("#xg-words button").nth(1).click()
    page.wait_for_selector(".xg-heat")

    for question in ("Is it <b>left</b>?", "What else?"):
        visitor.ask(question)
        assert question in visitor.see("#xg-chat")
    page.click('#xg-questions [data-pick="3"]')
    visitor.until(f"value('question') === '{QUESTIONS[3]}'")
    page.click("#xg-ask")
    visitor.until("value('question') === ''")
    visitor.wait()

    page.locator("#xg-turn input").click()  # the draft can still be looked at
    page.get_by_role("option", name="the draft").click()
    visitor.until("find('#xg-words').innerText.includes('square')")
    page.get_by_label("Sentences").check()
    visitor.until("find('#xg-words').innerText.includes('No bone is broken.')")
    page.get_by_role("button", name="No bone is broken.").click()
    visitor.until("find('#xg-looked').innerText.includes('No bone is broken.')")

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
    assert "Stopped." in visitor.see("#xg-status")
    page.click("#xg-again")
    visitor.until("!find('#xg-status').innerText.includes('Stopped.')")
    visitor.wait()
    assert visitor.see("#xg-chat").count("Stop me.") == 1

    page.fill("#xg-findings textarea", "Edited by hand: Ω.")
    page.keyboard.press("Tab")
    content = json.loads(visitor.download("json"))
    assert content["findings"] == "Edited by hand: Ω." and content["edited"] is True
    assert content["impression"] == "Left square." and content["prompt"] == "Report."
    assert len(content["conversation"]) == 4
    assert b"Edited by hand" in visitor.download("md")
    assert visitor.download("pdf").startswith(b"%PDF")
    visitor.shoot(f"visit-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    [session] = site.desk.sessions._open.values()
    assert list(session.folder.iterdir())
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
    uploads = site.desk.sessions.uploads.rglob("*")
    assert not list(session.folder.iterdir())
    assert not [path for path in uploads if path.is_file() and path.stat().st_size]
    assert page.input_value("#xg-findings textarea") == ""
    assert visitor.wrong == []
    assert {h for h in visitor.hosts if h.startswith("http")} == {site.url.rstrip("/")}
    visitor.leave()
    deadline = time.monotonic() + 160
    while len(site.desk.sessions) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(site.desk.sessions) == 0 and not session.folder.exists()


CONTROLS = ("draft", "ask", "again", "clear", "export-json", "export-md", "export-pdf")


@pytest.mark.parametrize(("width", "scheme"), [(1440, "dark"), (390, "light"), (390, "dark")])
def test_other_screens_show_and_reach_everything(visit, site, tmp_path, width, scheme):
    visitor = visit(width, color_scheme=scheme)
    page = visitor.page
    assert "research use only" in visitor.see(".xg-notice")
    visitor.shoot(f"empty-{width}-{scheme}")
    visitor.upload(square(tmp_path, "left", 9))
    visitor.shown("Image 1 of 1")
    page.click("#xg-draft")
    visitor.until("document.querySelectorAll('#xg-words button').length === 3")
    visitor.wait()
    said = [page.input_value(f"#xg-{box} textarea") for box in ("findings", "impression")]
    assert "Findings: {} Impression: {}".format(*said) == REPORTS["left"]
    page.locator("#xg-words button").first.click()
    page.wait_for_selector(".xg-heat")
    visitor.ask("Is it <b>left</b>?")
    assert "Is it <b>left</b>?" in visitor.see("#xg-chat")
    for control in CONTROLS:  # nothing covers it
        page.locator(f"#xg-{control}").click(trial=True)
    for other in ('#xg-questions [data-pick="3"]', '[data-zoom="in"]', "#xg-turn input"):
        page.locator(other).click(trial=True)
    assert json.loads(visitor.download("json"))["impression"] == "Left square."
    visitor.shoot(f"visit-{width}-{scheme}")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("#xg-clear")
    page.wait_for_selector(".xg-empty")
    assert visitor.wrong == []
    assert {h for h in visitor.hosts if h.startswith("http")} == {site.url.rstrip("/")}


def test_hostile_files_get_a_sentence_and_the_page_goes_on(visit, tmp_path):
    visitor = visit()
    for name, (file, said) in refused(tmp_path).items():
        if not file.stat().st_size:
            continue  # a browser sends no empty file
        visitor.upload(file)
        assert said in visitor.toast(), name
    for name, (file, said) in doubted(tmp_path).items():
        visitor.upload(file)
        visitor.page.wait_for_function(
            "(said) => document.querySelector('#xg-doubts')?.innerText.includes(said)", arg=said
        )
        assert "You can go on" in visitor.see("#xg-doubts"), name
    visitor.shoot("doubted")
    visitor.page.click("#xg-draft")
    visitor.until("document.querySelectorAll('#xg-words button').length > 0")


def test_questions_that_cannot_be_asked(visit):
    visitor = visit()
    visitor.page.click("#xg-draft")
    assert "upload an X-ray first" in visitor.toast()
    visitor.wait()
    visitor.page.click("#xg-ask")
    assert "the question is empty" in visitor.toast()
    visitor.wait()
    visitor.page.fill("#xg-question textarea", "x" * 100_000)
    visitor.page.click("#xg-ask")
    assert "100,000 characters" in visitor.toast()
    visitor.shoot("toast")
    visitor.wait()
    visitor.ask("Short.")
    attack = '<img src=x onerror="window.attacked = 1"><script>window.attacked = 2</script>'
    visitor.ask(attack)
    assert attack in visitor.see("#xg-chat")
    assert visitor.page.evaluate("window.attacked") is None


def test_a_browser_closed_mid_answer_leaves_nothing(visit, site, tmp_path):
    visitor, other = visit(), visit()
    visitor.upload(square(tmp_path, "left"))
    visitor.shown("32 × 32")
    other.upload(square(tmp_path, "right"))
    other.shown("32 × 32")
    site.slow = 0.05
    visitor.page.click("#xg-draft")
    visitor.until("value('findings').length > 3")
    visitor.leave()
    deadline = time.monotonic() + 160
    while len(site.desk.sessions) > 1 and time.monotonic() < deadline:
        time.sleep(0.2)
    site.slow = 0.0
    assert len(site.desk.sessions) == 1
    other.page.click("#xg-draft")  # the lane is free again
    other.until("value('impression') === 'Right square.'")


def test_a_page_whose_session_has_ended_is_told(visit, site, tmp_path):
    visitor = visit()
    visitor.upload(square(tmp_path, "left"))
    visitor.shown("32 × 32")
    for key in list(site.desk.sessions._open):
        site.desk.sessions.end(key, "the connection to this page was lost")
    visitor.page.click("#xg-draft")
    assert "the connection to this page was lost, and its images were deleted" in visitor.toast()
    assert not visitor.page.locator("#xg-draft").is_disabled()
    visitor.page.reload()
    visitor.page.wait_for_selector("#xg-draft")
    visitor.upload(square(tmp_path, "left"))
    visitor.shown("32 × 32")


def test_frames(visit, tmp_path):
    frames = np.stack([toy_image(kind, 1) for kind in ("none", "left", "right")])
    visitor = visit()
    visitor.upload(save(tmp_path / "cine.dcm", dataset(frames, Modality="XA")))
    visitor.shown("frame 1 of 3")
    visitor.page.fill("#xg-frame input[type=number]", "3")
    visitor.page.keyboard.press("Tab")
    visitor.shown("frame 3 of 3")
    assert visitor.page.locator("#xg-frame").is_visible()
    visitor.page.click("#xg-draft")
    visitor.until("value('impression').endsWith('.')")
    visitor.wait()
    wanted = REPORTS["right"].split("Impression: ")[1]
    assert visitor.page.input_value("#xg-impression textarea") == wanted


def test_examples_several_images_and_keys(visit, site, tmp_path):
    visitor = visit()
    page = visitor.page
    page.locator('#xg-examples [data-pick="0"]').focus()
    page.keyboard.press("Enter")
    visitor.shown("Image 1 of 1")
    page.click('#xg-examples [data-pick="2"]')  # another case
    page.wait_for_timeout(1000)
    visitor.shown("Image 1 of 1: SYNTHETIC phantom")
    visitor.upload(phantoms(tmp_path / "drawn")[1][0])
    visitor.shown("Image 2 of 2: SYNTHETIC phantom")
    visitor.until("find('#xg-status').innerText.includes('Clear all begins another case')")
    assert "SYNTHETIC phantom" in visitor.see("#xg-facts")
    first = visitor.pixels()
    page.get_by_label("Image 1").check()
    visitor.shown("Image 1 of 2")
    assert (visitor.pixels() != first).any()
    page.focus(".xg-viewer")
    for key, zoom in (("+", "1.25"), ("+", "1.5625"), ("-", "1.25"), ("0", "1")):
        page.keyboard.press(key)
        found = page.eval_on_selector(
            "#xg-viewer .xg-pan", "pan => getComputedStyle(pan).getPropertyValue('--xg-z')"
        )
        assert float(found) == float(zoom)
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
    assert "Image 2:" in visitor.see("#xg-looked")


@pytest.mark.data
def test_real_dicom_files_are_shown_as_the_reader_reads_them(visit, real_data):
    for file in sorted((real_data / "dicom").glob("*.dcm")):
        visitor = visit()
        page = visitor.page
        visitor.upload(file)
        visitor.shown("CR PA")
        own = read_image(file)
        level, width = own.meta["window"]
        assert page.input_value("#xg-level input[type=number]") == f"{level:g}"
        visitor.shoot(f"dicom-{file.stem}")

        def wanted(file=file, invert=False, **how) -> np.ndarray:
            from xraygpt.demo.display import VIEW_SIDE, thumbnail

            shown = np.rint(read_image(file, **how).pixels * 255).astype(np.uint8)
            return thumbnail(255 - shown if invert else shown, VIEW_SIDE)

        np.testing.assert_array_equal(visitor.pixels(), wanted())
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
        np.testing.assert_array_equal(visitor.pixels(), wanted(window=(level, width // 2)))
        change(lambda page=page: page.get_by_label("Invert").check())
        np.testing.assert_array_equal(
            visitor.pixels(), wanted(window=(level, width // 2), invert=True)
        )
        change(lambda page=page: page.get_by_role("button", name="Reset view").click())
        np.testing.assert_array_equal(visitor.pixels(), wanted())
