"""Example images to choose from: real films, SYNTHETIC phantoms, or the user's own folder.

A model is offered images like those it was trained on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from random import Random
from typing import Any

from xraygpt.common.errors import InputError
from xraygpt.demo.display import open_image
from xraygpt.phantom.corpus import save_picture
from xraygpt.phantom.design import sample_finding
from xraygpt.phantom.render import Study, render

log = logging.getLogger(__name__)

MAX_EXAMPLES = 24
FILMS = Path(__file__).resolve().parents[2] / "examples" / "nih_chestxray14"
"""Six films of NIH ChestX-ray14, which are in the repository but not in a wheel."""
CREDIT = "Example films: NIH ChestX-ray14, courtesy of the NIH Clinical Center."
_PHANTOMS: list[tuple[str, dict[str, Any]]] = [
    ("", {}),
    ("pleural_effusion", {"side": "left", "degree": "moderate"}),
    ("pneumothorax", {"side": "right", "degree": "severe"}),
    ("cardiomegaly", {"degree": "severe"}),
    ("consolidation", {"side": "right", "zone": "lower", "degree": "severe"}),
    ("catheter", {"side": "right"}),
]


def draw_examples(folder: Path) -> list[tuple[Path, str]]:
    """Draw SYNTHETIC examples into a new folder, and return their files and captions."""
    folder.mkdir()
    rng = Random("examples")
    examples = []
    for i, (name, attributes) in enumerate(_PHANTOMS):
        findings = (sample_finding(name, rng, **attributes),) if name else ()
        path = folder / f"phantom-{i}.png"
        save_picture(render(Study(f"example-{i}", findings, 77), size=512).pixels, path)
        parts = [attributes.get("side", ""), name.replace("_", " ")]
        examples.append((path, f"SYNTHETIC: {' '.join(parts).strip() or 'normal'}"))
    return examples


def film_examples() -> list[tuple[Path, str]]:
    """Return the films and their captions; empty in an installation without the repository."""
    return [(path, f"NIH {path.stem}") for path in sorted(FILMS.glob("*.png"))]


def load_examples(folder: Path) -> list[tuple[Path, str]]:
    """Load up to `MAX_EXAMPLES` images from a folder, sorted, with their names as captions.

    Raises:
        InputError: The folder does not exist or contains no readable image.
    """
    if not folder.is_dir():
        raise InputError(f"--examples {folder}: no such folder")
    examples: list[tuple[Path, str]] = []
    for path in sorted(folder.iterdir()):
        if len(examples) == MAX_EXAMPLES:
            log.warning("--examples: only the first %d images are offered", MAX_EXAMPLES)
            break
        if not path.is_file() or path.name.startswith("."):
            continue
        try:
            open_image(path)
            examples.append((path, path.stem))
        except InputError as error:
            log.warning("skipping an example: %s", error)
    if not examples:
        raise InputError(f"--examples {folder} contains no readable PNG, JPEG or DICOM file")
    return examples
