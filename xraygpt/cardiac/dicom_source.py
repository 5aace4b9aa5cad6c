"""What DICOM objects of results copy from the images they were made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError, ImageError, InputError
from xraygpt.common.requirements import INSTALL_CMR
from xraygpt.media.dicom_header import numbers, open_dataset, read_elements
from xraygpt.media.picture import DEFAULT_LIMITS, suppress_library_output

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

NOTICE = "Research use only, not for diagnosis"
PRODUCT = "xraygpt"
PRIVATE_SCHEME = "99XRAYGPT"
"""Designator of the codes that no public coding scheme has (PS3.16 section 8)."""
Place = tuple[int, int]
"""A phase and a slice of a stack."""
_INSTALL = f"highdicom is not installed: {INSTALL_CMR}"
_REQUIRED = (  # highdicom reads them from the images; they may be empty (PS3.3 C.7.1.1, C.7.2.1)
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)
_IDENTITY = (
    *_REQUIRED, "IssuerOfPatientID", "OtherPatientIDs", "PatientAge",
    "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "LongitudinalTemporalInformationModified", "StudyDescription", "StudyInstanceUID",
)  # fmt: skip
_NAMES = ("PatientName", "ReferringPhysicianName")
_DATE = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])"
_FORMS = {  # highdicom refuses other values, which some exporters write
    "PatientSex": "[MFO]",
    "PatientBirthDate": _DATE,
    "StudyDate": _DATE,
    "StudyTime": r"([01]\d|2[0-3])([0-5]\d([0-5]\d(\.\d{1,6})?)?)?",
}
_ELEMENTS = (
    *_IDENTITY, "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID",
    "Modality",
    "FrameOfReferenceUID", "PositionReferenceIndicator", "SliceThickness", "NumberOfFrames",
)  # fmt: skip


class Algorithm(NamedTuple):
    """The program or network that made a result.

    Attributes:
        name: Such as the network's name.
        version: Of the network, or of the package that contains it.
    """

    name: str
    version: str


def require_highdicom() -> None:
    """Check that highdicom is installed.

    Raises:
        InputError: It is not.
    """
    if find_spec("highdicom") is None:
        raise InputError(_INSTALL)


def read_source(file: Path) -> Dataset:
    """Read who and what an image shows, and its identifiers; missing elements are left empty.

    Raises:
        DataError: The file cannot be read, or has no identifiers.
    """
    try:
        with suppress_library_output("pydicom"), file.open("rb") as stream:
            header = read_elements(open_dataset(stream, DEFAULT_LIMITS), _ELEMENTS)
    except (ImageError, OSError) as error:
        raise DataError(f"{file}: {error}") from None
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID"):
        if not header.get(keyword):
            raise DataError(
                f"{file}: the header has no {keyword}, so no DICOM object can refer to the image; "
                "export the images again with their identifiers"
            )
    return complete(header)


def complete(header: Dataset) -> Dataset:
    """Add the elements that highdicom expects of every image; their values are empty."""
    for keyword in _REQUIRED:
        if header.get(keyword) is None:
            setattr(header, keyword, "")
    return header


def copy_identity(header: Dataset) -> Dataset:
    """Return a dataset with the patient and the study of an image, in UTF-8.

    Elements whose values violate the standard are left empty.
    """
    from pydicom.dataset import Dataset

    result = Dataset()
    result.SpecificCharacterSet = "ISO_IR 192"
    for keyword in _IDENTITY:
        if keyword in header:
            with suppress(ValueError, TypeError):
                value = header[keyword].value
                setattr(result, keyword, str(value) if keyword in _NAMES else value)
    for keyword, form in _FORMS.items():
        if not re.fullmatch(form, str(result.get(keyword) or "")):
            setattr(result, keyword, "")
    return complete(result)


@contextmanager
def making(what: str) -> Iterator[None]:
    """Context manager for calls of highdicom, which prints names and checks all it copies.

    Raises:
        DataError: highdicom refuses an element of the images.
    """
    with suppress_library_output("highdicom", "pydicom"):
        try:
            yield
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(
                f"the {what} cannot be made from these images: an element of their headers is not "
                f"valid ({type(error).__name__}); export them again"
            ) from error


class SourceImage(NamedTuple):
    """An image of a stack in a DICOM file.

    Attributes:
        header: Of the file, as from `read_source`.
        frame: In the file, counted from 0.
    """

    header: Dataset
    frame: int

    @property
    def key(self) -> tuple[str, int]:
        """SOP Instance UID and frame, counted from 1; 0 in a file with one image."""
        frame = self.frame + 1 if is_multiframe(self.header) else 0
        return str(self.header.SOPInstanceUID), frame


def find_sources(stack: Stack, phases: Iterable[int]) -> dict[Place, SourceImage]:
    """Find the DICOM files of all images of some phases, and read their headers, each once.

    Raises:
        DataError: The images come from other files, or a header cannot be read.
    """
    if stack.source is None:
        raise DataError(
            f"{stack.name}: the images are not in DICOM files, so a DICOM segmentation cannot "
            "refer to them; use the folder of DICOM files"
        )
    headers: dict[Path, Dataset] = {}
    found: dict[Place, SourceImage] = {}
    for phase in phases:
        for slice_ in range(stack.slices):
            file, frame = stack.source(phase, slice_)
            if file not in headers:
                headers[file] = read_source(file)
            found[phase, slice_] = SourceImage(headers[file], frame)
    return found


def is_multiframe(header: Dataset) -> bool:
    """Check whether the file has several images, so that references must name one of them."""
    return int((numbers(header, "NumberOfFrames") or [1])[0]) > 1


def require_one(headers: Iterable[Dataset], keyword: str, what: str) -> None:
    """Check that an element has the same value in all images.

    Raises:
        DataError: It has not; `what` names the element in the message.
    """
    values = {str(header.get(keyword) or "") for header in headers}
    if len(values) > 1:
        raise DataError(f"the images belong to {len(values)} {what}; give the images of one")


def describe_private_codes(document: Dataset) -> None:
    """Say whose codes those of `PRIVATE_SCHEME` are (PS3.3 C.12.1.1.1)."""
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodingSchemeDesignator = PRIVATE_SCHEME
    item.CodingSchemeName = f"Codes of {PRODUCT}"
    item.CodingSchemeResponsibleOrganization = PRODUCT
    document.CodingSchemeIdentificationSequence = [item]
