"""Check whether an image looks like a chest radiograph, and warn if it does not.

The image is reduced to 32 x 32 brightness ranks, which no window or gamma changes, and correlated
(Spearman) with the average frontal and lateral phantom. `docs/demo.md` reports measurements on
frontal X-rays from three public collections, head and abdomen images, and cardiac MR.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from random import Random

import numpy as np
from scipy import ndimage, stats

from xraygpt.media.pixels import MetaValue
from xraygpt.phantom.design import sample_balanced_findings
from xraygpt.phantom.render import VIEWS, Study, render
from xraygpt.processors.image import LUMINANCE

MIN_FRONTAL, MIN_LATERAL = 0.3, 0.55
"""Minimum correlation with the average frontal and lateral chest."""
_SIDE, _NUM_PHANTOMS = 32, 24
_RADIOGRAPHS = {"CR", "DX", "RG", "RF", "XA", "OT", "SC"}  # PS3.3 C.7.3.1.1.1; OT, SC: any type
_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound",
    "MG": "mammography", "NM": "nuclear medicine", "PT": "PET", "IO": "a dental radiograph",
    "PX": "a dental panorama",
}  # fmt: skip


def input_warnings(pixels: np.ndarray, meta: Mapping[str, MetaValue]) -> list[str]:
    """Return reasons to doubt that an image is a chest radiograph, one sentence each.

    Args:
        pixels: Display values in [0, 1], of shape (H, W) or (H, W, 3).
        meta: Metadata of the image, from `PixelImage.meta`.
    """
    warnings = [*_header_warnings(meta)]
    if pixels.ndim == 3 and _is_colour(pixels):
        warnings.append("It is in colour, but radiographs are grey.")
    correlation = chest_correlation(pixels)
    if correlation["frontal"] <= -MIN_FRONTAL:
        warnings.append("It looks like a negative of a chest: the model expects bright bones.")
    elif correlation["frontal"] < MIN_FRONTAL and correlation["lateral"] < MIN_LATERAL:
        warnings.append("It does not look like a chest radiograph.")
    return warnings


def _header_warnings(meta: Mapping[str, MetaValue]) -> list[str]:
    warnings = []
    modality, part = str(meta.get("modality", "")), str(meta.get("body_part", ""))
    if modality and modality not in _RADIOGRAPHS:
        warnings.append(f"The file says it is {_MODALITIES.get(modality, modality)} ({modality}).")
    if part and not any(word in part for word in ("CHEST", "THORAX", "LUNG", "RIB")):
        warnings.append(f"The file says it shows {part.lower()}.")
    return warnings


def chest_correlation(pixels: np.ndarray) -> dict[str, float]:
    """Compute the rank correlation with the average phantom of each view, in [-1, 1]."""
    ranks = _ranks(pixels)
    return {view: float(ranks @ template) for view, template in _templates().items()}


@cache
def _templates() -> dict[str, np.ndarray]:
    rng = Random("gate")
    studies = [
        Study(f"gate-{i}", sample_balanced_findings(rng), seed=5) for i in range(_NUM_PHANTOMS)
    ]
    templates = {}
    for view in VIEWS:
        mean = np.mean([_ranks(render(s, view, 128).pixels / 255) for s in studies], axis=0)
        templates[str(view)] = mean / np.linalg.norm(mean)
    return templates


def _ranks(pixels: np.ndarray) -> np.ndarray:
    """Return brightness ranks (1024,), centred and scaled to unit length."""
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
    """Return whether over 5 % of the pixels are coloured, which a small coloured label is not."""
    spread = pixels.max(axis=2) - pixels.min(axis=2)
    return bool((spread > 0.1).mean() > 0.05)
