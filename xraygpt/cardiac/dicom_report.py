"""Measurements of the heart as a DICOM Structured Report (TID 1500, PS3.16).

Codes are those of DICOM's lists for cardiac measurements (CID 3468, 3469, 3833, 3835, 12203). An
indexed value has a code of its own, so that no program takes it for the value itself, and the
modifier "Index: BSA" (CID 3455).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from xraygpt.cardiac.dicom_source import (
    NOTICE,
    PRIVATE_SCHEME,
    PRODUCT,
    Algorithm,
    copy_identity,
    describe_private_codes,
    making,
    read_source,
    require_highdicom,
    require_one,
)
from xraygpt.cardiac.dicom_structures import (
    LEFT_MYOCARDIUM,
    LEFT_VENTRICLE,
    RIGHT_VENTRICLE,
    CodeTriple,
)
from xraygpt.common.errors import InputError
from xraygpt.version import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SERIES_NUMBER = 9002
_SYNTHETIC = "SYNTHETIC: the images are simulated"


class Quantity(NamedTuple):
    """How a measurement is coded.

    Attributes:
        code: Its name.
        unit: UCUM code and its meaning.
        group: Title of the group of measurements.
        site: What is measured; None for the whole patient.
        indexed: Whether it is divided by the body surface area.
    """

    code: CodeTriple
    unit: tuple[str, str]
    group: str
    site: CodeTriple | None = None
    indexed: bool = False


_ML, _GRAM, _PERCENT = ("ml", "milliliter"), ("g", "gram"), ("%", "percent")
_ML_PER_AREA = ("ml/m2", "milliliter per square meter")
_BSA = CodeTriple("8277-6", "LN", "Body Surface Area")
_LEFT, _RIGHT, _PATIENT = "Left ventricle", "Right ventricle", "Patient"


def _loinc(value: str, meaning: str) -> CodeTriple:
    return CodeTriple(value, "LN", meaning)


def _private(value: str, meaning: str) -> CodeTriple:
    return CodeTriple(value, PRIVATE_SCHEME, meaning)


def _left(code: CodeTriple, unit: tuple[str, str], indexed: bool = False) -> Quantity:
    return Quantity(code, unit, _LEFT, LEFT_VENTRICLE, indexed)


def _right(code: CodeTriple, unit: tuple[str, str], indexed: bool = False) -> Quantity:
    return Quantity(code, unit, _RIGHT, RIGHT_VENTRICLE, indexed)


_STROKE_VOLUME = CodeTriple("90096001", "SCT", "Stroke Volume")
QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {
        "lv_edv": _left(_loinc("8821-1", "Left Ventricular ED Volume"), _ML),
        "lv_esv": _left(_loinc("8823-7", "Left Ventricular ES Volume"), _ML),
        "lv_sv": _left(_STROKE_VOLUME, _ML),
        "lv_ef": _left(_loinc("8811-2", "Left ventricular ejection fraction by MR"), _PERCENT),
        "lv_mass": _left(_loinc("18087-7", "Left Ventricle Mass"), _GRAM),
        "cardiac_output": _left(
            CodeTriple("82799009", "SCT", "Cardiac Output"), ("l/min", "liter per minute")
        ),
        "lv_edv_index": _left(
            _private("LV_EDV_INDEX", "Left Ventricular ED Volume Index"), _ML_PER_AREA, True
        ),
        "lv_esv_index": _left(
            _private("LV_ESV_INDEX", "Left Ventricular ES Volume Index"), _ML_PER_AREA, True
        ),
        "lv_mass_index": _left(
            _private("LV_MASS_INDEX", "Left Ventricle Mass Index"),
            ("g/m2", "gram per square meter"),
            True,
        ),
        "infarct_percent": Quantity(
            _private("INFARCT_PERCENT", "Infarct as Percent of Left Ventricular Myocardium"),
            _PERCENT,
            _LEFT,
            LEFT_MYOCARDIUM,
        ),
        "rv_edv": _right(_loinc("8822-9", "Right Ventricular ED Volume"), _ML),
        "rv_esv": _right(_loinc("8824-5", "Right Ventricular ES Volume"), _ML),
        "rv_sv": _right(_STROKE_VOLUME, _ML),
        "rv_ef": _right(_loinc("8818-7", "Right ventricular ejection fraction by MR"), _PERCENT),
        "rv_edv_index": _right(
            _private("RV_EDV_INDEX", "Right Ventricular ED Volume Index"), _ML_PER_AREA, True
        ),
        "heart_rate": Quantity(
            _loinc("8867-4", "Heart rate"), ("{H.B.}/min", "heart beats per minute"), _PATIENT
        ),
        "body_surface_area": Quantity(_BSA, ("m2", "square meter"), _PATIENT),
    }
)
"""The measurements that a report can contain, by this project's names."""


