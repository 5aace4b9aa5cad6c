"""A folder of phantoms: PNG files and one JSONL row a study, in the project's own layout."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from xraygpt.common.checkpoint import write_file
from xraygpt.common.checks import Checks
from xraygpt.common.errors import DataError
from xraygpt.common.logging import progress
from xraygpt.phantom import design, openi
from xraygpt.phantom.findings import codes_of
from xraygpt.phantom.grammar import report
from xraygpt.phantom.render import Study, render
from xraygpt.phantom.scene import View

log = logging.getLogger(__name__)

SYNTHETIC = "SYNTHETIC"
SOURCE = f"{SYNTHETIC}: a drawn chest phantom, no patient"
ROWS = "reports.jsonl"
VERSION = 1  # of the drawings: another one, another corpus


@dataclass(frozen=True)
class Recipe:
    """All that decides what a corpus of phantoms holds.

    Attributes:
        studies: How many.
        seed: Another seed, another corpus.
        size: Height and width of the pictures in pixels.
        views: Views drawn of each study.
        design: ``balanced``: every finding about equally often. ``openi``: as people coded them in
            OpenI's reports, without those of the published val and test split.
        texts: ``grammar``: reports of our own wording. ``openi``: the report whose codes are drawn,
            which may say more than can be drawn; for the design ``openi`` alone.
        shares: Share of the studies in each split.
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
            odd = self.texts == "openi" and self.design != "openi"
            check.refuse(
                odd, "texts", "openi needs design: openi, whose codes they go with", "design"
            )
            why = "must hold frontal: the lateral alone does not show everything"
            check.refuse("frontal" not in self.views, "views", why)

    def study(self, number: int) -> tuple[Study, dict[str, str], str]:
        """One study, its report and its split; the same for the same recipe and number."""
        rng = Random(f"{self.seed}/{number}/phantom")
        study_id = f"SYN{self.seed}-{number:05d}"
        if self.design == "balanced":
            findings, chooser = design.balanced(rng), rng
        else:
            source = openi.study_number(number, self.seed, with_text=self.texts == "openi")
            findings = openi.findings_of(source.codes, rng)
            chooser = Random(f"{self.seed}/{source.study_id}/split")  # a report is in one split
        study = Study(study_id, findings, self.seed)
        text = source.sections if self.texts == "openi" else report(findings, rng)
        split = chooser.choices(list(self.shares), weights=list(self.shares.values()))[0]
        return study, text, split


def write_corpus(folder: Path, recipe: Recipe, *, workers: int | None = None) -> Path:
    """Draw a corpus; what an interrupted call has drawn is kept.

    Args:
        folder: Gets ``images/`` and ``reports.jsonl``, the latter when all is drawn.
        recipe: What to draw.
        workers: Processes; None takes one per core.

    Returns:
        The JSONL file.

    Raises:
        DataError: The folder cannot be written.
    """
    rows_path, partial = folder / ROWS, folder / f"{ROWS}.partial"
    try:
        (folder / "images").mkdir(parents=True, exist_ok=True)
        _check_recipe(folder / "recipe.json", recipe)
        if rows_path.is_file():
            return rows_path
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one draws, the others wait
            if not rows_path.is_file():
                done = _drawn(partial)
                log.info("drawing %d synthetic studies in %s", recipe.studies - done, folder)
                with partial.open("a", encoding="utf-8") as file:
                    rows = _rows(folder, recipe, range(done, recipe.studies), workers)
                    total = recipe.studies
                    for row in progress(rows, "drawing", total, initial=done, unit="study"):
                        file.write(json.dumps(row) + "\n")
                        file.flush()
                partial.replace(rows_path)
    except OSError as error:
        raise DataError(f"cannot draw phantoms in {folder}: {error.strerror}") from None
    return rows_path


def _check_recipe(path: Path, recipe: Recipe) -> None:
    """Note what the folder holds, or compare.

    Raises:
        DataError: It holds, or is about to hold, something else.
    """
    wanted = json.dumps({"version": VERSION, **asdict(recipe)}, indent=1)
    if not path.is_file():
        write_file(path, wanted)
    elif path.read_text(encoding="utf-8") != wanted:
        raise DataError(
            f"{path.parent} holds phantoms of another recipe (see {path.name}); name another folder"
        )


def _drawn(partial: Path) -> int:
    """How many rows an interrupted call has left; a torn last one is cut off."""
    if not partial.is_file():
        return 0
    whole = [
        line for line in partial.read_text(encoding="utf-8").splitlines(True) if line[-1] == "\n"
    ]
    partial.write_text("".join(whole), encoding="utf-8")
    return len(whole)


def _rows(
    folder: Path, recipe: Recipe, numbers: Sequence[int], workers: int | None
) -> Iterator[dict[str, Any]]:
    workers = workers if workers is not None else (os.cpu_count() or 1)
    if workers <= 1:
        yield from (write_study(folder, recipe, n) for n in numbers)
        return
    with ProcessPoolExecutor(workers) as pool:
        n = len(numbers)
        yield from pool.map(write_study, [folder] * n, [recipe] * n, numbers, chunksize=16)


def write_study(folder: Path, recipe: Recipe, number: int) -> dict[str, Any]:
    """Draw the pictures of one study; returns its row."""
    study, text, split = recipe.study(number)
    images, boxes = [], []
    for view in recipe.views:
        name = f"{study.study_id}_{view}.png"
        picture = render(study, view, recipe.size)
        save_picture(picture.pixels, folder / "images" / name)
        images.append({"path": f"images/{name}", "view": view})
        for finding, box in zip(study.findings, picture.boxes, strict=True):
            if box is not None:
                boxes.append({"name": finding.name, "side": finding.side, "view": view, "box": box})
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


def save_picture(pixels: Any, path: Path) -> None:
    """Write a PNG that says what it is; it appears whole or not at all."""
    info = PngInfo()
    info.add_text("Source", SOURCE)
    info.add_text("Warning", "Not for diagnosis")
    aside = path.with_suffix(f".tmp-{os.getpid()}")
    Image.fromarray(pixels).save(aside, format="PNG", pnginfo=info, compress_level=1)
    aside.replace(path)
