"""A user of the page in a headless browser."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np


class Visitor:
    """A user with the page open in a browser."""

    def __init__(
        self, chromium: Any, site: SimpleNamespace, width: int = 1440, **context: Any
    ) -> None:
        self.context = chromium.new_context(viewport={"width": width, "height": 1000}, **context)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "request", lambda r: self.hosts.add(re.sub(r"^(\w+://[^/]*).*", r"\1", r.url[:200]))
        )
        self.page.goto(site.url)
        self.page.wait_for_selector("#xg-draft")
        self.page.wait_for_selector("#xg-viewer .xg-viewer")

    def upload(self, *files: Path) -> None:
        self.page.set_input_files("#xg-upload input[type=file]", [str(f) for f in files])

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def until(self, condition: str) -> None:
        """Wait for a condition in JavaScript; `find` and `value` take selectors."""
        self.page.wait_for_function(
            f"""() => {{
                const find = (selector) => document.querySelector(selector);
                const value = (box) => find(`#xg-${{box}} textarea`).value;
                const style = (selector) => getComputedStyle(find(selector));
                return {condition};
            }}"""
        )

    def wait(self) -> None:
        """Wait until no answer is being generated."""
        self.until("find('#xg-stop').disabled && !find('#xg-ask').disabled")

    def wait_for_image(self, label: str) -> None:
        """Wait until the viewer shows an image with this description."""
        self.page.wait_for_selector(f'.xg-film[alt*="{label}"]')

    def pixels(self) -> np.ndarray:
        """(H, W) red channel of the image as the browser decoded it."""
        script = """async (image) => {
            await image.decode();
            const canvas = document.createElement('canvas');
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext('2d');
            context.drawImage(image, 0, 0);
            const all = context.getImageData(0, 0, canvas.width, canvas.height).data;
            let text = '';
            for (let i = 0; i < all.length; i += 4) text += String.fromCharCode(all[i]);
            return [canvas.height, canvas.width, btoa(text)];
        }"""
        height, width, red = self.page.locator(".xg-film").evaluate(script)
        return np.frombuffer(base64.b64decode(red), np.uint8).reshape(height, width)

    def ask(self, question: str) -> None:
        self.page.fill("#xg-question textarea", question)
        self.page.click("#xg-ask")
        self.until("value('question') === ''")
        self.wait()

    def download(self, kind: str) -> bytes:
        with self.page.expect_download() as download:
            self.page.click(f"#xg-export-{kind}")
        assert download.value.suggested_filename.endswith(f".{kind}")
        return Path(download.value.path()).read_bytes()

    def toast(self) -> str:
        """Text of the first notification, which is then closed."""
        body = self.page.locator(".toast-body")
        text = body.first.inner_text()
        self.page.locator(".toast-close").first.click()
        body.first.wait_for(state="detached")
        return text

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("XRAYGPT_SHOTS"):
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def close(self) -> None:
        self.context.close()
