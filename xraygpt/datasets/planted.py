"""Real normal images with a SYNTHETIC lesion in a lung, for training an encoder.

An encoder hardly learns small and rare findings from a few thousand reports. This corpus therefore
copies each normal training image in a table of studies and draws one to three small spots as bright
as bone (a calcified granuloma), or one larger, softer and fainter spot (a nodule), into the copy;
the codes and the text describe the position. The copies are drawn on first use and kept in the
cache. Studies in val and test are not used, and nothing measured on these images concerns patients.
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
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraygpt.common.annotation_files import read_table
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.keyed_random import keyed_random
from xraygpt.common.logging import progress
from xraygpt.common.paths import cache_root
from xraygpt.common.registry import registry
from xraygpt.datasets.base import Record
from xraygpt.datasets.media_paths import RecordError
from xraygpt.datasets.records import RecordsBuilder
from xraygpt.datasets.row_reader import RowReader
from xraygpt.datasets.table_fields import FieldMap, Row
from xraygpt.media.pixels import read_image
from xraygpt.vocabulary import questions

log = logging.getLogger(__name__)

Kind = Literal["granuloma", "nodule"]
SOURCE = "SYNTHETIC {name} in a real image"
# Name in text, and code in the style of the Indiana collection.
NAMES: dict[Kind, tuple[str, str]] = {
    "granuloma": ("calcified granuloma", "Calcified Granuloma/lung"),
    "nodule": ("nodule", "Nodule/lung"),
}
ROWS, VERSION = "reports.jsonl", 2
# Lung fields of an upright frontal image as fractions of its size: x0, x1, y0, y1. The patient's
# right side is on the left of the image. The left lower field excludes the heart.
_LUNG_FIELDS = {
    ("right", "upper lobe"): (0.20, 0.40, 0.18, 0.36),
    ("right", "lower lobe"): (0.17, 0.38, 0.40, 0.60),
    ("left", "upper lobe"): (0.60, 0.80, 0.18, 0.36),
    ("left", "lower lobe"): (0.66, 0.83, 0.40, 0.58),
}
_MM = 1 / 350  # in image widths: a chest film is about 35 cm wide


class _NormalImage(NamedTuple):
    row: Row
    path: Path
    study_id: str


@registry.register_builder("planted_lesions")
class PlantedLesions(RecordsBuilder):
    """Copies of the normal training images in a table of studies, each with a drawn lesion."""

    @dataclass(kw_only=True)
    class Config(RecordsBuilder.Config):
        """Settings of a table of studies, and of the lesions drawn into its images."""

        planted_seed: int = 0
        """Seed for the positions and sizes of the lesions."""
        copies: int = 1
        """Number of copies of each normal image, with different lesions."""
        kinds: list[Kind] = field(default_factory=lambda: ["granuloma", "nodule"])
        """Kinds of lesions, used in turn."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                check.at_least(1, "copies")
                check.refuse(not self.kinds, "kinds", "must name at least one lesion")

    config: Config

    def records(self, clean: Callable[[str], str]) -> Iterator[tuple[str | None, Record | str]]:
        """Yield each copy, always as train; missing copies are drawn first."""
        config = self.config
        folder = self._ensure_drawn()
        names = config.fields
        self.config = replace(
            config,
            storage=folder,
            annotations=Path(ROWS),
            images=None,
            format="jsonl",
            fields=FieldMap(id=names.id, view=names.view, codes=names.codes, keep=["source"]),
            study_prefix="",
        )
        try:
            for _, record in super().records(clean):
                yield "train", record
        finally:
            self.config = config

    def _ensure_drawn(self) -> Path:
        """Return the folder with the copies; one process draws them while others wait."""
        config = self.config
        path, root = self._table_paths()
        images = list(self._normal_images(path, root))
        if not images:
            raise DataError(
                f"{path} contains no training study that has one image and is coded only as normal"
            )
        paths = [str(image.path) for image in images]
        facts = [VERSION, config.planted_seed, config.copies, list(config.kinds), *paths]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        folder = cache_root() / "planted" / key
        try:
            (folder / "images").mkdir(parents=True, exist_ok=True)
            with (folder / ".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not (folder / ROWS).is_file():
                    self._draw_all(folder, images)
        except OSError as error:
            raise DataError(f"cannot save the drawn images to {folder}: {error.strerror}") from None
        return folder

    def _normal_images(self, path: Path, root: Path) -> Iterator[_NormalImage]:
        """Yield the training studies with one image whose only code is "normal"."""
        reader = RowReader(self.config, root)
        for _, row in read_table(path, self.config.format):
            try:
                if questions.headings(reader.human_codes(row)) != {questions.NORMAL}:
                    continue
                media, study_id = tuple(reader.media(row)), reader.study_id(row)
                record = Record(sample_id="", study_id=study_id, media=media, turns=())
                if len(media) == 1 and reader.split_of_record(row, record) == "train":
                    yield _NormalImage(row, media[0].path, study_id)
            except RecordError:
                continue  # reported by a `records` corpus of the same table

    def _draw_all(self, folder: Path, images: list[_NormalImage]) -> None:
        partial = folder / f"{ROWS}.partial"
        kinds = self.config.kinds
        with partial.open("w", encoding="utf-8") as file:
            for n, image in enumerate(progress(images, "planting", unit="image")):
                for copy in range(self.config.copies):
                    kind = kinds[(n + copy) % len(kinds)]
                    row = self._draw_copy(folder, image, n, copy, kind)
                    file.write(json.dumps(row) + "\n")
        partial.replace(folder / ROWS)

    def _draw_copy(
        self, folder: Path, image: _NormalImage, n: int, copy: int, kind: Kind
    ) -> dict[str, Any]:
        """Save one copy of the n-th image and return its row."""
        rng = keyed_random("planted", self.config.planted_seed, str(image.path), copy)
        pixels, side, lobe = plant_lesion(read_image(image.path).pixels, rng, kind)
        file_name = f"images/{n:05d}-{copy}.png"
        png_info = PngInfo()
        png_info.add_text("Source", SOURCE.format(name=NAMES[kind][0]))
        Image.fromarray(pixels).save(folder / file_name, pnginfo=png_info)
        names = self.config.fields
        return {
            names.id: f"{image.study_id}+{kind}-{n}-{copy}",
            "study": image.study_id,
            "image": file_name,
            names.view: image.row.get(names.view) or "",
            **self._describe(image.row, kind, side, lobe),
        }

    def _describe(self, row: Row, kind: Kind, side: str, lobe: str) -> dict[str, Any]:
        """Return the study's sections, with the lesion added to the first one, and its code."""
        sections, (name, code) = self.config.sections, NAMES[kind]
        texts = {s: row[s] for s in sections if isinstance(row.get(s), str)}
        sentence = f"There is a {name} in the {side} {lobe}."
        texts[sections[0]] = f"{texts.get(sections[0], '')} {sentence}".strip()
        source = SOURCE.format(name=name)
        return {**texts, self.config.fields.codes: [f"{code}/{lobe}/{side}"], "source": source}


def plant_lesion(
    pixels: np.ndarray, rng: Random, kind: Kind = "granuloma"
) -> tuple[np.ndarray, str, str]:
    """Draw one to three hard spots (granuloma) or one soft spot (nodule) into one lung field.

    Args:
        pixels: (H, W) or (H, W, 3) float32 in [0, 1], with bright bones.
        rng: Samples the lung field, the size (granulomas 2.5 to 9 mm, nodules 8 to 26 mm) and the
            brightness.
        kind: Kind of lesion.

    Returns:
        The image, (H, W) uint8, and the side and lobe of the lesion.
    """
    grey = pixels.mean(axis=-1) if pixels.ndim == 3 else pixels
    grey = grey.astype(np.float32)
    height, width = grey.shape
    (side, lobe), (x0, x1, y0, y1) = rng.choice(sorted(_LUNG_FIELDS.items()))
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = (x + 0.5) / width, (y + 0.5) / width  # both in image widths
    cx, cy = rng.uniform(x0, x1), rng.uniform(y0, y1) * height / width
    is_hard = kind == "granuloma"
    brightness = rng.uniform(0.12, 0.45) if is_hard else rng.uniform(0.08, 0.24)
    image = grey.copy()
    for n in range(rng.choice([1, 1, 1, 2, 3]) if is_hard else 1):
        radius = rng.uniform(2.5, 9.0) if is_hard else rng.uniform(8.0, 26.0)
        radius *= _MM / 2 * (1.0 if n == 0 else 0.7)
        distance = np.hypot((x - cx) * rng.uniform(0.9, 1.1), (y - cy) * rng.uniform(0.9, 1.1))
        # Calcium has a sharp edge, limited by scanner and JPEG; soft tissue fades like a ball.
        edge = 1.5 / width if is_hard else radius * rng.uniform(0.4, 0.9)
        image += brightness * np.clip((radius - distance) / edge + 0.5, 0, 1) * (1 - 0.6 * image)
        angle, step = rng.uniform(0, 2 * np.pi), rng.uniform(2.5, 6) * radius
        cx, cy = cx + step * np.cos(angle), cy + step * np.sin(angle)
    return (np.clip(image, 0, 1) * 255).round().astype(np.uint8), side, lobe
