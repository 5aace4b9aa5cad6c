"""Real normal images with a SYNTHETIC calcified granuloma in a lung, for training an encoder.

What is small and rare is hardly learned from a few thousand reports. Each normal training image of
a table of studies gives copies with one to three small spots as bright as bone, drawn on first use
and kept; coding and text say where they are. Nothing of val or test is touched, and nothing
measured on these images concerns patients.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraygpt.common.draws import keyed_random
from xraygpt.common.errors import DataError
from xraygpt.common.logging import progress
from xraygpt.common.paths import cache_root
from xraygpt.common.registry import registry
from xraygpt.datasets import targets
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import RecordError
from xraygpt.datasets.records import FieldMap, RecordsBuilder, read_table
from xraygpt.processors.pixels import read_image

log = logging.getLogger(__name__)

SOURCE = "SYNTHETIC calcified granuloma in a real image"
ROWS, VERSION = "reports.jsonl", 1
# Lung fields of an upright frontal image, x0, x1, y0, y1 as shares of it; the patient's right is
# on the left. The lower left one keeps clear of the heart.
_FIELDS = {
    ("right", "upper lobe"): (0.20, 0.40, 0.18, 0.36),
    ("right", "lower lobe"): (0.17, 0.38, 0.40, 0.60),
    ("left", "upper lobe"): (0.60, 0.80, 0.18, 0.36),
    ("left", "lower lobe"): (0.66, 0.83, 0.40, 0.58),
}
_MM = 1 / 350  # of the picture's width: a chest film is about 35 cm wide


@registry.register_builder("planted_granulomas")
class PlantedGranulomas(RecordsBuilder):
    """A table of studies, of which normal training images come back with a drawn granuloma."""

    @dataclass(kw_only=True)
    class Config(RecordsBuilder.Config):
        """Settings of a table of studies, and of what is drawn into it."""

        planted_seed: int = 0
        """Another seed, other places and sizes."""
        copies: int = 1
        """Of each normal image, every one with spots of its own."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.copies < 1:
                raise ValueError(f"copies ({self.copies}) must be at least 1")

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Each copy, all of them train; draws what is not there."""
        config = self.config
        folder = self._drawn()
        own = config.fields
        names = FieldMap(id=own.id, view=own.view, codes=own.codes, keep=["source"])
        place: dict[str, Any] = {
            "storage": folder,
            "annotations": Path(ROWS),
            "images": None,
            "format": "jsonl",
        }
        self.config = replace(config, **place, fields=names, study_prefix="")
        try:
            for _, record in super().records(clean):
                yield "train", record
        finally:
            self.config = config

    def _drawn(self) -> Path:
        """The folder of the copies; of several processes one draws, the others wait."""
        config = self.config
        storage = self.folder("table of studies", "docs/data.md says what it should hold")
        path = storage / self._annotations(storage)
        rows = list(self._normal(path, storage / (config.images or ".")))
        if not rows:
            raise DataError(f"{path}: no training image with one view is coded as normal alone")
        facts = [VERSION, config.planted_seed, config.copies, *(str(p) for _, p, _ in rows)]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        folder = cache_root() / "planted" / key
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / ROWS).is_file():
                    self._draw(folder, rows)
        except OSError as error:
            raise DataError(f"cannot draw into {folder}: {error.strerror}") from None
        return folder

    def _normal(self, path: Path, root: Path) -> Iterator[tuple[dict[str, Any], Path, str]]:
        """Rows of normal training images, the image, and its study."""
        for _, row in read_table(path, self.config.format):
            try:
                if targets.headings(self._coding(row)) != {targets.NORMAL}:
                    continue
                images, study = list(self._images(row, root)), self._study(row)
                record = Record(
                    sample_id="", study_id=study, images=tuple(images), turns=(), meta={}
                )
                if len(images) == 1 and self._split(row, record) == "train":
                    yield row, images[0].path, study
            except RecordError:
                continue  # `records` of the same table names it

    def _draw(self, folder: Path, rows: list[tuple[dict[str, Any], Path, str]]) -> None:
        partial = folder / f"{ROWS}.partial"
        names, seed = self.config.fields, self.config.planted_seed
        with partial.open("w", encoding="utf-8") as file:
            for n, (row, path, study) in enumerate(progress(rows, "planting", unit="image")):
                for k in range(self.config.copies):
                    rng = keyed_random("planted", seed, str(path), k)
                    pixels, side, place = planted(read_image(path).pixels, rng)
                    name = f"images/{n:05d}-{k}.png"
                    about = PngInfo()
                    about.add_text("Source", SOURCE)
                    Image.fromarray(pixels).save(folder / name, pnginfo=about)
                    said = f"There is a calcified granuloma in the {side} {place}."
                    new = {
                        names.id: f"{study}+granuloma-{n}-{k}",
                        "study": study,
                        "image": name,
                        names.view: row.get(names.view) or "",
                        names.codes: [f"Calcified Granuloma/lung/{place}/{side}"],
                        "source": SOURCE,
                        **{s: row[s] for s in self.config.sections if isinstance(row.get(s), str)},
                    }
                    first = self.config.sections[0]
                    new[first] = f"{new.get(first) or ''} {said}".strip()
                    file.write(json.dumps(new) + "\n")
        partial.replace(folder / ROWS)


def planted(pixels: np.ndarray, rng: Random) -> tuple[np.ndarray, str, str]:
    """An image with one to three spots in one lung field.

    Args:
        pixels: (H, W) or (H, W, 3) float32 in [0, 1], bones bright.
        rng: Draws side, place, sizes (2.5 to 9 mm) and brightness.

    Returns:
        (H, W) uint8; side and place in words.
    """
    grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
    grey = grey.astype(np.float32)
    height, width = grey.shape
    (side, place), (x0, x1, y0, y1) = rng.choice(sorted(_FIELDS.items()))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / width, (y + 0.5) / height * height / width  # both in widths
    cx, cy = rng.uniform(x0, x1), rng.uniform(y0, y1) * height / width
    bright = rng.uniform(0.12, 0.45)
    out = grey.copy()
    for n in range(rng.choice([1, 1, 1, 2, 3])):
        radius = rng.uniform(2.5, 9.0) / 2 * _MM * (1.0 if n == 0 else 0.7)
        far = np.hypot((x - cx) * rng.uniform(0.9, 1.1), (y - cy) * rng.uniform(0.9, 1.1))
        edge = 1.5 / width  # sharp, as calcium is, yet as a scanner and a JPEG would show it
        out += bright * np.clip((radius - far) / edge + 0.5, 0, 1) * (1 - 0.6 * out)
        angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 6) * radius
        cx, cy = cx + step * np.cos(angle), cy + step * np.sin(angle)
    return (np.clip(out, 0, 1) * 255).round().astype(np.uint8), side, place
