"""Structures of the heart, and the values that stand for them in label maps of other projects."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from xraygpt.common.errors import DataError

STRUCTURES = ("background", "rv", "myocardium", "lv", "infarct", "no_reflow")
"""Structures in the order of their values in this project's label maps: cavities of the right and
left ventricle, left ventricular myocardium, and parts of the myocardium that are infarcted or not
reperfused. The first four values are ACDC's."""
RV, MYOCARDIUM, LV, INFARCT, NO_REFLOW = range(1, 6)

CONVENTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "acdc": ("background", "rv", "myocardium", "lv"),
        "mnms": ("background", "lv", "myocardium", "rv"),
        "emidec": ("background", "lv", "myocardium", "infarct", "no_reflow"),
        "sunnybrook": ("background", "lv"),
    }
)
"""The structure of each value, by project: ACDC (Bernard et al. 2018, IEEE TMI), M&Ms (Campello et
al. 2021, IEEE TMI), EMIDEC (Lalande et al. 2020, Data) and Sunnybrook (Radau et al. 2009)."""


def to_structures(labels: np.ndarray, convention: str) -> np.ndarray:
    """Convert a label map to this project's values, as uint8.

    Args:
        labels: Values of the convention; floating-point values must be whole.
        convention: A key of `CONVENTIONS`.

    Raises:
        DataError: There is no such convention, a value is not whole, or it has no meaning in the
            convention.
    """
    if convention not in CONVENTIONS:
        raise DataError(f"unknown label convention {convention!r}: use {', '.join(CONVENTIONS)}")
    rounded = np.rint(labels)
    if not np.array_equal(rounded, labels):
        raise DataError(
            "the label map has values that are not whole: it was interpolated or scaled; save it "
            "again with nearest-neighbour interpolation"
        )
    names = CONVENTIONS[convention]
    unknown = sorted(set(np.unique(rounded).astype(int).tolist()) - set(range(len(names))))
    if unknown:
        raise DataError(
            f"the label map has the value {unknown[0]}, but {convention} has only 0 to "
            f"{len(names) - 1}"
        )
    values = np.array([STRUCTURES.index(name) for name in names], dtype=np.uint8)
    return values[rounded.astype(np.intp)]
