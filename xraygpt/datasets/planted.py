"""Real normal images with a SYNTHETIC lesion in a lung, for training an encoder.

What is small and rare is hardly learned from a few thousand reports. Each normal training image of
a table of studies gives copies with one to three small spots as bright as bone (a calcified
granuloma), or a larger, softer and fainter one (a nodule), drawn on first use and kept; coding and
text say where they are. Nothing of val or test is touched, and nothing
measured on these images concerns patients.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.common.logging import progress
from xraygpt.common.paths import cache_root
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Record
from xraygpt.datasets.builder import RecordError
from xraygpt.datasets.records import FieldMap, RecordsBuilder, read_table
from xraygpt.media.pixels import read_image
from xraygpt.vocabulary import questions

log = logging.getLogger(__name__)

Kind = Literal["granuloma", "nodule"]
SOURCE = "SYNTHETIC {name} in a real image"
# In words, and as the coders of the Indiana collection have it.
NAMES: dict[Kind, tuple[str, str]] = {
    "granuloma": ("calcified granuloma", "Calcified Granuloma/lung"),
    "nodule": ("nodule", "Nodule/lung"),
}
ROWS, VERSION = "reports.jsonl", 2
# Lung fields of an upright frontal image, x0, x1, y0, y1 as shares of it; the patient's right is
# on the left. The lower left one keeps clear of the heart.
_FIELDS = {
    ("right", "upper lobe"): (0.20, 0.40, 0.18, 0.36),
    ("right", "lower lobe"): (0.17, 0.38, 0.40, 0.60),
    ("left", "upper lobe"): (0.60, 0.80, 0.18, 0.36),
    ("left", "lower lobe"): (0.66, 0.83, 0.40, 0.58),
}
_MM = 1 / 350  # of the picture's width: a chest film is about 35 cm wide


@registry.register_builder("planted_lesions")
class PlantedLesions(RecordsBuilder):
    """A table of studies, of which normal training images come back with a drawn lesion."""

    @dataclass(kw_only=True)
    class Config(RecordsBuilder.Config):
        """Settings of a table of studies, and of what is drawn into it."""

        planted_seed: int = 0
        """Another seed, other places and sizes."""
        copies: int = 1
        """Of each normal image, every one with a lesion of its own."""
        kinds: list[Kind] = field(default_factory=lambda: ["granuloma", "nodule"])
        """What is drawn, in turn."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.also(super().__post_init__)
                check.at_least(1, "copies")
                check.refuse(not self.kinds, "kinds", "must name at least one lesion")

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
        kinds = list(config.kinds)
        paths = [str(p) for _, p, _ in rows]
        facts = [VERSION, config.planted_seed, config.copies, kinds, *paths]
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
                if questions.headings(self._coding(row)) != {questions.NORMAL}:
                    continue
                images, study = list(self._images(row, root)), self._study(row)
                record = Record(
                    sample_id="", study_id=study, media=tuple(images), turns=(), meta={}
                )
                if len(images) == 1 and self._split(row, record) == "train":
                    yield row, images[0].path, study
            except RecordError:
                continue  # `records` of the same table names it

    def _draw(self, folder: Path, rows: list[tuple[dict[str, Any], Path, str]]) -> None:
        partial = folder / f"{ROWS}.partial"
        config = self.config
        with partial.open("w", encoding="utf-8") as file:
            for n, (row, path, study) in enumerate(progress(rows, "planting", unit="image")):
                for k in range(config.copies):
                    kind = config.kinds[(n + k) % len(config.kinds)]
                    rng = keyed_random("planted", config.planted_seed, str(path), k)
                    pixels, side, place = planted(read_image(path).pixels, rng, kind)
                    name = f"images/{n:05d}-{k}.png"
                    about = PngInfo()
                    about.add_text("Source", SOURCE.format(name=NAMES[kind][0]))
                    Image.fromarray(pixels).save(folder / name, pnginfo=about)
                    new = {
                        config.fields.id: f"{study}+{kind}-{n}-{k}",
                        "study": study,
                        "image": name,
                        config.fields.view: row.get(config.fields.view) or "",
                        **self._told(row, kind, side, place),
                    }
                    file.write(json.dumps(new) + "\n")
        partial.replace(folder / ROWS)

    def _told(self, row: dict[str, Any], kind: Kind, side: str, place: str) -> dict[str, Any]:
        """The texts of the study with the lesion in the first of its sections, and its coding."""
        sections, (name, code) = self.config.sections, NAMES[kind]
        texts = {s: row[s] for s in sections if isinstance(row.get(s), str)}
        said = f"There is a {name} in the {side} {place}."
        texts[sections[0]] = f"{texts.get(sections[0], '')} {said}".strip()
        source = SOURCE.format(name=name)
        return {**texts, self.config.fields.codes: [f"{code}/{place}/{side}"], "source": source}


def planted(
    pixels: np.ndarray, rng: Random, kind: Kind = "granuloma"
) -> tuple[np.ndarray, str, str]:
    """An image with one to three hard spots, or a soft one, in one lung field.

    Args:
        pixels: (H, W) or (H, W, 3) float32 in [0, 1], bones bright.
        rng: Draws side, place, sizes (granulomas 2.5 to 9 mm, nodules 8 to 26) and brightness.
        kind: What.

    Returns:
        (H, W) uint8; side and place in words.
    """
    grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
    grey = grey.astype(np.float32)
    height, width = grey.shape
    (side, place), (x0, x1, y0, y1) = rng.choice(sorted(_FIELDS.items()))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / width, (y + 0.5) / width  # both in widths
    cx, cy = rng.uniform(x0, x1), rng.uniform(y0, y1) * height / width
    hard = kind == "granuloma"
    bright = rng.uniform(0.12, 0.45) if hard else rng.uniform(0.08, 0.24)
    out = grey.copy()
    for n in range(rng.choice([1, 1, 1, 2, 3]) if hard else 1):
        radius = rng.uniform(2.5, 9.0) if hard else rng.uniform(8.0, 26.0)
        radius *= _MM / 2 * (1.0 if n == 0 else 0.7)
        far = np.hypot((x - cx) * rng.uniform(0.9, 1.1), (y - cy) * rng.uniform(0.9, 1.1))
        # Calcium has a sharp edge, as a scanner and a JPEG would show it; soft tissue is a ball.
        edge = 1.5 / width if hard else radius * rng.uniform(0.4, 0.9)
        out += bright * np.clip((radius - far) / edge + 0.5, 0, 1) * (1 - 0.6 * out)
        angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 6) * radius
        cx, cy = cx + step * np.cos(angle), cy + step * np.sin(angle)
    return (np.clip(out, 0, 1) * 255).round().astype(np.uint8), side, place
