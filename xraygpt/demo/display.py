"""Display of an uploaded image with its frame, window, inversion and attention map.

Files are read as in training, and viewer settings do not change what the model sees.
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

from xraygpt.datasets.input_check import InputCheck, input_warnings
from xraygpt.media.pixels import MetaValue, ReadLimits, Window, frame_count, read_image
from xraygpt.phantom.corpus import SYNTHETIC

LIMITS = ReadLimits(max_file_bytes=128 * 2**20, max_pixels=50_000_000)
"""Limits on an upload: 128 MB per file and 50 million pixels per frame."""
VIEW_SIDE = 1536
"""Maximum side in the browser, in pixels; larger images are scaled down."""


@dataclass
class DisplayedImage:
    """An image file with its viewer settings.

    Attributes:
        path: The file.
        num_frames: Number of frames in the file.
        frame: The displayed frame, from 0.
        window: (center, width) in the reader's units; None uses the file's own window.
        invert: Whether the image is shown as a negative.
        meta: The reader's metadata for the frame with the file's own window.
        warnings: Reasons to doubt that the image is a chest radiograph.
        synthetic: Whether the image is a phantom, according to the file's text chunk.
        source_format: File format: ``DICOM``, ``PNG`` or ``JPEG``.
        check: The check that finds the warnings; None finds none.
    """

    path: Path
    num_frames: int
    frame: int = 0
    window: Window | None = None
    invert: bool = False
    meta: Mapping[str, MetaValue] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    synthetic: bool = False
    source_format: str = ""
    check: InputCheck | None = field(default_factory=InputCheck)

    @property
    def size(self) -> tuple[int, int]:
        """Number of rows and columns."""
        return int(str(self.meta["rows"])), int(str(self.meta["columns"]))

    @property
    def file_window(self) -> Window | None:
        """The file's own window, or None for a colour image."""
        window = self.meta.get("window")
        return (window[0], window[1]) if isinstance(window, tuple) else None

    @property
    def model_frame(self) -> int | None:
        """The frame that the model reads: the displayed one."""
        return self.frame

    @property
    def player(self) -> str:
        """HTML of a player instead of the viewer; empty for an image."""
        return ""

    def show_frame(self, frame: int) -> None:
        """Switch to a frame and the file's own window.

        Raises:
            ImageError: The frame cannot be read.
        """
        image = read_image(self.path, frame=frame, limits=LIMITS)
        self.frame, self.window = frame, None
        self.meta, self.source_format = image.meta, image.source_format
        self.warnings = []
        if self.check is not None:
            self.warnings = input_warnings(image.pixels, image.meta, self.check.views)

    def pixels(self) -> np.ndarray:
        """Return the displayed pixels, (H, W) or (H, W, 3) uint8 with sides up to `VIEW_SIDE`.

        Raises:
            ImageError: The frame cannot be read, or the window cannot be applied.
        """
        image = read_image(self.path, frame=self.frame, window=self.window, limits=LIMITS)
        pixels = np.rint(image.pixels * 255).astype(np.uint8)
        pixels = 255 - pixels if self.invert else pixels
        return thumbnail(pixels, VIEW_SIDE)

    def description(self, frame: int | None = None) -> str:
        """Describe the image in one line, without information about the patient.

        Args:
            frame: Frame number from 0; None means the displayed frame.
        """
        meta = self.meta
        view = " ".join(str(meta[k]) for k in ("modality", "view_position") if k in meta)
        phantom = "SYNTHETIC phantom" if self.synthetic else ""
        parts = [phantom, view, f"{meta['columns']} × {meta['rows']} pixels"]
        if self.num_frames > 1:
            number = (self.frame if frame is None else frame) + 1
            parts.append(f"frame {number} of {self.num_frames}")
        if meta.get("photometric") == "MONOCHROME1":
            parts.append("stored as a negative, shown with bright bones")
        return ", ".join(p for p in parts if p)


def open_image(path: Path, check: InputCheck | None = InputCheck()) -> DisplayedImage:  # noqa: B008
    """Open a file at its first frame.

    Args:
        path: The file.
        check: The check that finds the warnings; None finds none.

    Raises:
        ImageError: The file is not a supported image.
    """
    opened = DisplayedImage(path, frame_count(path, limits=LIMITS), check=check)
    opened.show_frame(0)
    if opened.source_format == "PNG":
        with Image.open(path, formats=["PNG"]) as image:
            opened.synthetic = str(image.info.get("Source", "")).startswith(SYNTHETIC)
    return opened


def viewer_html(image: DisplayedImage | None, label: str, heat: np.ndarray | None = None) -> str:
    """Return the viewer's HTML, with the image and an optional map over it.

    Args:
        image: The image; None shows the label.
        label: Alternative text for the image, or a hint to upload one.
        heat: Map (h, w) of the full image, in [0, 1].
    """
    if image is None:
        return f'<p class="xg-empty">{html.escape(label)}</p>'
    source = data_uri(image.pixels())
    images = f'<img class="xg-film" src="{source}" alt="{html.escape(label, quote=True)}">'
    if heat is not None:
        overlay = data_uri(heat_to_rgba(heat))
        images += f'<img class="xg-heat" src="{overlay}" alt="" aria-hidden="true">'
    return f'<div class="xg-pan">{images}</div>'


def thumbnail(pixels: np.ndarray, side: int) -> np.ndarray:
    """Scale uint8 pixels down by averaging if a side is longer than `side`."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BOX)
    return np.asarray(image)


def heat_to_rgba(heat: np.ndarray) -> np.ndarray:
    """Convert (H, W) in [0, 1] to (H, W, 4) uint8, brighter and more opaque for higher values."""
    from matplotlib import colormaps

    values = np.clip(heat, 0, 1)
    colours = colormaps["inferno"](0.25 + 0.75 * values)
    colours[..., 3] = values**0.7
    return np.rint(colours * 255).astype(np.uint8)


def data_uri(pixels: np.ndarray) -> str:
    """Encode pixels as a PNG data URI, so that no file on the server needs to be reachable."""
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
