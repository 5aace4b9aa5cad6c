"""De-identify one clip, and describe it as a row of a table."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.ultrasound.clip import Clip
from xraygpt.ultrasound.modes import MIN_SHARE, Modes, find_modes
from xraygpt.ultrasound.names import StudyFrom
from xraygpt.ultrasound.sector import Sector, find_sector
from xraygpt.ultrasound.store import ASSUMED_FPS
from xraygpt.ultrasound.text import (
    MaskText,
    TextBox,
    TextFinder,
    mask_boxes,
    search_text,
    to_mask,
)

_DISAGREE = (
    "the region table has no colour flow, but {share:.1%} of the sector is coloured in a frame"
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How clips are de-identified."""

    study_from: StudyFrom = "uid"
    """Id of a study: a keyed hash of Study Instance UID, or the name of the folder."""
    mask_text: MaskText = "all"
    """Which text is blackened inside the sector: all that is found, what repeats the header or is
    a date, or none."""
    text_frames: int = 5
    """Frames of each clip in which text is looked for, besides the median picture."""

    def __post_init__(self) -> None:
        with Checks(self) as check:
            check.at_least(1, "text_frames")


@dataclass(frozen=True)
class Deidentified:
    """A clip without what is outside its sector, and without text.

    Attributes:
        clip: The clip as read.
        pixels: uint8, of the shape of the clip's pixels.
        sector: Where the ultrasound picture is.
        modes: What the clip shows.
        text: Text in the clip as read; None if it was not looked for.
        left: Text that is found after masking; None if it was not looked for.
        text_share: Fraction of the sector, over all frames, that was blackened because of text.
        seconds: Duration of both searches for text.
    """

    clip: Clip
    pixels: np.ndarray
    sector: Sector
    modes: Modes
    text: Sequence[TextBox] | None
    left: Sequence[TextBox] | None
    text_share: float
    seconds: float

    @property
    def warnings(self) -> list[str]:
        """Everything unusual about the clip, one sentence each."""
        found, modes = list(self.clip.warnings), self.modes
        if self.sector.source == "none":
            found.append("no sector was found, so nothing outside it was blackened")
        is_coloured = (modes.coloured_share or 0.0) >= MIN_SHARE
        if is_coloured and modes.source == "region table" and modes.colour_doppler == "no":
            found.append(_DISAGREE.format(share=modes.coloured_share))
        if not self.clip.is_still and self.clip.times is None:
            found.append(f"stored at {ASSUMED_FPS:g} frames per second, which is not its true rate")
        if short := self.clip.identity.too_short:
            found.append(f"too short to be looked for in the picture: {', '.join(short)}")
        if self.text is None:
            found.append("text was not looked for")
        if any(box.identifies for box in self.left or ()):
            found.append("text that may identify the patient is left: look at this clip")
        return found


def deidentify(clip: Clip, settings: Settings, find: TextFinder | None = None) -> Deidentified:
    """Blacken everything outside the sector, and text inside it.

    Args:
        clip: The clip.
        settings: Which text is blackened.
        find: Finds text in a picture; None does not look for text.
    """
    sector = find_sector(clip)
    modes = find_modes(clip, sector)
    outside = ~sector.mask
    pixels = clip.pixels.copy()
    pixels[:, outside] = 0
    if find is None:
        return Deidentified(clip, pixels, sector, modes, None, None, 0.0, 0.0)
    start = time.perf_counter()
    text = search_text(clip.pixels, find, clip.identity, sector.mask, settings.text_frames)
    chosen = to_mask(text, settings.mask_text)
    blackened = mask_boxes(pixels, chosen, sector.mask)
    left = search_text(pixels, find, clip.identity, sector.mask, settings.text_frames)
    seconds = time.perf_counter() - start
    share = blackened / (len(pixels) * max(1, int(sector.mask.sum())))
    return Deidentified(clip, pixels, sector, modes, text, left, share, seconds)


def describe(result: Deidentified) -> dict[str, Any]:
    """Return a row of the table about a clip, without its names; None is an empty cell."""
    clip, modes = result.clip, result.modes
    height, width = clip.size
    spacing = clip.spacing_mm
    found, left = result.text, result.left
    return {
        "kind": "still" if clip.is_still else "clip",
        "format": clip.form,
        "frames": len(clip.pixels),
        "fps": None if clip.fps is None else round(clip.fps, 3),
        "times_from": clip.times_from,
        "height": height,
        "width": width,
        "spacing_mm": None if spacing is None else f"{spacing[0]:g} {spacing[1]:g}",
        "spacing_from": clip.spacing_from,
        "depth_cm": clip.regions.depth_cm,
        "heart_rate": clip.heart_rate,
        "b_mode": modes.b_mode,
        "colour_doppler": modes.colour_doppler,
        "spectral_doppler": modes.spectral_doppler,
        "m_mode": modes.m_mode,
        "modes_from": modes.source,
        "sector_from": result.sector.source,
        "sector_share": round(result.sector.share, 4),
        "region_warnings": "; ".join(clip.regions.refused),
        "text_searched": "no" if found is None else "yes",
        "text_found": None if found is None else len(found),
        "text_matches": None if found is None else sum(box.identifies for box in found),
        "text_share": round(result.text_share, 5),
        "text_left": None if left is None else len(left),
        "matches_left": None if left is None else sum(box.identifies for box in left),
        "warnings": "; ".join(w for w in result.warnings if w not in clip.regions.refused),
    }