def write_report(
    file: Path,
    values: Mapping[str, float],
    source_files: Sequence[Path],
    algorithm: Algorithm,
    remarks: Sequence[str] = (),
    synthetic: bool = False,
) -> list[str]:
    """Write measurements as an unverified Comprehensive SR, in the study of the images.

    Args:
        file: The DICOM file; its folder is created if necessary.
        values: Measurements by their names in `QUANTITIES`, in the units given there.
        source_files: DICOM files of the images; empty if the images come from other files.
        algorithm: What made the label maps.
        remarks: Sentences on how the values were obtained, written into the report.
        synthetic: Whether the images are simulated.

    Returns:
        What was generated because the images do not have it, one sentence each; the report contains
        these sentences too.

    Raises:
        InputError: highdicom is not installed, there are no values, a name is not known, or a value
            is not a finite number.
        DataError: A source file cannot be read, or the files belong to several patients or studies.
    """
    require_highdicom()
    _check_values(values)
    images = [read_source(path) for path in source_files]
    require_one(images, "PatientID", "patients")
    require_one(images, "StudyInstanceUID", "studies")
    patient, generated = _identify(images)
    texts = [NOTICE, *([_SYNTHETIC] if synthetic else []), *remarks, *generated]
    with making("DICOM report"):
        document = _make(values, images, patient, algorithm, texts)
    kind = "SYNTHETIC. " if synthetic else ""
    document.SeriesDescription = f"{kind}Cardiac MR. {NOTICE}"
    describe_private_codes(document)
    file.parent.mkdir(parents=True, exist_ok=True)
    document.save_as(file)
    return generated


def _check_values(values: Mapping[str, float]) -> None:
    if not values:
        raise InputError("there are no measurements to write into the DICOM report")
    unknown = [name for name in values if name not in QUANTITIES]
    if unknown:
        raise InputError(
            f"the DICOM report has no code for {', '.join(unknown)}: use {', '.join(QUANTITIES)}"
        )
    for name, value in values.items():
        if not math.isfinite(value):
            raise InputError(f"{name} is {value}: leave out measurements that have no value")


def _identify(images: Sequence[Dataset]) -> tuple[Dataset, list[str]]:
    """Return the patient and the study, and sentences on what was generated.

    An empty Patient ID is kept if there is a study, since all its objects must have the same.
    """
    from pydicom.dataset import Dataset
    from pydicom.uid import generate_uid

    result, generated = copy_identity(images[0] if images else Dataset()), list[str]()
    if not result.get("StudyInstanceUID"):
        result.StudyInstanceUID = generate_uid()
        generated.append(
            "The images have no StudyInstanceUID, so this report is in a study of its own."
        )
        if not result.PatientID:
            result.PatientID = f"UNKNOWN-{generate_uid(None)[-12:]}"
            generated.append(
                f"The images have no PatientID, so this report has the new one {result.PatientID}."
            )
    return result, generated


def _make(
    values: Mapping[str, float],
    images: Sequence[Dataset],
    patient: Dataset,
    algorithm: Algorithm,
    texts: Iterable[str],
) -> Dataset:
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    groups: dict[str, dict[str, float]] = {}
    for name, quantity in QUANTITIES.items():
        if name in values:
            groups.setdefault(quantity.group, {})[name] = float(values[name])
    context = sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=generate_uid(entropy_srcs=[PRODUCT, __version__]),
                name=PRODUCT,
                manufacturer_name=PRODUCT,
                model_name=f"{PRODUCT} {__version__}",
            ),
        )
    )
    report = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=codes.SCT.CardiacMRI,
        imaging_measurements=[_group(*item, algorithm) for item in groups.items()],
    )
    report[0].ContentSequence.append(_remarks(texts))
    evidence = [_evidence(image, patient) for image in images] or [_evidence(None, patient)]
    document = sr.ComprehensiveSR(
        evidence=evidence,
        content=report[0],
        series_instance_uid=generate_uid(),
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions=__version__,
        is_complete=True,
        is_final=False,
        is_verified=False,
    )
    if not images:
        del document.CurrentRequestedProcedureEvidenceSequence
    return document


def _evidence(image: Dataset | None, patient: Dataset) -> Dataset:
    """Return what highdicom copies from an image, with the patient and the study of the report."""
    from pydicom.uid import MRImageStorage, generate_uid

    result = copy_identity(patient)
    result.SOPClassUID = MRImageStorage if image is None else image.SOPClassUID
    result.SOPInstanceUID = generate_uid() if image is None else image.SOPInstanceUID
    result.SeriesInstanceUID = generate_uid() if image is None else image.SeriesInstanceUID
    return result


def _group(title: str, values: Mapping[str, float], algorithm: Algorithm) -> Any:
    from highdicom import sr

    identification = sr.AlgorithmIdentification(name=algorithm.name, version=algorithm.version)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(identifier=title),
        algorithm_id=None if title == _PATIENT else identification,
        measurements=[_measurement(name, value) for name, value in values.items()],
    )


def _measurement(name: str, value: float) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes

    quantity = QUANTITIES[name]
    unit = sr.CodedConcept(quantity.unit[0], "UCUM", quantity.unit[1])
    site = quantity.site
    result = sr.Measurement(
        name=_concept(quantity.code),
        value=value,
        unit=unit,
        finding_sites=None if site is None else [sr.FindingSite(_concept(site))],
    )
    if quantity.indexed:
        result[0].ContentSequence.append(
            sr.CodeContentItem(codes.DCM.Index, _concept(_BSA), "HAS CONCEPT MOD")
        )
    return result


def _concept(code: CodeTriple) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def _remarks(texts: Iterable[str]) -> Any:
    """Return the container for sentences in TID 1500."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    name = sr.CodedConcept("C0034375", "UMLS", "Qualitative Evaluations")
    container = sr.ContainerContentItem(name=name, relationship_type="CONTAINS")
    container.ContentSequence = sr.ContentSequence(
        [sr.TextContentItem(codes.DCM.Comment, text, "CONTAINS") for text in texts]
    )
    return container
