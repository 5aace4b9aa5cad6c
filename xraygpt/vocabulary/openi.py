"""Ids of OpenI studies, and the published validation and test splits."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

# OpenI names its images CXR1004_IM-0005-1001.png; the Kaggle copy writes 1004_IM-0005-1001.dcm.png.
_OPENI_IMAGE = re.compile(r"^(?:CXR)?(\d+)_(?:\d+_)?IM-")
_OPENI_STUDY = re.compile(r"^CXR(\d+)$")


def openi_study(name: str) -> str | None:
    """Return ``CXR1004`` for an OpenI study id or image file name, or None for any other name."""
    if "CXR" not in name and "IM-" not in name:
        return None  # fast path for most names of other corpora
    match = _OPENI_STUDY.match(name) or _OPENI_IMAGE.match(name)
    return f"CXR{int(match[1])}" if match else None


def is_published_test(study_id: str) -> bool:
    """Return whether a study id or OpenI image name is in IU X-ray's published test split."""
    return (openi_study(study_id) or "") in published_test_studies()


@cache
def published_test_studies() -> frozenset[str]:
    """Return the 590 test studies in the split published with R2Gen, as ``CXR<number>``."""
    text = resources.files("xraygpt").joinpath("data/iu_xray_test_studies.txt").read_text()
    return frozenset(text.split())


@cache
def published_val_studies() -> frozenset[str]:
    """Return the 294 validation studies in the split published with R2Gen, as ``CXR<number>``."""
    text = resources.files("xraygpt").joinpath("data/iu_xray_val_studies.txt").read_text()
    return frozenset(text.split())
