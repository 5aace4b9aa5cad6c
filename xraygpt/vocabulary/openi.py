"""Ids of OpenI studies: the published validation and test splits, and this project's lockbox.

The lockbox is 200 studies outside the published protocol, set aside on 2026-11-29, for measuring a
finished model once. Both the lockbox and the published test split are reserved: no model may train,
tune or select on them.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Literal

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
    return reserved_split(study_id) == "test"


def reserved_split(name: str) -> Literal["test", "lockbox"] | None:
    """Return the split that a study id or OpenI image name is reserved for, or None."""
    study = openi_study(name) or ""
    if study in published_test_studies():
        return "test"
    return "lockbox" if study in lockbox_studies() else None


def published_split(study_id: str) -> Literal["train", "val", "test", "lockbox"] | None:
    """Return the split of a study, or None for studies outside the published protocol.

    The lists lack six studies of train and val that have no frontal image in our copy.
    """
    if reserved := reserved_split(study_id):
        return reserved
    study = openi_study(study_id) or ""
    if study in published_val_studies():
        return "val"
    return "train" if study in published_train_studies() else None


@cache
def published_train_studies() -> frozenset[str]:
    """Return 2,065 training studies in the split published with R2Gen, as ``CXR<number>``."""
    return _read_ids("iu_xray_train_studies.txt")


@cache
def published_test_studies() -> frozenset[str]:
    """Return the 590 test studies in the split published with R2Gen, as ``CXR<number>``."""
    return _read_ids("iu_xray_test_studies.txt")


@cache
def published_val_studies() -> frozenset[str]:
    """Return the 294 validation studies in the split published with R2Gen, as ``CXR<number>``."""
    return _read_ids("iu_xray_val_studies.txt")


@cache
def lockbox_studies() -> frozenset[str]:
    """Return the 200 studies of the lockbox, as ``CXR<number>``."""
    return _read_ids("iu_xray_lockbox_studies.txt")


def _read_ids(name: str) -> frozenset[str]:
    return frozenset(resources.files("xraygpt").joinpath("data", name).read_text().split())
