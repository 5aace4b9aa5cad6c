"""Label maps of a stack, written as DICOM Segmentation objects."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xraygpt.cardiac.dicom_source import (
    NOTICE,
    PRODUCT,
    Algorithm,
    SourceImage,
    copy_identity,
    describe_private_codes,
    find_sources,
    making,
    require_highdicom,
    require_one,
)
from xraygpt.cardiac.dicom_structures import SEGMENTS, CodeTriple
from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError
from xraygpt.media.dicom_header import numbers
from xraygpt.segmentation.labels import STRUCTURES
from xraygpt.version import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SERIES_NUMBER = 9001


def write_segmentation(
    folder: Path,
    stack: Stack,
    labels: np.ndarray,
    algorithm: Algorithm,
    phases: Sequence[int] | None = None,
    synthetic: bool = False,
) -> list[Path]:
    """Write label maps as a series of DICOM Segmentation objects, one file for each phase.

    Every frame refers to the image it was made from. A file has one phase, because the frames of a
    segmentation are told apart by segment and position only: highdicom refuses several phases, and
    viewers show the first. The type is BINARY, which more programs read than LABELMAP. Frames
    without a structure are written too, so that a file has every slice.

    Args:
        folder: It is created if necessary.
        stack: The stack, from DICOM files.
        labels: (T, S, H, W), values as in `segmentation.labels`.
        algorithm: What made the label maps.
        phases: (T,) phases of the stack that have label maps; None means all.
        synthetic: Whether the images are simulated, which the description then says.

    Returns:
        The files, in the order of the phases.

    Raises:
        InputError: highdicom is not installed.
        DataError: The images are not in DICOM files, or lack what a segmentation must refer to; or
            the label maps are empty or do not fit the stack.
    """
    require_highdicom()
    from pydicom.uid import generate_uid

    chosen = range(stack.phases) if phases is None else phases
    _check_labels(stack, labels, chosen)
    sources = find_sources(stack, chosen)
    _check_sources(stack, [image.header for image in sources.values()])
    structures = [value for value in SEGMENTS if (labels == value).any()]
    if not structures:
        raise DataError(f"{stack.name}: the label maps are empty, so there is nothing to write")
    segment_numbers = np.zeros(len(STRUCTURES), dtype=np.uint8)
    segment_numbers[structures] = np.arange(1, len(structures) + 1)
    segments = [_describe(value, i + 1, algorithm) for i, value in enumerate(structures)]
    series, files = generate_uid(), list[Path]()
    kind = "SYNTHETIC. " if synthetic else ""
    folder.mkdir(parents=True, exist_ok=True)
    for phase, maps in zip(chosen, labels, strict=True):
        images = [sources[phase, s] for s in range(stack.slices)]
        names = {
            "series_instance_uid": series,
            "instance_number": phase + 1,
            "content_description": f"{kind}{NOTICE}. Phase {phase + 1} of {stack.phases}"[:64],
            "series_description": f"{kind}Heart masks. {NOTICE}",
        }
        with making("DICOM segmentation"):
            document = _make(stack, images, segment_numbers[maps], segments, names)
        files.append(folder / f"phase_{phase:03d}.dcm")
        document.save_as(files[-1])
    return files


def _check_labels(stack: Stack, labels: np.ndarray, phases: Sequence[int]) -> None:
    expected = (len(phases), *stack.shape[1:])
    if labels.shape != expected:
        raise DataError(f"{stack.name}: the label maps are {labels.shape}, the images {expected}")
    if not set(phases) <= set(range(stack.phases)):
        raise DataError(f"{stack.name}: the stack has only phases 0 to {stack.phases - 1}")
    if len(set(phases)) < len(phases):
        raise DataError(f"{stack.name}: a phase is given twice")
    if labels.min() < 0 or labels.max() >= len(STRUCTURES):
        raise DataError(
            f"{stack.name}: the label maps have the value {labels.max()}, but structures have 0 to "
            f"{len(STRUCTURES) - 1}"
        )


def _check_sources(stack: Stack, headers: Sequence[Dataset]) -> None:
    if stack.origins is None or stack.axes is None or stack.spacing is None:
        raise DataError(
            f"{stack.name}: the images have no position in the patient, which a DICOM segmentation "
            "requires; export them with their geometry"
        )
    require_one(headers, "StudyInstanceUID", "studies")
    require_one(headers, "PatientID", "patients")
    require_one(headers, "FrameOfReferenceUID", "frames of reference (FrameOfReferenceUID)")
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not headers[0].get(keyword):
            raise DataError(
                f"{stack.name}: the images have no {keyword}, which a DICOM segmentation requires; "
                "export them again with it"
            )


def _describe(value: int, number: int, algorithm: Algorithm) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription

    codes = SEGMENTS[value]
    family = _code(CodeTriple("123109", "DCM", "Artificial Intelligence"))
    return SegmentDescription(
        segment_number=number,
        segment_label=codes.label,
        segmented_property_category=_code(codes.category),
        segmented_property_type=_code(codes.type),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=algorithm.name, version=algorithm.version, family=family
        ),
        anatomic_regions=None if codes.region is None else [_code(codes.region)],
        display_color=CIELabColor(*codes.color),
    )


def _code(code: CodeTriple) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(code.value, code.scheme, code.meaning)


def _make(
    stack: Stack,
    images: Sequence[SourceImage],
    pixels: np.ndarray,
    segments: Sequence[Any],
    names: dict[str, Any],
) -> Dataset:
    """Make the segmentation of one phase.

    Args:
        stack: The stack.
        images: (S,) images of the phase.
        pixels: (S, H, W) segment numbers.
        segments: Description of each segment.
        names: Identifiers and descriptions of the object and its series.
    """
    from highdicom.seg import Segmentation
    from pydicom.uid import generate_uid

    stand_ins = [_stand_in(stack, image, i) for i, image in enumerate(images)]
    document = Segmentation(
        source_images=stand_ins,
        pixel_array=pixels,
        segmentation_type="BINARY",
        segment_descriptions=segments,
        series_number=_SERIES_NUMBER,
        sop_instance_uid=generate_uid(),
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions=__version__,
        device_serial_number=__version__,
        content_label="HEART",
        omit_empty_frames=False,
        **names,
    )
    _refer(document, stand_ins, images)
    describe_private_codes(document)
    return document


def _stand_in(stack: Stack, image: SourceImage, slice_: int) -> Dataset:
    """Return the image as highdicom requires it: with one frame, and in one series with the others.

    Slices are often series of their own, and a file may have several frames. `_refer` replaces the
    identifiers afterwards.
    """
    from pydicom.uid import MRImageStorage, generate_uid
    from pydicom.valuerep import format_number_as_ds

    assert stack.origins is not None and stack.axes is not None and stack.spacing is not None
    result = copy_identity(image.header)
    result.SOPClassUID, result.SOPInstanceUID = MRImageStorage, generate_uid()
    result.SeriesInstanceUID, result.Modality = str(image.header.StudyInstanceUID), "MR"
    result.FrameOfReferenceUID = image.header.FrameOfReferenceUID
    result.PositionReferenceIndicator = image.header.get("PositionReferenceIndicator", "")
    result.Rows, result.Columns = stack.shape[2:]
    # highdicom requires a thickness; without one, a slice reaches halfway to its neighbours.
    thickness = numbers(image.header, "SliceThickness") or [stack.distance or stack.spacing[0]]
    for keyword, values in (
        ("PixelSpacing", stack.spacing),
        ("SliceThickness", thickness[:1]),
        ("ImagePositionPatient", stack.origins[slice_]),
        ("ImageOrientationPatient", stack.axes.ravel()),
    ):
        setattr(result, keyword, [format_number_as_ds(float(value)) for value in values])
    return result


def _refer(document: Dataset, stand_ins: Sequence[Dataset], images: Sequence[SourceImage]) -> None:
    """Replace the references to stand-ins by those to the images."""
    from pydicom.dataset import Dataset

    real = {str(s.SOPInstanceUID): image for s, image in zip(stand_ins, images, strict=True)}

    for group in document.PerFrameFunctionalGroupsSequence:
        for item in group.DerivationImageSequence[0].SourceImageSequence:
            image = real.get(str(item.ReferencedSOPInstanceUID))
            if image is None:
                continue  # done: the frames of all segments at a position share this item
            item.ReferencedSOPClassUID = image.header.SOPClassUID
            item.ReferencedSOPInstanceUID, frame = image.key
            if frame:
                item.ReferencedFrameNumber = frame
    by_series: dict[str, dict[str, Dataset]] = defaultdict(dict)
    for image in images:
        item = Dataset()
        item.ReferencedSOPClassUID = image.header.SOPClassUID
        item.ReferencedSOPInstanceUID = image.header.SOPInstanceUID
        by_series[str(image.header.SeriesInstanceUID)][image.key[0]] = item
    document.SourceImageSequence = [i for items in by_series.values() for i in items.values()]
    document.ReferencedSeriesSequence = []
    for series, items in by_series.items():
        reference = Dataset()
        reference.SeriesInstanceUID = series
        reference.ReferencedInstanceSequence = list(items.values())
        document.ReferencedSeriesSequence.append(reference)
