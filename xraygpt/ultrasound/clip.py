"""One file of an ultrasound study in memory: its frames, times, regions and identity."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from xraygpt.common.errors import DataError
from xraygpt.ultrasound.identity import Identity
from xraygpt.ultrasound.regions import RegionTable


class NotUltrasound(DataError):
    """A file that may be intact, but is no picture of ultrasound."""


@dataclass(frozen=True)
class Clip:
    """A clip or a still image as read from its file.

    Attributes:
        pixels: uint8 (F, H, W), or (F, H, W, 3) in RGB.
        form: DICOM, video or NIfTI.
        times: Time of each frame in seconds after the first; None if unknown, or a still image.
        times_from: Element or file that the times come from; empty if unknown.
        regions: The region table of a DICOM file.
        spacing_mm: (row, column) spacing in mm; None if unknown.
        spacing_from: What it comes from; empty if unknown.
        heart_rate: Beats per minute in the header; None if it is not stated.
        identity: What the header says about the patient and the visit. It is compared with the text
            in the picture, and never written.
        warnings: What is missing or unusual, one sentence each.
    """

    pixels: np.ndarray
    form: str
    times: tuple[float, ...] | None = None
    times_from: str = ""
    regions: RegionTable = field(default_factory=RegionTable)
    spacing_mm: tuple[float, float] | None = None
    spacing_from: str = ""
    heart_rate: float | None = None
    identity: Identity = field(default_factory=Identity)
    warnings: tuple[str, ...] = ()

    @property
    def is_still(self) -> bool:
        """Whether there is only one frame."""
        return len(self.pixels) == 1

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    @property
    def fps(self) -> float | None:
        """Frames per second, from the mean interval; None if unknown."""
        if self.times is None or len(self.times) < 2 or self.times[-1] <= self.times[0]:
            return None
        return (len(self.times) - 1) / (self.times[-1] - self.times[0])


def luminance(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness of uint8 frames, as uint8 without the channel axis (ITU-R BT.601)."""
    if pixels.shape[-1] != 3 or pixels.ndim < 3:
        return pixels
    weights = np.array([77, 150, 29], np.uint16)  # of 256
    bright = np.empty(pixels.shape[:-1], np.uint8)
    for index in np.ndindex(pixels.shape[:-3]):  # one frame at a time, to save memory
        bright[index] = (pixels[index].astype(np.uint16) @ weights) >> 8
    return bright
