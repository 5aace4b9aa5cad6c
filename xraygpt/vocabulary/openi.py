"""Ids of OpenI studies, and which of them belong to the published protocol's val and test split."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

# OpenI names its images CXR1004_IM-0005-1001.png; the Kaggle copy writes 1004_IM-0005-1001.dcm.png.
_OPENI_IMAGE = re.compile(r"^(?:CXR)?(\d+)_(?:\d+_)?IM-")
_OPENI_STUDY = re.compile(r"^CXR(\d+)$")


def openi_study(name: str) -> str | None:
    """``CXR1004`` from an OpenI study id or image file name; None if it is neither."""
    if "CXR" not in name and "IM-" not in name:
        return None  # most names of other corpora, told sooner
    found = _OPENI_STUDY.match(name) or _OPENI_IMAGE.match(name)
    return f"CXR{int(found[1])}" if found else None


def is_published_test(study_id: str) -> bool:
    """Whether `study_id` (or an OpenI image name) is of IU X-ray's published test split."""
    return (openi_study(study_id) or "") in published_test_studies()


@cache
def published_test_studies() -> frozenset[str]:
    """The 590 study ids of the split published with R2Gen, as ``CXR<number>``."""
    text = resources.files("xraygpt").joinpath("data/iu_xray_test_studies.txt").read_text()
    return frozenset(text.split())


@cache
def published_val_studies() -> frozenset[str]:
    """The 294 study ids of the same protocol's val split."""
    text = resources.files("xraygpt").joinpath("data/iu_xray_val_studies.txt").read_text()
    return frozenset(text.split())
