"""What a header says about the patient and the visit, and whether a text repeats it.

The values are used only for comparison. They are in no message and no file, and `repr` hides them.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NAMES = (
    *("PatientName", "PatientBirthName", "PatientMotherBirthName", "OtherPatientNames"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "NameOfPhysiciansReadingStudy"),
    *("OperatorsName", "PhysiciansOfRecord", "RequestingPhysician", "ResponsiblePerson"),
)
_CODES = (
    *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "DeviceSerialNumber"),
    *("StationName", "AdmissionID", "PatientTelephoneNumbers", "PerformedProcedureStepID"),
    *("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
)
_PLACES = (
    *("InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "PatientAddress"),
)
_DATES = (
    *("PatientBirthDate", "StudyDate", "SeriesDate", "ContentDate", "AcquisitionDate"),
    "AcquisitionDateTime",
)
IDENTITY_ELEMENTS = (*_NAMES, *_CODES, *_PLACES, *_DATES)

Kind = Literal["name", "code", "place", "date"]

# Letters and digits that text recognition confuses.
_CONFUSED = str.maketrans({"o": "0", "q": "0", "i": "1", "l": "1", "s": "5", "b": "8", "z": "2"})
_IGNORED = {  # parts of names and places that identify nobody
    "dr", "prof", "md", "mr", "mrs", "ms", "phd", "frau", "herr", "jr", "sr", "of", "the", "and",
    "von", "van", "de", "der", "la", "le", "el", "st", "hospital", "clinic", "klinik", "clinica",
    "center", "centre", "medical", "med", "ctr", "university", "department", "dept", "health",
    "care", "heart", "cardiac", "cardiology", "echo", "ultrasound", "institute", "street", "road",
    "no", "info", "none", "unknown", "anonymous", "anonymized", "not", "connected",
}  # fmt: skip
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONG_MONTHS = (
    "january", "february", "march", "april", "may", "june", "july", "august", "september",
    "october", "november", "december",
)  # fmt: skip
_NAMED = "|".join(_MONTHS)
_DATE_LIKE = re.compile(
    r"(?<!\d)(?:"
    r"\d{1,2}[./-]\d{1,2}[./-](?:\d{4}|\d{2})"
    r"|(?:19|20)\d\d[./-]?\d\d[./-]?\d\d"
    rf"|\d{{1,2}}[ ./-]?(?:{_NAMED})[a-z]*[ .,/-]*(?:\d{{4}}|\d{{2}})"
    rf"|(?:{_NAMED})[a-z]*[ ./-]?\d{{1,2}}[ .,/-]+(?:\d{{4}}|\d{{2}})"
    r")(?!\d)",
    re.IGNORECASE,
)
_LONGEST_RUN = 8  # consecutive words of a text that are joined to be compared
_SHORTEST = 2  # characters
_CONTAINED = 5  # characters of a term that may be anywhere in a text
_ONE_WRONG = 6  # characters of a name of which one may be misread


@dataclass(frozen=True)
class Term:
    """A spelling to look for, and the element that it comes from; `repr` hides the spelling."""

    element: str
    kind: Kind
    spelling: str = field(repr=False)


@dataclass(frozen=True)
class Identity:
    """What a header says about the patient and the visit.

    Attributes:
        terms: Spellings to look for.
        too_short: Elements whose value is too short to be looked for.
        study_uid: Study Instance UID; empty if unknown.
        patient_id: Patient ID; empty if unknown.
    """

    terms: tuple[Term, ...] = field(default=(), repr=False)
    too_short: tuple[str, ...] = ()
    study_uid: str = field(default="", repr=False)
    patient_id: str = field(default="", repr=False)

    def matches(self, text: str) -> tuple[str, ...]:
        """Return the elements of the header that a text repeats, in whole or in part.

        Case, accents, punctuation, the order of a date and letters that look like digits make no
        difference. Names and places match by any of their words; words of up to three letters only
        if the text has them as a word, and names of six letters or more also with one wrong letter.
        """
        words = _words(text)
        runs = {
            "".join(words[i:j])
            for i in range(len(words))
            for j in range(i + 1, min(i + _LONGEST_RUN, len(words)) + 1)
        }
        runs |= {"/".join(words[i : i + 3]) for i in range(len(words) - 2)}
        joined = "".join(words)
        found = (t.element for t in self.terms if _occurs(t, words, runs, joined))
        return tuple(dict.fromkeys(found))


def looks_like_date(text: str) -> bool:
    """Return whether a text contains a calendar date."""
    return _DATE_LIKE.search(text) is not None


def read_identity(header: Dataset) -> Identity:
    """Collect what a header says about the patient and the visit."""
    terms, short = list[Term](), list[str]()
    kinds: tuple[tuple[Kind, tuple[str, ...]], ...] = (
        ("name", _NAMES), ("code", _CODES), ("place", _PLACES), ("date", _DATES),
    )  # fmt: skip
    for kind, elements in kinds:
        for element in elements:
            values = _values(header, element)
            spellings = {s for value in values for s in _spellings(kind, value)}
            terms += [Term(element, kind, s) for s in sorted(spellings)]
            if values and not spellings and any(len("".join(_words(v))) == 1 for v in values):
                short.append(element)
    uid, patient = (_values(header, name) for name in ("StudyInstanceUID", "PatientID"))
    return Identity(tuple(terms), tuple(short), "".join(uid[:1]), "".join(patient[:1]))


def _values(header: Dataset, element: str) -> list[str]:
    """Return the values of an element as text without surrounding blanks; not those without any."""
    try:
        value = header.get(element)
    except Exception:  # a value that breaks the rules of its representation
        return []
    several = value if isinstance(value, list | tuple) or hasattr(value, "append") else [value]
    texts = (str(v).strip() for v in several if v is not None)
    return [text for text in texts if text]


def _words(text: str) -> list[str]:
    """Split a text at everything but letters and digits; without case, accents and look-alikes."""
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c)).casefold()
    return [word.translate(_CONFUSED) for word in re.findall(r"[^\W_]+", plain)]


def _spellings(kind: Kind, value: str) -> Iterator[str]:
    """Yield what a text may contain if it repeats a value."""
    if kind == "date":
        yield from _date_spellings(value)
        return
    ignored = {"".join(_words(word)) for word in _IGNORED}
    for group in value.split("=") if kind == "name" else [value]:  # alphabetic, ideographic, …
        words = [word for word in _words(group) if kind == "code" or word not in ignored]
        yield from (p for p in ["".join(words)] if len(p) >= _SHORTEST)
        if kind != "code":
            yield from (word for word in words if len(word) >= _SHORTEST and not word.isdecimal())


def _date_spellings(value: str) -> Iterator[str]:
    """Yield a DICOM date as text may show it, with or without its parts set apart.

    Dates are YYYYMMDD (PS3.5 6.2); the older form YYYY.MM.DD, and a date with a time, are read too.
    """
    match = re.match(r"(\d{4})[.-]?(\d\d)[.-]?(\d\d)", value)
    if not match or not 1 <= int(match[2]) <= 12:
        return
    year, month, day = match.groups()
    number, short_day = int(month), day.lstrip("0")
    years = (year, year[2:])
    for y in years:
        yield from (f"{y}{month}{day}", f"{day}{month}{y}", f"{month}{day}{y}")
    for y, d, m in itertools.product(years, (day, short_day), (month, month.lstrip("0"))):
        yield from (f"{y}/{m}/{d}", f"{d}/{m}/{y}", f"{m}/{d}/{y}")
    for y, d, names in itertools.product(years, (day, short_day), (_MONTHS, _LONG_MONTHS)):
        name = names[number - 1].translate(_CONFUSED)
        yield from (f"{d}{name}{y}", f"{name}{d}{y}", f"{y}{name}{d}")


def _occurs(term: Term, words: Sequence[str], runs: set[str], joined: str) -> bool:
    spelling = term.spelling
    if spelling in runs:
        return True
    anywhere = _CONTAINED if term.kind != "date" else 8
    if len(spelling) >= anywhere and spelling in joined:
        return True
    if term.kind not in ("name", "place") or len(spelling) < _ONE_WRONG:
        return False
    return any(_differs_by_one(spelling, word) for word in words)


def _differs_by_one(a: str, b: str) -> bool:
    """Return whether one letter is replaced, added or missing."""
    if abs(len(a) - len(b)) > 1:
        return False
    first = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if first is None:
        return True
    return a[first + (len(a) >= len(b)) :] == b[first + (len(b) >= len(a)) :]
