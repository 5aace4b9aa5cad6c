"""Collections of chest X-rays: one file per collection."""

from __future__ import annotations

from xraygpt.instructions.collections import (
    chest_imagenome,
    chexpert,
    chexpert_plus,
    mimic_cxr,
    ms_cxr,
    nih_boxes,
    padchest_gr,
    phantom,
    radfact,
    radvlm_set,
    rsna,
    siim,
    tbx11k,
    vindr_cxr,
)

__all__ = [
    "chest_imagenome",
    "chexpert",
    "chexpert_plus",
    "mimic_cxr",
    "ms_cxr",
    "nih_boxes",
    "padchest_gr",
    "phantom",
    "radfact",
    "radvlm_set",
    "rsna",
    "siim",
    "tbx11k",
    "vindr_cxr",
]
