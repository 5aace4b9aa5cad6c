"""Headers of the DICOM images in a folder, one record for each frame.

Section numbers refer to DICOM PS3.3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xraygpt.cardiac.study import Patient, plausible_height, plausible_weight
from xraygpt.common.errors import DataError, ImageError
from xraygpt.media.dicom_decode import PIXEL_ELEMENTS, decode_frames
from xraygpt.media.dicom_header import (
    HEADER_ELEMENTS,
    numbers,
    open_dataset,
    parse_layout,
    read_elements,
)
from xraygpt.media.picture import DEFAULT_LIMITS, suppress_library_output

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_GEOMETRY = (
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness",
)  # fmt: skip
_ELEMENTS = (
    *_GEOMETRY, "SOPClassUID", "Modality", "Rows", "Columns", "NumberOfFrames", "SeriesInstanceUID",
    "StudyInstanceUID", "SeriesDescription", "ProtocolName", "SeriesNumber", "TriggerTime",
    "NominalInterval", "HeartRate", "FrameTime", "TemporalPositionIndex", "InversionTime",
    "ImageType", "RescaleSlope", "RescaleIntercept", "PatientID", "PatientSex", "PatientSize",
    "PatientWeight", "SOPInstanceUID", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
_SKIPPED_NAMES = ("DICOMDIR",)


@dataclass(frozen=True)
class Frame:
    """What the header says about one image.

    Attributes:
        file: The file.
        index: Frame in the file, counted from 0.
        study: Study Instance UID.
        patient: Patient ID.
        series: Series Instance UID.
        number: Series Number; −1 without one.
        name: Series Description and Protocol Name.
        size: Rows and columns.
        position: Of the first pixel in mm (C.7.6.2.1.1); None without one.
        axes: (2, 3) directions along a row and along a column; None without them.
        spacing: Distances between rows and between columns in mm; None without them.
        thickness: Slice Thickness in mm, which is not the distance between slices.
        time: Trigger Time in s after the R wave (C.8.3.1); None without one.
        rr_interval: Duration of a heartbeat in s; None if unknown.
        modality: Such as MR.
    """

    file: Path
    index: int
    study: str
    patient: str
    series: str
    number: int
    name: str
    size: tuple[int, int]
    position: np.ndarray | None
    axes: np.ndarray | None
    spacing: tuple[float, float] | None
    thickness: float | None
    time: float | None
    rr_interval: float | None
    modality: str

    def read(self) -> np.ndarray:
        """Decode the pixels as (H, W) float32, after Rescale Slope and Intercept.

        MONOCHROME1, whose lowest value is white (C.7.6.3.1.2), is inverted, so that blood is bright
        as in other files.

        Raises:
            DataError: The file cannot be decoded; the message names it.
        """
        limits = DEFAULT_LIMITS
        try:
            with suppress_library_output("pydicom"), self.file.open("rb") as stream:
                source = open_dataset(stream, limits)
                dataset = read_elements(source, (*HEADER_ELEMENTS, *PIXEL_ELEMENTS))
                layout = parse_layout(dataset)
                frames = range(self.index, self.index + 1)
                stored = next(iter(decode_frames(dataset, source.syntax, layout, frames)))
        except (ImageError, OSError) as error:
            raise DataError(f"{self.file}: {error}") from None
        if stored.ndim != 2:
            raise DataError(f"{self.file}: a cardiac image must be grey, not in colour")
        slope = (numbers(dataset, "RescaleSlope") or [1.0])[0]
        intercept = (numbers(dataset, "RescaleIntercept") or [0.0])[0]
        values = (stored * np.float32(slope) + np.float32(intercept)).astype(np.float32)
        if layout.photometric == "MONOCHROME1":
            highest = 2 ** (layout.bits_stored - layout.signed) - 1
            values = np.float32(highest * slope + intercept) - values
        return values


def read_frames(folder: Path) -> tuple[list[Frame], Patient, list[str]]:
    """Read the headers of all DICOM images in a folder and its subfolders, or of one file.

    Returns:
        The frames, the patient, and sentences about files that were left out and odd values.

    Raises:
        DataError: There is no DICOM image.
    """
    frames, odd, patient = list[Frame](), list[str](), Patient()
    left_out = defaultdict[str, list[str]](list)  # files by reason
    seen, copies = set[str](), list[str]()
    for file in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if not file.is_file() or file.name.startswith(".") or file.name in _SKIPPED_NAMES:
            continue
        try:
            dataset = _read_header(file)
            uid = str(dataset.get("SOPInstanceUID") or file)
            if uid in seen:
                copies.append(file.name)
                continue
            seen.add(uid)
            frames += _frames_of(file, dataset)
            patient = _complete(patient, _patient_of(dataset, odd))
        except (ImageError, OSError) as error:
            name = file.relative_to(folder) if file != folder else file.name
            left_out[str(error)].append(str(name))
    skipped = [_describe_left_out(files, reason) for reason, files in left_out.items()]
    if not frames:
        reason = f" ({skipped[0]})" if skipped else ""
        raise DataError(f"{folder}: there is no DICOM image that can be read{reason}")
    if copies:
        count = "a copy" if len(copies) == 1 else f"{len(copies)} copies"
        skipped.append(
            f"left out {count} of other files with the same SOP Instance UID, such as {copies[0]}"
        )
    return frames, patient, [*skipped, *dict.fromkeys(odd)]


def _describe_left_out(files: list[str], reason: str) -> str:
    if len(files) == 1:
        return f"left out {files[0]}: {reason}"
    return f"left out {len(files)} files, such as {files[0]}: {reason}"


def study_uid(file: Path) -> str:
    """Return the Study Instance UID of a DICOM file; empty if it has none or cannot be read."""
    try:
        return str(_read_header(file).get("StudyInstanceUID") or "")
    except (ImageError, OSError):
        return ""


def _read_header(file: Path) -> Dataset:
    with suppress_library_output("pydicom"), file.open("rb") as stream:
        try:
            dataset = read_elements(open_dataset(stream, DEFAULT_LIMITS), _ELEMENTS)
        except ImageError:
            raise
        except Exception as error:  # pydicom raises many kinds for files that are not DICOM
            raise ImageError(f"it is not a DICOM file ({type(error).__name__})") from None
    if not numbers(dataset, "Rows"):
        raise ImageError("it has no image")
    return dataset


def _frames_of(file: Path, dataset: Dataset) -> Iterator[Frame]:
    count = int((numbers(dataset, "NumberOfFrames") or [1])[0])
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    per_frame = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    names = [str(dataset.get(k) or "") for k in ("SeriesDescription", "ProtocolName")]
    cine_step = numbers(dataset, "FrameTime")
    for index in range(count):
        own = per_frame[index] if index < len(per_frame) else None
        value = partial(_value, (own, shared), dataset)
        position = value("PlanePositionSequence", "ImagePositionPatient", 3)
        axes = value("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        spacing = value("PixelMeasuresSequence", "PixelSpacing", 2)
        thickness = value("PixelMeasuresSequence", "SliceThickness", 1)
        delay = value("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime", 1)
        time = delay or (numbers(dataset, "TriggerTime") if count == 1 else [])
        if not time and count > 1 and cine_step and not per_frame:
            time = [cine_step[0] * index]  # C.7.6.5: the frames of a cine follow each other
        interval = value("CardiacSynchronizationSequence", "RRIntervalTimeNominal", 1)
        interval = interval or numbers(dataset, "NominalInterval")
        rate = numbers(dataset, "HeartRate")
        yield Frame(
            file=file,
            index=index,
            study=str(dataset.get("StudyInstanceUID") or ""),
            patient=str(dataset.get("PatientID") or ""),
            series=str(dataset.get("SeriesInstanceUID") or ""),
            number=int((numbers(dataset, "SeriesNumber") or [-1])[0]),
            name=" ".join(dict.fromkeys(filter(None, names))),
            size=(int(numbers(dataset, "Rows")[0]), int(numbers(dataset, "Columns")[0])),
            position=np.array(position) if position else None,
            axes=np.array(axes).reshape(2, 3) if axes else None,
            spacing=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
            thickness=thickness[0] if thickness else None,
            time=time[0] / 1000 if time else None,
            rr_interval=_rr_interval(interval, rate),
            modality=str(dataset.get("Modality") or ""),
        )


def _rr_interval(interval: list[float], rate: list[float]) -> float | None:
    """Return seconds from an R-R interval in ms, or else a rate in beats per minute."""
    if interval and interval[0] > 0:
        return interval[0] / 1000
    return 60 / rate[0] if rate and rate[0] > 0 else None


def _value(
    groups: tuple[Any, ...], dataset: Dataset, macro: str, keyword: str, count: int
) -> list[float]:
    """Return an element of a frame's or the shared functional groups, or of the dataset itself."""
    for group in groups:
        item = None if group is None else _first(group, macro)
        if item is not None and len(values := numbers(item, keyword)) == count:
            return values
    values = numbers(dataset, keyword)
    return values if len(values) == count else []


def _first(dataset: Any, keyword: str) -> Any:
    sequence = dataset.get(keyword)
    return sequence[0] if sequence else None


def _patient_of(dataset: Dataset, odd: list[str]) -> Patient:
    """Read sex, height (stored in m) and weight (C.7.2.2); 0 means unknown."""
    sex = {"M": "male", "F": "female"}.get(str(dataset.get("PatientSex") or ""), "")
    height, weight = numbers(dataset, "PatientSize"), numbers(dataset, "PatientWeight")
    return Patient(
        sex,
        plausible_height(height[0], "PatientSize", odd, "metres") if any(height[:1]) else None,
        plausible_weight(weight[0], "PatientWeight", odd) if any(weight[:1]) else None,
    )


def _complete(patient: Patient, other: Patient) -> Patient:
    """Return what is known about a patient, where a file may lack what another one has."""
    return Patient(
        patient.sex or other.sex, patient.height or other.height, patient.weight or other.weight
    )
