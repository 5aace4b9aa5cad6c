"""What a clip shows: B-mode, colour Doppler, a Doppler spectrum or M-mode.

The region table answers this if it is valid. Otherwise colour Doppler is recognised by its pixels.
Tinted B-mode is in colour too, but there the colour follows from the brightness: all pixels of one
brightness have one colour, which changes gradually from dark to bright. In colour Doppler, the
colours of flow lie beside the tissue's. So the chroma of tissue is measured for each brightness,
and pixels far from it count as coloured. Thin lines (an ECG trace, the outline of the colour box)
are removed by an opening, and colours that never change in a clip (markers, menus) are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from xraygpt.ultrasound.clip import Clip
from xraygpt.ultrasound.sector import Sector

Answer = Literal["yes", "no", "unknown"]

FAR_CHROMA = 25.0
"""Distance of (Cb, Cr) from that of tissue as bright, above which a pixel is coloured."""
MIN_SHARE = 0.005
"""Fraction of the sector that must be coloured in at least one frame of a colour Doppler clip."""
_FRAMES = 16  # that are looked at
_BIN = 4  # grey levels of brightness with one typical chroma
_FEW, _TISSUE = 20, 0.01  # pixels and fraction of a brightness that must be tissue to measure it
_SLOPE = 8.0  # largest change of a tint's chroma per bin, where a range of brightness is missing
_CHANGING = 4.0  # standard deviation over time of Cb or Cr


@dataclass(frozen=True)
class Modes:
    """What a clip shows.

    Attributes:
        b_mode: Whether it shows a 2D picture.
        colour_doppler: Whether it shows colour or power Doppler.
        spectral_doppler: Whether it shows a PW or CW Doppler spectrum.
        m_mode: Whether it shows an M-mode.
        source: "region table" or "pixels"; only the table tells a spectrum and an M-mode.
        coloured_share: Largest fraction of the sector that is coloured in a frame; None if the
            pixels were not looked at.
    """

    b_mode: Answer
    colour_doppler: Answer
    spectral_doppler: Answer
    m_mode: Answer
    source: str
    coloured_share: float | None = None


def find_modes(clip: Clip, sector: Sector) -> Modes:
    """Return what a clip shows, by its region table or else by its pixels."""
    table = clip.regions
    share = coloured_share(clip.pixels, sector.mask)
    if table.regions and not table.refused:
        forms = {region.spatial_format for region in table.regions}
        types = {region.data_type for region in table.regions}
        spectra = {"PW spectral Doppler", "CW spectral Doppler"}
        return Modes(
            _answer("2D" in forms),
            _answer(any(r.is_sector and r.data_type == "colour flow" for r in table.regions)),
            _answer("spectral" in forms or bool(spectra & types)),
            _answer("M-mode" in forms),
            "region table",
            share,
        )
    found: Answer = "unknown" if sector.source == "none" else "yes"
    return Modes(found, _answer(share >= MIN_SHARE), "unknown", "unknown", "pixels", share)


def _answer(yes: bool) -> Answer:
    return "yes" if yes else "no"


def coloured_share(pixels: np.ndarray, mask: np.ndarray) -> float:
    """Return the largest fraction of the sector that is coloured in one frame.

    Args:
        pixels: uint8 (F, H, W) or (F, H, W, 3).
        mask: Bool (H, W), the sector.
    """
    from scipy import ndimage

    if pixels.ndim == 3 or not mask.any():
        return 0.0
    chosen = np.unique(np.linspace(0, len(pixels) - 1, min(_FRAMES, len(pixels))).astype(int))
    rows, columns = (slice(n.min(), n.max() + 1) for n in np.nonzero(mask))
    inside = mask[rows, columns]
    bright, chroma = _brightness_and_chroma(pixels[chosen][:, rows, columns])
    far = np.linalg.norm(chroma - _typical(bright, chroma, inside), axis=-1) > FAR_CHROMA
    far &= inside
    if len(chosen) > 2:
        far &= (chroma.std(axis=0) > _CHANGING).any(axis=-1)
    square = np.ones((1, 3, 3), bool)
    blobs = ndimage.binary_opening(far, square)
    return float(blobs.sum(axis=(1, 2)).max() / inside.sum())


def _brightness_and_chroma(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Y (F, H, W) and (Cb, Cr) (F, H, W, 2) around 0, float32 (ITU-R BT.601)."""
    red, green, blue = (rgb[..., i].astype(np.float32) for i in range(3))
    bright = 0.299 * red + 0.587 * green + 0.114 * blue
    return bright, np.stack([0.564 * (blue - bright), 0.713 * (red - bright)], axis=-1)


def _typical(bright: np.ndarray, chroma: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Return the chroma of tissue as bright as each pixel, (F, H, W, 2).

    It is followed from dark to bright: of the pixels of one brightness, those near the chroma of
    the brightness before it are tissue, even if most of the others are flow.
    """
    bins = (bright / _BIN).astype(np.int64)
    values, places = chroma[:, inside].reshape(-1, 2), bins[:, inside].ravel()
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(256 // _BIN + 2))
    table = np.zeros((256 // _BIN + 1, 2), np.float32)
    last, gap = table[0], 0
    for place in range(len(table)):
        found = values[order[starts[place] : starts[place + 1]]]
        radius = FAR_CHROMA + _SLOPE * gap
        near = found[np.linalg.norm(found - last, axis=1) <= radius]
        gap = gap + 1 if len(found) < _FEW else 0
        if len(near) >= max(_FEW, _TISSUE * len(found)):
            last = np.median(near, axis=0)
        table[place] = last
    typical: np.ndarray = table[bins]
    return typical
