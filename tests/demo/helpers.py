"""Steps shared by the tests of the demo."""

from __future__ import annotations

import shutil
import time
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

from xraygpt.demo.controller import DemoController
from xraygpt.demo.decoding import DecodingSettings
from xraygpt.demo.responder import AnswerUpdate
from xraygpt.demo.sessions import Session

SHORT = DecodingSettings(max_new_tokens=24)


def upload(controller: DemoController, session: Session, *files: Path) -> list[str]:
    """Copy files into a subfolder of the upload folder, as Gradio does, and add them."""
    paths = []
    for i, file in enumerate(files):
        folder = controller.sessions.uploads / f"{time.monotonic_ns()}-{i}"
        folder.mkdir()
        paths.append(shutil.copy(file, folder))
    return controller.images.add_uploads(session, paths)


def final_text(updates: Iterator[AnswerUpdate]) -> str:
    return list(updates)[-1].text


def exported_content(file: dict[str, str]) -> bytes:
    return b64decode(file["content"])
