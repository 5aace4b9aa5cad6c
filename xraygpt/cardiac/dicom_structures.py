"""Structures of the heart as segments of DICOM Segmentation objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from xraygpt.cardiac.dicom_source import PRIVATE_SCHEME
from xraygpt.common.errors import DataError
from xraygpt.segmentation.labels import INFARCT, LV, MYOCARDIUM, NO_REFLOW, RV, STRUCTURES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class CodeTriple(NamedTuple):
    """A code of a terminology: its value, the scheme's designator, and its meaning."""

    value: str
    scheme: str
    meaning: str


class SegmentCodes(NamedTuple):
    """How a structure is described (PS3.3 C.8.20.4).

    Attributes:
        label: Name for people.
        category: Kind of structure.
        type: The structure.
        region: Where it is, if the type does not say it.
        color: As CIELab.
    """

    label: str
    category: CodeTriple
    type: CodeTriple
    region: CodeTriple | None
    color: tuple[float, float, float]


LEFT_VENTRICLE = CodeTriple("87878005", "SCT", "Left ventricle")
RIGHT_VENTRICLE = CodeTriple("53085002", "SCT", "Right ventricle")
LEFT_MYOCARDIUM = CodeTriple("49848007", "SCT", "Myocardium of left ventricle")
_ANATOMY = CodeTriple("91723000", "SCT", "Anatomical Structure")
_ABNORMAL = CodeTriple("49755003", "SCT", "Morphologically Abnormal Structure")
_INFARCT = CodeTriple("55641003", "SCT", "Infarct")
_NO_REFLOW = CodeTriple("NO_REFLOW", PRIVATE_SCHEME, "Microvascular obstruction (no-reflow)")

SEGMENTS: Mapping[int, SegmentCodes] = MappingProxyType(
    {
        RV: SegmentCodes(
            "Right ventricular cavity", _ANATOMY, RIGHT_VENTRICLE, None, (46, 21, -53)
        ),
        MYOCARDIUM: SegmentCodes(
            "Left ventricular myocardium", _ANATOMY, LEFT_MYOCARDIUM, None, (88, -79, 81)
        ),
        LV: SegmentCodes("Left ventricular cavity", _ANATOMY, LEFT_VENTRICLE, None, (53, 80, 67)),
        INFARCT: SegmentCodes("Infarct", _ABNORMAL, _INFARCT, LEFT_MYOCARDIUM, (97, -22, 94)),
        NO_REFLOW: SegmentCodes(
            "Microvascular obstruction", _ABNORMAL, _NO_REFLOW, LEFT_MYOCARDIUM, (60, 98, -61)
        ),
    }
)
"""The segment of each structure. SNOMED CT codes of the ventricles are used for their cavities, as
in DICOM's list of cardiac structures (PS3.16 CID 7152); for no-reflow, DICOM has no code."""

_KNOWN_CODES: Mapping[tuple[str, str], int] = MappingProxyType(
    {
        **{(codes.type.scheme, codes.type.value): value for value, codes in SEGMENTS.items()},
        ("SRT", "T-32500"): RV,  # SNOMED RT, in older files
        ("SRT", "T-32600"): LV,
        ("SRT", "T-32620"): MYOCARDIUM,
        ("SCT", "22298006"): INFARCT,  # the disease
        ("DCM", "122113"): INFARCT,  # scarred myocardium
    }
)
_SAME_SCHEMES = {"SNM3": "SRT", "99SDM": "SRT"}
_BACKGROUND = ("DCM", "125040")
_OTHER = -1  # a structure that has no value
_WORDS = (  # the first that matches counts
    (NO_REFLOW, r"no[ -]?re-?flow|\bmvo\b|microvascular obs"),
    (INFARCT, r"infarct|\bscar|necro"),
    (_OTHER, r"(right|\brv).*(myo|wall|muscle)|\brvm|\bepi|\batri|outflow|\b[lr]vot\b"),
    (MYOCARDIUM, r"myo|\blvm|(left ventric\w*|\blv) (wall|muscle)"),
    (RV, r"right ventric|\brv"),
    (LV, r"left ventric|\blv"),
)


def find_structures(segments: list[Dataset]) -> dict[int, int]:
    """Return the structure of each segment number, by its code, or else by the words in its label.

    Structures have values as in `segmentation.labels`. A background segment gets 0.

    Raises:
        DataError: A segment is none of the structures, its code contradicts its label, or two
            segments are the same structure.
    """
    found, unknown = dict[int, int](), list[str]()
    for segment in segments:
        structure = _structure_of(segment)
        if structure is None:
            unknown.append(_name(segment))
        else:
            found[_number(segment)] = structure
    if unknown:
        known = ", ".join(codes.label.lower() for codes in SEGMENTS.values())
        raise DataError(
            f"no structure is known for {'; '.join(unknown)}: remove these segments, or label them "
            f"as one of {known}"
        )
    for structure in set(found.values()) - {0}:
        same = [_name(segment) for segment in segments if found[_number(segment)] == structure]
        if len(same) > 1:
            raise DataError(
                f"{' and '.join(same)} are both {STRUCTURES[structure]}; keep one, or correct its "
                "label and code"
            )
    return found


def _structure_of(segment: Dataset) -> int | None:
    types = segment.get("SegmentedPropertyTypeCodeSequence")
    scheme, value, meaning = (
        str(types[0].get(keyword) or "") if types else ""
        for keyword in ("CodingSchemeDesignator", "CodeValue", "CodeMeaning")
    )
    key = _SAME_SCHEMES.get(scheme, scheme), value
    if key == _BACKGROUND:
        return 0
    by_code = _KNOWN_CODES.get(key)
    by_label = _by_words(str(segment.get("SegmentLabel") or ""))
    if by_label == _OTHER:
        return None
    if by_code is None:
        if by_label is None and _number(segment) == 0:
            return 0  # the background of a label map
        found = _by_words(meaning) if by_label is None else by_label
        return None if found == _OTHER else found
    if by_label not in (None, by_code):
        raise DataError(
            f"{_name(segment)} has the code of {STRUCTURES[by_code]} ({scheme} {value}), but its "
            f"label reads as {STRUCTURES[by_label or 0]}; correct one of them"
        )
    return by_code


def _number(segment: Dataset) -> int:
    return int(segment.get("SegmentNumber") or 0)


def _by_words(text: str) -> int | None:
    words = re.sub(r"[_\s]+", " ", text.lower())
    return next((value for value, pattern in _WORDS if re.search(pattern, words)), None)


def _name(segment: Dataset) -> str:
    label = str(segment.get("SegmentLabel") or "")
    return f"segment {_number(segment)} " + (f'"{label}"' if label else "without label")
