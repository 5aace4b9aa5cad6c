"""The pages about an intake: a table for the `records` builder, a JSON file and an HTML page.

The pictures of the page must not show what the intake removes. So the pictures before masking are
coarse outside the sector, and text inside it is covered.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from xraygpt.common.checkpoint import write_text_atomic
from xraygpt.studies.report import NOTICE
from xraygpt.ultrasound.intake import Deidentified
from xraygpt.ultrasound.store import FIGURES

TABLE, JSON, PAGE = "clips.csv", "report.json", "report.html"
COLUMNS = (
    *("id", "study", "patient", "image", "source", "kind", "format", "frames", "fps"),
    *("times_from", "height", "width", "spacing_mm", "spacing_from", "depth_cm", "heart_rate"),
    *("b_mode", "colour_doppler", "spectral_doppler", "m_mode", "modes_from"),
    *("sector_from", "sector_share", "text_searched", "text_found", "text_matches", "text_share"),
    *("text_left", "matches_left", "region_warnings", "warnings"),
)
_SHOWN = 3  # frames
_WIDTH = 320  # pixels of a frame on the page
_BLOCKS = 24  # of the picture's height, outside the sector; letters are smaller than a block
_SMALLEST_BLOCK = 10  # pixels
_COVER = (255, 140, 0)  # orange


@dataclass(frozen=True)
class Skipped:
    """A file without a row.

    Attributes:
        source: Its path, without what identifies the patient.
        reason: Why it has no row.
        is_damaged: Whether it should have been read; false for files of other kinds.
    """

    source: str
    reason: str
    is_damaged: bool


def write_montage(folder: Path, name: str, result: Deidentified) -> Path:
    """Write three frames before masking above the same frames after it, as JPEG.

    Returns:
        The file, relative to the folder.
    """
    from PIL import Image

    frames = np.linspace(0, len(result.pixels) - 1, _SHOWN).astype(int)
    rows = [
        [_covered(result, int(i)) for i in dict.fromkeys(frames)],
        [_rgb(result.pixels[i]) for i in dict.fromkeys(frames)],
    ]
    pictures = [np.concatenate([_resized(frame) for frame in row], axis=1) for row in rows]
    file = Path(FIGURES) / f"{name}.jpg"
    (folder / FIGURES).mkdir(exist_ok=True)
    Image.fromarray(np.concatenate(pictures)).save(folder / file, quality=85)
    return file


def _covered(result: Deidentified, index: int) -> np.ndarray:
    """Return a frame as read, uint8 (H, W, 3), in which no text can be read."""
    frame = _rgb(result.clip.pixels[index])
    height, width = frame.shape[:2]
    block = max(_SMALLEST_BLOCK, height // _BLOCKS)
    coarse = frame.copy()
    for top in range(0, height, block):
        for left in range(0, width, block):
            part = frame[top : top + block, left : left + block]
            coarse[top : top + block, left : left + block] = part.mean(axis=(0, 1))
    shown = np.where(result.sector.mask[..., None], frame, coarse)
    for text in result.text or ():
        x0, y0, x1, y1 = text.box
        if index in text.frames:
            shown[y0:y1, x0:x1] = _COVER
    return shown


def _rgb(frame: np.ndarray) -> np.ndarray:
    return frame if frame.ndim == 3 else np.repeat(frame[..., None], 3, axis=-1)


def _resized(frame: np.ndarray) -> np.ndarray:
    from PIL import Image

    height = max(1, round(frame.shape[0] * _WIDTH / frame.shape[1]))
    return np.asarray(Image.fromarray(frame).resize((_WIDTH, height)))


def details(result: Deidentified) -> dict[str, Any]:
    """Return what the JSON file has about a clip besides its row."""
    return {
        "regions": [str(region) for region in result.clip.regions.regions],
        "coloured_share": result.modes.coloured_share,
        "warnings": result.warnings,
        "text": None if result.text is None else [box.as_dict() for box in result.text],
        "left": None if result.left is None else [box.as_dict() for box in result.left],
        "text_seconds": round(result.seconds, 2),
    }


# ---- files about all clips -----------------------------------------------------------------------


def write_pages(
    folder: Path,
    clips: Sequence[Mapping[str, Any]],
    skipped: Sequence[Skipped],
    settings: Mapping[str, Any],
) -> None:
    """Write the table, the JSON file and the page.

    Args:
        folder: The output folder.
        clips: For each clip its `row`, `details` and `figure`.
        skipped: Files without a row.
        settings: How the clips were made.
    """
    rows = [clip["row"] for clip in clips]
    write_text_atomic(folder / TABLE, _table(rows))
    content = {
        "notice": NOTICE,
        "settings": dict(settings),
        "clips": [{**clip["row"], **clip["details"]} for clip in clips],
        "skipped": [vars(file) for file in skipped],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomic(folder / JSON, text)
    write_text_atomic(folder / PAGE, _page(clips, skipped, settings))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if row[k] is None else row[k] for k in COLUMNS} for row in rows)
    return stream.getvalue()


def _page(
    clips: Sequence[Mapping[str, Any]], skipped: Sequence[Skipped], settings: Mapping[str, Any]
) -> str:
    import jinja2

    source = resources.files("xraygpt").joinpath("data/ultrasound_page.html").read_text()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(source)
    return template.render(notice=NOTICE, clips=clips, skipped=skipped, settings=settings)
