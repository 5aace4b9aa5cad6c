"""Image files for the tests of corpora."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tests.conftest import toy_image


def save_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(toy_image("left", seed)).save(path)
