"""An uploaded file as the viewer shows it: frame, window, inversion, and a map laid over it.

Read by the reader of training; what the viewer changes is not what the model sees.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from xraygpt.demo.gate import doubts
from xraygpt.media.pixels import MetaValue, ReadLimits, Window, frame_count, read_image
from xraygpt.phantom.corpus import SYNTHETIC

LIMITS = ReadLimits(max_file_bytes=128 * 2**20, max_pixels=50_000_000)
"""Of an upload: 128 MB, and 50 million pixels a frame."""
VIEW_SIDE = 1536
"""Most pixels of a side in the browser; larger pictures are shown smaller."""


@dataclass
class DisplayedImage:
    """A file, and how it is shown.

    Attributes:
        path: Where it lies.
        frames: How many it holds.
        frame: Which is shown, from 0.
        window: (center, width) in the reader's units; None is the file's own.
        invert: Whether it is shown as a negative.
        meta: What the reader says of the frame shown, at the file's own window.
        doubts: Of the gate.
        synthetic: Whether it is a drawing of ours, as its own text says.
        source_format: ``DICOM``, ``PNG`` or ``JPEG``.
    """

    path: Path
    frames: int
    frame: int = 0
    window: Window | None = None
    invert: bool = False
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    synthetic: bool = False
    source_format: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns."""
        return int(str(self.meta["rows"])), int(str(self.meta["columns"]))

    @property
    def own_window(self) -> Window | None:
        """Of the file; None for a picture in colour."""
        found = self.meta.get("window")
        return (found[0], found[1]) if isinstance(found, tuple) else None

    def turn_to(self, frame: int) -> None:
        """Show another frame, at the file's own window.

        Raises:
            ImageError: It cannot be read.
        """
        image = read_image(self.path, frame=frame, limits=LIMITS)
        self.frame, self.window = frame, None
        self.meta, self.source_format = image.meta, image.source_format
        self.doubts = doubts(image.pixels, image.meta)

    def pixels(self) -> np.ndarray:
        """(H, W) or (H, W, 3) uint8 of what is shown, at most `VIEW_SIDE` a side.

        Raises:
            ImageError: It cannot be read, or not with this window.
        """
        image = read_image(self.path, frame=self.frame, window=self.window, limits=LIMITS)
        shown = np.rint(image.pixels * 255).astype(np.uint8)
        shown = 255 - shown if self.invert else shown
        return thumbnail(shown, VIEW_SIDE)

    def view(self) -> str:
        """How the picture was changed for the eye, as the end of a line."""
        parts = []
        if self.window is not None:
            parts.append(f"window level {self.window[0]:g}, width {self.window[1]:g}")
        if self.invert:
            parts.append("inverted")
        return "".join(f", {p}" for p in parts)

    def facts(self, frame: int | None = None) -> str:
        """What is known of the picture and not of the patient, in one line.

        Args:
            frame: Which; None is the one shown.
        """
        meta = self.meta
        view = " ".join(str(meta[k]) for k in ("modality", "view_position") if k in meta)
        drawn = "SYNTHETIC phantom" if self.synthetic else ""
        parts = [drawn, view, f"{meta['columns']} × {meta['rows']} pixels"]
        if self.frames > 1:
            parts.append(f"frame {(self.frame if frame is None else frame) + 1} of {self.frames}")
        if meta.get("photometric") == "MONOCHROME1":
            parts.append("stored as a negative, shown with bright bones")
        return ", ".join(p for p in parts if p)


def open_film(path: Path) -> DisplayedImage:
    """The film of a file, at its first frame.

    Raises:
        ImageError: It is not an image that the reader knows.
    """
    film = DisplayedImage(path, frame_count(path, limits=LIMITS))
    film.turn_to(0)
    if film.source_format == "PNG":
        with Image.open(path, formats=["PNG"]) as image:
            film.synthetic = str(image.info.get("Source", "")).startswith(SYNTHETIC)
    return film


def stage(film: DisplayedImage | None, label: str, heat: np.ndarray | None = None) -> str:
    """The viewer's HTML: the picture, and the map over it.

    Args:
        film: What to show; None shows an invitation.
        label: Names the picture for those who do not see it.
        heat: (h, w) of the whole picture, in [0, 1].
    """
    if film is None:
        return '<p class="xg-empty">Upload a chest X-ray, or pick an example.</p>'
    source = data_uri(film.pixels())
    images = f'<img class="xg-film" src="{source}" alt="{html.escape(label, quote=True)}">'
    if heat is not None:
        images += f'<img class="xg-heat" src="{data_uri(painted(heat))}" alt="" aria-hidden="true">'
    return f'<div class="xg-pan">{images}</div>'


def thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """uint8 pixels, made smaller by averaging if a side has more than `side` of them."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(picture)


def painted(heat: np.ndarray) -> np.ndarray:
    """(H, W) in [0, 1] -> (H, W, 4) uint8: colour and opacity grow with the map."""
    from matplotlib import colormaps

    values = np.clip(heat, 0, 1)
    colours = colormaps["inferno"](0.25 + 0.75 * values)
    colours[..., 3] = values**0.7
    return np.rint(colours * 255).astype(np.uint8)


def data_uri(pixels: np.ndarray) -> str:
    """A picture as a PNG inside an address: no file that others could ask for."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
