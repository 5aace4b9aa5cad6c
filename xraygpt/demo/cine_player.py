"""A player of clips for web pages: sheets of frames, and transparent sheets of contours over them.

The HTML contains everything, so the player needs no file on the server and no other site.
`data/cine_player.js` starts it and `data/cine_player.css` is its style.
"""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Container, Sequence
from importlib import resources
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from xraygpt.studies.report import Clip

SHEET_SIDE = 4096
"""Maximum height and width of a sheet in pixels, which phones can decode."""
SPEEDS = (0.25, 0.5, 1, 2)
"""Speeds to choose from, relative to the clip's own."""
_QUALITY = 85
_KEYS = (
    "Space plays and pauses, left and right step, up and down choose the clip, C hides contours."
)


def player_html(clips: Sequence[Clip]) -> str:
    """Return the HTML of a player of clips; an empty text without clips.

    The clip with the largest contours is shown first.
    """
    if not clips:
        return ""
    found = [_count_contours(clip) for clip in clips]
    legend = set().union(*found)
    first = max(range(len(clips)), key=lambda i: sum(found[i].values()))
    content = {"clips": [_encode(clip, legend) for clip in clips], "first": first}
    data = html.escape(json.dumps(content), quote=True)
    names = "".join(f'<option value="{i}">{html.escape(c.name)}</option>'
                    for i, c in enumerate(clips))  # fmt: skip
    speeds = "".join(
        f'<option value="{s}"{" selected" if s == 1 else ""}>{s:g}×</option>' for s in SPEEDS
    )
    fields = {
        "keys": _KEYS,
        "names": names,
        "speeds": speeds,
        "data": data,
        "choice": "" if len(clips) > 1 else "hidden",
        "contours": "" if any(c.contours is not None for c in clips) else "hidden",
    }
    page = (resources.files("xraygpt") / "data" / "cine_player.html").read_text("utf-8")
    for key, value in fields.items():
        page = page.replace(f"{{{{ {key} }}}}", value)
    return page


def start_script() -> str:
    """Return JavaScript for `gr.HTML(js_on_load=...)` that starts the player of each new value."""
    source = (resources.files("xraygpt") / "data" / "cine_player.js").read_text("utf-8")
    return (
        f'const start = {source.strip()};\nstart(element);\nwatch("value", () => start(element));'
    )


def _count_contours(clip: Clip) -> dict[tuple[str, str], int]:
    """Return the number of pixels of each entry of the legend that occurs."""
    if clip.contours is None:
        return {}
    counts = np.bincount(clip.contours.ravel(), minlength=len(clip.legend) + 1)
    return {entry: int(n) for entry, n in zip(clip.legend, counts[1:], strict=True) if n}


def _encode(clip: Clip, legend: Container[tuple[str, str]]) -> dict[str, Any]:
    """Return a clip as JSON: sheets of frames, row by row, and how long each frame lasts."""
    count, height, width = clip.frames.shape[:3]
    columns = max(1, min(math.ceil(math.sqrt(count)), SHEET_SIDE // width))
    per_sheet = columns * max(1, SHEET_SIDE // height)
    parts = [slice(start, start + per_sheet) for start in range(0, count, per_sheet)]
    return {
        "name": clip.name,
        "caption": clip.caption,
        "count": count,
        "size": [width, height],
        "columns": columns,
        "perSheet": per_sheet,
        "sheets": [_photo(_sheet(clip.frames[part], columns)) for part in parts],
        "overlays": [] if clip.contours is None else [
            _line_art(_sheet(clip.contours[part], columns), clip.legend) for part in parts
        ],
        "legend": [entry for entry in clip.legend if entry in legend],
        "seconds": frame_durations(clip).round(4).tolist(),
        "times": None if clip.times is None else clip.times.round(4).tolist(),
    }  # fmt: skip


def frame_durations(clip: Clip) -> np.ndarray:
    """Return (T,) seconds that each frame is shown, which add up to the clip's duration."""
    count = len(clip.frames)
    even = np.full(count, clip.duration / count)
    if clip.times is None:
        return even
    durations = np.diff(clip.times, append=clip.times[0] + clip.duration)
    return durations if (durations > 0).all() else even


def _sheet(frames: np.ndarray, columns: int) -> np.ndarray:
    """Arrange frames (T, H, W, ...) row by row; places without a frame are 0."""
    rows = math.ceil(len(frames) / columns)
    height, width = frames.shape[1:3]
    sheet = np.zeros((rows * height, columns * width, *frames.shape[3:]), np.uint8)
    for i, frame in enumerate(frames):
        top, left = i // columns * height, i % columns * width
        sheet[top : top + height, left : left + width] = frame
    return sheet


def _photo(pixels: np.ndarray) -> str:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=_QUALITY, method=4)
    return _data_uri("image/webp", buffer)


def _line_art(indices: np.ndarray, legend: Sequence[tuple[str, str]]) -> str:
    image = Image.fromarray(indices)
    colours = [ImageColor.getrgb(colour)[:3] for _, colour in legend]
    image.putpalette([0, 0, 0, *(part for colour in colours for part in colour)])
    buffer = BytesIO()
    image.save(buffer, "PNG", transparency=0, optimize=True)
    return _data_uri("image/png", buffer)


def _data_uri(kind: str, buffer: BytesIO) -> str:
    return f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
