"""Whether a picture looks like a chest radiograph. A doubt is told; it stops nobody.

The picture is reduced to 32 x 32 ranks of brightness, which no window or gamma changes, and
correlated (Spearman) with the average of drawn chests, frontal and lateral. Measured in
`docs/demo.md`: frontals of three public collections, head and abdomen, cardiac MR.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random

import numpy as np
from scipy import ndimage, stats

from xraygpt.media.pixels import MetaValue
from xraygpt.phantom.design import balanced
from xraygpt.phantom.render import VIEWS, Study, render
from xraygpt.processors.image import LUMINANCE

FRONTAL, LATERAL = 0.3, 0.55
"""Least correlation with the average frontal, with the average lateral."""
_SIDE, _DRAWN = 32, 24
_RADIOGRAPHS = {"CR", "DX", "RG", "RF", "XA", "OT", "SC"}  # PS3.3 C.7.3.1.1.1; the last two: any
_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound",
    "MG": "mammography", "NM": "nuclear medicine", "PT": "PET", "IO": "a dental radiograph",
    "PX": "a dental panorama",
}  # fmt: skip


def doubts(pixels: np.ndarray, meta: Mapping[str, MetaValue]) -> list[str]:
    """Reasons to doubt that this is a chest radiograph, each a sentence; none if there are none.

    Args:
        pixels: (H, W) or (H, W, 3), display values in [0, 1].
        meta: Of `PixelImage`.
    """
    found = []
    modality, part = str(meta.get("modality", "")), str(meta.get("body_part", ""))
    if modality and modality not in _RADIOGRAPHS:
        found.append(f"The file says it is {_MODALITIES.get(modality, modality)} ({modality}).")
    if part and not any(word in part for word in ("CHEST", "THORAX", "LUNG", "RIB")):
        found.append(f"The file says it shows {part.lower()}.")
    if pixels.ndim == 3 and _is_colour(pixels):
        found.append("It is in colour, and radiographs are grey.")
    like = likeness(pixels)
    if like["frontal"] <= -FRONTAL:
        found.append("It looks like a negative of a chest: the model expects bright bones.")
    elif like["frontal"] < FRONTAL and like["lateral"] < LATERAL:
        found.append("It does not look like a chest radiograph.")
    return found


def likeness(pixels: np.ndarray) -> dict[str, float]:
    """Rank correlation with the average drawn chest of each view, in [-1, 1]."""
    ranks = _ranks(pixels)
    return {view: float(ranks @ template) for view, template in _templates().items()}


@cache
def _templates() -> dict[str, np.ndarray]:
    rng = Random("gate")
    studies = [Study(f"gate-{i}", balanced(rng), seed=5) for i in range(_DRAWN)]
    found = {}
    for view in VIEWS:
        mean = np.mean([_ranks(render(s, view, 128).pixels / 255) for s in studies], axis=0)
        found[str(view)] = mean / np.linalg.norm(mean)
    return found


def _ranks(pixels: np.ndarray) -> np.ndarray:
    """(1024,) ranks of brightness, centred, of length 1."""
    grey = pixels @ np.array(LUMINANCE, np.float32) if pixels.ndim == 3 else pixels
    zoom = [_SIDE / n for n in grey.shape]
    smooth = ndimage.uniform_filter(grey.astype(np.float32), [max(round(1 / z), 1) for z in zoom])
    rows, columns = (((np.arange(_SIDE) + 0.5) / z).astype(int) for z in zoom)
    small = smooth[np.ix_(rows, columns)]
    ranks = stats.rankdata(small)
    ranks = ranks - ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks


def _is_colour(pixels: np.ndarray) -> bool:
    """More than a stain of colour: a coloured label in a corner does not count."""
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return bool((spread > 0.1).mean() > 0.05)
