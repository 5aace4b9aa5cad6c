"""Check whether an image is a chest radiograph of a view that the model reads.

`predict.py`, `evaluate.py`, the API, the demo, `xraygpt.load_model` and `xraygpt.validate` all use
this check. It reads the file's header and the pixels as the model will see them. The pixels are
reduced to 32 x 32 brightness ranks, which no window or gamma changes, and correlated (Spearman)
with the average frontal and lateral phantom. `docs/demo.md` reports how often the check is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np

from xraygpt.media.base import Media
from xraygpt.media.picture import MetaValue
from xraygpt.processors.image import LUMINANCE

MIN_FRONTAL, MIN_LATERAL = 0.3, 0.55
"""Minimum correlation with the average frontal and lateral chest."""
MIN_LATERAL_LEAD = 0.15
"""Minimum lead of the lateral correlation over the frontal one in a lateral view."""
MIN_TURNED, MIN_TURNED_LEAD = 0.45, 0.3
"""Minimum frontal correlation of a turned image, and its minimum lead over the upright one."""
MIN_SIDE = 128
"""Shortest side in pixels at which small findings can still be seen."""
MIN_CONTRAST = 0.02
"""Minimum difference between the brightest and the darkest of the 32 x 32 cells."""
TEMPLATES = "chest_templates.npy"
"""File in `xraygpt/data` with the average phantoms, written by `tools/chest_templates.py`."""
TEMPLATE_VIEWS = ("frontal", "lateral")
_SIDE = 32
_RADIOGRAPHS = {"CR", "DX", "RG", "RF", "XA", "OT", "SC"}  # PS3.3 C.7.3.1.1.1; OT, SC: any type
_MODALITIES = {
    "CT": "computed tomography", "MR": "magnetic resonance", "US": "ultrasound",
    "MG": "mammography", "NM": "nuclear medicine", "PT": "PET", "IO": "a dental radiograph",
    "PX": "a dental panorama",
}  # fmt: skip
_LATERAL = {"LL", "RL", "L", "LAT", "LATERAL"}
_FRONTAL = {"PA", "AP", "FRONTAL"}


@dataclass(frozen=True)
class InputCheck:
    """Checks media before a model reads them.

    Attributes:
        views: The views that the model reads, such as "frontal" or "PA"; empty means any.
    """

    views: tuple[str, ...] = ()

    def __call__(self, media: Media) -> tuple[str, ...]:
        """Return the warnings about an unprocessed medium; none for clips, volumes, embeddings."""
        if media.kind != "image":
            return ()
        meta = {"view_position": media.view, **media.meta}
        return tuple(input_warnings(media.data.numpy(), meta, self.views))


def input_warnings(
    pixels: np.ndarray, meta: Mapping[str, MetaValue], views: Sequence[str] = ()
) -> list[str]:
    """Return reasons to doubt that a model can read an image, one sentence each.

    Args:
        pixels: Display values in [0, 1], of shape (H, W) or (H, W, 3).
        meta: Metadata of the image, from `PixelImage.meta`.
        views: The views that the model reads; empty means any.
    """
    warnings = _header_warnings(meta)
    if pixels.ndim == 3 and _is_colour(pixels):
        warnings.append("It is in colour, but radiographs are grey.")
    size = meta.get("file_size", pixels.shape[:2])
    if isinstance(size, tuple) and min(size) < MIN_SIDE:
        warnings.append(f"It has only {size[1]:.0f} × {size[0]:.0f} pixels.")
    cells = _cells(pixels)
    if np.ptp(cells) < MIN_CONTRAST:
        return [*warnings, "It is blank: all parts of it are equally bright."]
    return [*warnings, *_pattern_warnings(cells, str(meta.get("view_position", "")), views)]


def study_warnings(warnings: Sequence[Sequence[str]]) -> list[str]:
    """Merge the warnings about each image of a study; of several images, they say which one."""
    if len(warnings) == 1:
        return list(warnings[0])
    return [f"Image {i}: {w}" for i, image in enumerate(warnings, start=1) for w in image]


def chest_correlation(pixels: np.ndarray) -> dict[str, float]:
    """Compute the rank correlation with the average phantom of each view, in [-1, 1]."""
    return _correlation(_cells(pixels))


def brightness_ranks(pixels: np.ndarray) -> np.ndarray:
    """Return the brightness ranks of 32 x 32 cells, (1024,), centred and scaled to length 1."""
    return _ranks(_cells(pixels))


def _header_warnings(meta: Mapping[str, MetaValue]) -> list[str]:
    warnings = []
    modality, part = str(meta.get("modality", "")), str(meta.get("body_part", ""))
    if modality and modality not in _RADIOGRAPHS:
        warnings.append(f"The file says it is {_MODALITIES.get(modality, modality)} ({modality}).")
    if part and not any(word in part for word in ("CHEST", "THORAX", "LUNG", "RIB")):
        warnings.append(f"The file says it shows {part.lower()}.")
    if meta.get("presentation_intent") == "FOR PROCESSING":  # PS3.3 C.8.11.1.1.1
        warnings.append(
            "The file is marked FOR PROCESSING: it contains raw detector data, usually a negative; "
            "use the version FOR PRESENTATION."
        )
    return warnings


def _pattern_warnings(cells: np.ndarray, view: str, views: Sequence[str]) -> list[str]:
    """Return the warnings that follow from the 32 x 32 cells and the view in the header."""
    correlation = _correlation(cells)
    frontal, lateral = correlation["frontal"], correlation["lateral"]
    if frontal <= -MIN_FRONTAL:
        return ["It looks like a negative of a chest: the model expects bright bones."]
    if frontal < MIN_FRONTAL and lateral < MIN_LATERAL:
        turned = max(_correlation(np.rot90(cells, k))["frontal"] for k in (1, 2, 3))
        if turned >= MIN_TURNED and turned - frontal >= MIN_TURNED_LEAD:
            return ["It looks like a chest radiograph that is turned or upside down."]
        return ["It does not look like a chest radiograph."]
    if _reads_only_frontals(views):
        looks_lateral = lateral >= MIN_LATERAL and lateral - frontal >= MIN_LATERAL_LEAD
        if _is_lateral(view) or (looks_lateral and not _is_frontal(view)):
            return ["It looks like a lateral view, but this model reads frontal views only."]
    return []


def _reads_only_frontals(views: Sequence[str]) -> bool:
    return any(map(_is_frontal, views)) and not any(map(_is_lateral, views))


def _is_frontal(view: str) -> bool:
    return view.upper().split(" ")[0] in _FRONTAL


def _is_lateral(view: str) -> bool:
    return view.upper() in _LATERAL


def _correlation(cells: np.ndarray) -> dict[str, float]:
    ranks = _ranks(cells)
    return {view: float(ranks @ template) for view, template in _templates().items()}


@cache
def _templates() -> dict[str, np.ndarray]:
    with (resources.files("xraygpt") / "data" / TEMPLATES).open("rb") as file:
        stored = np.load(file, allow_pickle=False).astype(np.float64)
    return {
        view: template / np.linalg.norm(template)
        for view, template in zip(TEMPLATE_VIEWS, stored, strict=True)
    }


def _cells(pixels: np.ndarray) -> np.ndarray:
    """Return the mean brightness of 32 x 32 cells, which span the whole image."""
    step = max(min(pixels.shape[:2]) // 256, 1)  # eight pixels per cell and side suffice
    small = pixels[::step, ::step].astype(np.float32)
    if small.ndim == 3:
        small = small @ np.array(LUMINANCE, np.float32)
    for axis in (0, 1):
        starts = np.arange(_SIDE) * small.shape[axis] // _SIDE
        counts = np.maximum(np.diff(starts, append=small.shape[axis]), 1)
        sums = np.add.reduceat(small, starts, axis)
        small = sums / (counts[:, None] if axis == 0 else counts)
    return small


def _ranks(cells: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(cells, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.ravel()]  # ties share their mean rank
    ranks = ranks - ranks.mean()
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks


def _is_colour(pixels: np.ndarray) -> bool:
    """Return whether over 5 % of the pixels are coloured, which a small coloured label is not."""
    step = max(min(pixels.shape[:2]) // 256, 1)
    small = pixels[::step, ::step]
    return bool(((small.max(axis=2) - small.min(axis=2)) > 0.1).mean() > 0.05)
