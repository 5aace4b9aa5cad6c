"""A folder of phantoms, with PNG files and one JSONL row per study."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.logging import progress
from xraygpt.phantom import design, openi
from xraygpt.phantom.findings import codes_of
from xraygpt.phantom.grammar import generate_report
from xraygpt.phantom.render import Study, render
from xraygpt.phantom.scene import View

log = logging.getLogger(__name__)

SYNTHETIC = "SYNTHETIC"
SOURCE = f"{SYNTHETIC}: a drawn chest phantom, no patient"
ROWS = "reports.jsonl"
VERSION = 1  # version of the drawings; part of a corpus's identity


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the content of a phantom corpus.

    Attributes:
        studies: Number of studies.
        seed: Seed for the findings, reports and images.
        size: Height and width of the images in pixels.
        views: Views to draw for each study.
        design: ``balanced`` samples every finding about equally often; ``openi`` uses the human
            codes for OpenI's reports, without the published validation and test splits.
        texts: ``grammar`` generates reports; ``openi`` uses the report whose codes are drawn, which
            may mention more than can be drawn, and requires the design ``openi``.
        shares: Fraction of studies in each split.
    """

    studies: int = 3000
    seed: int = 0
    size: int = 256
    views: tuple[View, ...] = ("frontal",)
    design: Literal["balanced", "openi"] = "balanced"
    texts: Literal["grammar", "openi"] = "grammar"
    shares: dict[str, float] = field(
        default_factory=lambda: {"train": 0.82, "val": 0.04, "test": 0.14}, hash=False
    )

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "studies")
            check.at_least(32, "size")
            mismatch = self.texts == "openi" and self.design != "openi"
            message = "openi requires design: openi, because its reports describe OpenI's codes"
            check.refuse(mismatch, "texts", message, "design")
            message = (
                "must contain frontal, since the lateral view alone does not show every finding"
            )
            check.refuse("frontal" not in self.views, "views", message)

    def build_study(self, number: int) -> tuple[Study, dict[str, str], str]:
        """Build a study, its report and its split, all determined by the recipe and the number."""
        rng = Random(f"{self.seed}/{number}/phantom")
        study_id = f"SYN{self.seed}-{number:05d}"
        if self.design == "balanced":
            findings, split_rng = design.sample_balanced_findings(rng), rng
        else:
            source = openi.select_study(number, self.seed, with_text=self.texts == "openi")
            findings = openi.findings_from_codes(source.codes, rng)
            # All phantoms drawn from one report are in the same split.
            split_rng = Random(f"{self.seed}/{source.study_id}/split")
        study = Study(study_id, findings, self.seed)
        text = source.sections if self.texts == "openi" else generate_report(findings, rng)
        split = split_rng.choices(list(self.shares), weights=list(self.shares.values()))[0]
        return study, text, split

    def write_study(self, folder: Path, number: int) -> dict[str, Any]:
        """Draw the images of one study and return its row."""
        study, text, split = self.build_study(number)
        images, boxes = [], []
        for view in self.views:
            name = f"{study.study_id}_{view}.png"
            picture = render(study, view, self.size)
            save_picture(picture.pixels, folder / "images" / name)
            images.append({"path": f"images/{name}", "view": view})
            for finding, box in zip(study.findings, picture.boxes, strict=True):
                if box is not None:
                    row = {"name": finding.name, "side": finding.side, "view": view, "box": box}
                    boxes.append(row)
        return {
            "id": study.study_id,
            "study": study.study_id,
            "split": split,
            "images": images,
            **text,
            "codes": codes_of(study.findings),
            "labels": [vars(f) for f in study.findings],
            "boxes": boxes,
            "source": SOURCE,
        }


def write_corpus(folder: Path, recipe: Recipe, *, workers: int | None = None) -> Path:
    """Draw a corpus, or complete what an interrupted call has drawn.

    Args:
        folder: Output folder for ``images/`` and ``reports.jsonl``; the latter is written once all
            studies are drawn.
        recipe: The content of the corpus.
        workers: Number of processes; None means one per core.

    Returns:
        The JSONL file.

    Raises:
        DataError: If the folder cannot be written or contains phantoms from another recipe.
    """
    rows_path, partial = folder / ROWS, folder / f"{ROWS}.partial"
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        _check_recipe(folder / "recipe.json", recipe)
        if rows_path.is_file():
            return rows_path
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process draws, the others wait
            if not rows_path.is_file():
                _draw_rows(folder, recipe, partial, workers)
                partial.replace(rows_path)
    except OSError as error:
        raise DataError(f"cannot draw phantoms in {folder}: {error.strerror}") from None
    return rows_path


def _draw_rows(folder: Path, recipe: Recipe, partial: Path, workers: int | None) -> None:
    """Draw the studies that are missing from `partial` and append their rows."""
    done, total = _count_complete_rows(partial), recipe.studies
    log.info("drawing %d synthetic studies in %s", total - done, folder)
    with partial.open("a", encoding="utf-8") as file:
        rows = _write_studies(folder, recipe, range(done, total), workers)
        for row in progress(rows, "drawing", total, initial=done, unit="study"):
            file.write(json.dumps(row) + "\n")
            file.flush()


def _check_recipe(path: Path, recipe: Recipe) -> None:
    """Write the recipe file, or compare an existing file with `recipe`.

    Raises:
        DataError: If the file and `recipe` differ.
    """
    content = json.dumps({"version": VERSION, **asdict(recipe)}, indent=1)
    if not path.is_file():
        write_text_atomic(path, content)
    elif path.read_text(encoding="utf-8") != content:
        raise DataError(
            f"{path.parent} contains phantoms from another recipe (see {path.name}); "
            "choose another folder"
        )


def _count_complete_rows(partial: Path) -> int:
    """Count the rows written by an interrupted call, removing an incomplete last row."""
    if not partial.is_file():
        return 0
    lines = partial.read_text(encoding="utf-8").splitlines(True)
    complete = [line for line in lines if line[-1] == "\n"]
    partial.write_text("".join(complete), encoding="utf-8")
    return len(complete)


def _write_studies(
    folder: Path, recipe: Recipe, numbers: Sequence[int], workers: int | None
) -> Iterator[dict[str, Any]]:
    workers = workers if workers is not None else (os.cpu_count() or 1)
    if workers <= 1:
        yield from (recipe.write_study(folder, n) for n in numbers)
        return
    with ProcessPoolExecutor(workers) as pool:
        write = partial(recipe.write_study, folder)
        yield from pool.map(write, numbers, chunksize=16)


def save_picture(pixels: Any, path: Path) -> None:
    """Write a PNG file marked as synthetic, atomically."""
    info = PngInfo()
    info.add_text("Source", SOURCE)
    info.add_text("Warning", "Not for diagnosis")
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info, compress_level=1)
    temporary.replace(path)
