"""Label maps of a stack, read from DICOM Segmentation objects of any program.

Section numbers refer to DICOM PS3.3.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xraygpt.cardiac.dicom_source import Place, find_sources
from xraygpt.cardiac.dicom_structures import SEGMENTS, find_structures
from xraygpt.cardiac.stack import Stack
from xraygpt.common.errors import DataError, ImageError
from xraygpt.media.dicom_decode import PIXEL_ELEMENTS, decode_frames
from xraygpt.media.dicom_header import (
    HEADER_ELEMENTS,
    Layout,
    numbers,
    open_dataset,
    parse_layout,
    read_elements,
)
from xraygpt.media.picture import DEFAULT_LIMITS, suppress_library_output
from xraygpt.segmentation.labels import INFARCT, MYOCARDIUM, NO_REFLOW, STRUCTURES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_STORAGE = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_LABELMAP = "LABELMAP"
_ELEMENTS = (
    *HEADER_ELEMENTS, *PIXEL_ELEMENTS, "SOPClassUID", "SegmentationType", "SegmentSequence",
    "FrameOfReferenceUID", "ReferencedSeriesSequence",
)  # fmt: skip
_SAME_PLANE = 0.5  # mm; a mask this far from a slice along the normal still belongs to it
_SAME_DIRECTION = 0.01  # largest difference between direction cosines of image and mask
_SAME_SPACING = 0.01  # largest relative difference between distances of pixels
_PARTS = ((MYOCARDIUM, INFARCT), (MYOCARDIUM, NO_REFLOW), (INFARCT, NO_REFLOW))
"""Pairs that may overlap, since the second structure is a part of the first."""
_EXPORT = "export the segmentation on the images of this stack"


def read_segmentation(path: Path, stack: Stack) -> dict[int, np.ndarray]:
    """Read label maps from a DICOM Segmentation object, or from all those in a folder.

    A frame belongs to the image it refers to. Without references, it belongs to the slice at its
    position, provided that the stack has one phase or the file refers to images of one phase. The
    order of frames is ignored: writers sort them differently, and omit empty ones.

    Args:
        path: A file or a folder.
        stack: The stack that was segmented, from DICOM files.

    Returns:
        (S, H, W) uint8 label maps by phase, values as in `segmentation.labels`.

    Raises:
        DataError: There is no segmentation, a segment is not known, segments overlap, the type is
            FRACTIONAL, or the masks do not fit the images.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder")
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    known = _KnownImages(stack)
    masks = dict[tuple[int, int], np.ndarray]()
    phases, found = set[int](), False
    for file in files:
        try:
            document = _read_document(file)
            if document is None:
                continue
            found = True
            for (phase, slice_), by_structure in _read_masks(document, known):
                phases.add(phase)
                for structure, mask in by_structure.items():
                    whole = masks.setdefault((phase, structure), np.zeros(stack.shape[1:], bool))
                    whole[slice_] |= mask
        except (DataError, OSError) as error:
            raise DataError(f"{file}: {error}") from None
    if not found:
        raise DataError(f"{path}: there is no DICOM segmentation")
    try:
        return {phase: _combine(stack, phase, masks) for phase in sorted(phases)}
    except DataError as error:
        raise DataError(f"{path}: {error}") from None


def _combine(stack: Stack, phase: int, masks: dict[tuple[int, int], np.ndarray]) -> np.ndarray:
    """Return (S, H, W) label maps of one phase; infarcts replace the myocardium around them."""
    labels = np.zeros(stack.shape[1:], dtype=np.uint8)
    present = [value for value in SEGMENTS if (phase, value) in masks]
    for i, value in enumerate(present):
        for other in present[:i]:
            count = int((masks[phase, value] & masks[phase, other]).sum())
            if count and (other, value) not in _PARTS:
                raise DataError(
                    f"phase {phase}: {STRUCTURES[other]} and {STRUCTURES[value]} overlap in "
                    f"{count} pixels; correct the segments so that each pixel belongs to one"
                )
        labels[masks[phase, value]] = value
    return labels


# ---- images of the stack -------------------------------------------------------------------------


class _KnownImages:
    """The images of a stack, to be found by their identifiers."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        images = find_sources(stack, range(stack.phases))
        self.keys = {place: image.key for place, image in images.items()}
        self.references = {
            str(image.header.get("FrameOfReferenceUID") or "") for image in images.values()
        }
        self._places = defaultdict[tuple[str, int], set[Place]](set)
        self._places_of_file = defaultdict[str, set[Place]](set)
        for place, key in self.keys.items():
            self._places[key].add(place)
            self._places_of_file[key[0]].add(place)

    def places(self, uid: str, frame: int) -> set[Place]:
        """Return where an image is shown; where any frame of the file is if `frame` is 0.

        An image has several places if its slice has fewer phases than the others.
        """
        return self._places.get((uid, frame)) or self._places_of_file.get(uid, set())


# ---- one file ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Document:
    dataset: Dataset
    layout: Layout
    syntax: Any


def _read_document(file: Path) -> _Document | None:
    """Read a file; None if it is no DICOM file or another DICOM object.

    Raises:
        ImageError: Its pixels cannot be decoded.
    """
    with suppress_library_output("pydicom"), file.open("rb") as stream:
        try:
            source = open_dataset(stream, DEFAULT_LIMITS)
            if read_elements(source, ("SOPClassUID",)).get("SOPClassUID") not in _STORAGE:
                return None
        except Exception:  # pydicom raises many kinds for files that are not DICOM
            return None
        try:
            dataset = read_elements(source, _ELEMENTS)
        except Exception as error:
            raise ImageError(f"it is corrupt or cut short ({type(error).__name__})") from None
    return _Document(dataset, parse_layout(dataset), source.syntax)


def _read_masks(
    document: _Document, known: _KnownImages
) -> Iterator[tuple[Place, dict[int, np.ndarray]]]:
    """Yield the place of each frame and the (H, W) masks of its structures."""
    dataset = document.dataset
    structures = find_structures(list(dataset.get("SegmentSequence") or []))
    _check_document(document, known)
    frames = [_FrameGroups(dataset, i) for i in range(document.layout.frames)]
    places = _place_frames(frames, dataset, known)
    decoded = decode_frames(dataset, document.syntax, document.layout, range(len(frames)))
    for frame, found, pixels in zip(frames, places, decoded, strict=True):
        if dataset.SegmentationType == _LABELMAP:
            values = [int(n) for n in np.unique(pixels) if n or structures.get(0)]
            segments = {n: pixels == n for n in values}
        else:
            segments = {frame.segment: pixels > 0}
        for number in segments.keys() - structures.keys():
            raise DataError(f"{frame} has segment {number}, which the file does not describe")
        masks = {structures[n]: mask for n, mask in segments.items() if structures[n]}
        for place in found:
            yield place, masks


def _check_document(document: _Document, known: _KnownImages) -> None:
    dataset, layout, stack = document.dataset, document.layout, known.stack
    kind = dataset.get("SegmentationType")
    if kind not in ("BINARY", _LABELMAP):
        raise DataError(
            f"the segmentation is of type {kind}, which has no definite borders; export it as "
            "BINARY or LABELMAP"
        )
    if (layout.rows, layout.columns) != stack.shape[2:]:
        raise DataError(
            f"the masks have {layout.rows} × {layout.columns} pixels, the images "
            f"{stack.shape[2]} × {stack.shape[3]}; {_EXPORT} without resampling"
        )
    reference = str(dataset.get("FrameOfReferenceUID") or "")
    if reference and known.references != {""} and reference not in known.references:
        raise DataError(
            f"the segmentation has another FrameOfReferenceUID ({reference}) than the images, so "
            f"its positions mean nothing for them; {_EXPORT}"
        )


class _FrameGroups:
    """The functional groups of a frame: its own, and those that all frames share (C.7.6.16)."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        own = dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        self.index, self._groups = index, [*own[index : index + 1], *shared[:1]]

    def __str__(self) -> str:
        return f"frame {self.index + 1}"

    @property
    def segment(self) -> int:
        """Number of the segment; 0 without one."""
        value = self._values("SegmentIdentificationSequence", "ReferencedSegmentNumber", 1)
        return 0 if value is None else int(value[0])

    @property
    def position(self) -> np.ndarray | None:
        """(3,) position of the first pixel in mm."""
        return self._values("PlanePositionSequence", "ImagePositionPatient", 3)

    @property
    def axes(self) -> np.ndarray | None:
        """(2, 3) directions along a row and along a column."""
        values = self._values("PlaneOrientationSequence", "ImageOrientationPatient", 6)
        return None if values is None else values.reshape(2, 3)

    @property
    def spacing(self) -> np.ndarray | None:
        """(2,) distances between rows and between columns in mm."""
        return self._values("PixelMeasuresSequence", "PixelSpacing", 2)

    @property
    def references(self) -> list[tuple[str, int]]:
        """SOP Instance UIDs and frames, counted from 1, of the images; frame 0 means all."""
        return [
            (str(item.get("ReferencedSOPInstanceUID") or ""), int(frame))
            for item in self._items("DerivationImageSequence", "SourceImageSequence")
            for frame in numbers(item, "ReferencedFrameNumber") or [0]
        ]

    def _items(self, *keywords: str) -> list[Dataset]:
        """Return the items of nested sequences."""
        items = list(self._groups)
        for keyword in keywords:
            items = [child for item in items for child in item.get(keyword) or []]
        return items

    def _values(self, macro: str, keyword: str, count: int) -> np.ndarray | None:
        found = [numbers(item, keyword) for item in self._items(macro)]
        return next((np.array(values) for values in found if len(values) == count), None)


# ---- places of frames ----------------------------------------------------------------------------


def _place_frames(
    frames: Sequence[_FrameGroups], dataset: Dataset, known: _KnownImages
) -> list[set[Place]]:
    """Return the phases and slices of each frame.

    If one image stands for several phases of a slice, only the phases of other frames count.
    """
    file_phases = _referenced_phases(dataset, known)
    places = list[set[Place]]()
    for frame in frames:
        _check_axes(frame, known.stack)
        found = set[Place]().union(*(known.places(*key) for key in frame.references))
        found = found or _place_by_position(frame, file_phases, known.stack)
        _check_unique(frame, found, known)
        _check_position(frame, next(iter(found))[1], known.stack)
        places.append(found)
    certain = {phase for found in places if len(found) == 1 for phase, _ in found}
    return [{place for place in found if place[0] in certain} or found for found in places]


def _referenced_phases(dataset: Dataset, known: _KnownImages) -> set[int]:
    """Return the phases of all images that the file refers to (C.12.2)."""
    return {
        phase
        for series in dataset.get("ReferencedSeriesSequence") or []
        for item in series.get("ReferencedInstanceSequence") or []
        for phase, _ in known.places(str(item.get("ReferencedSOPInstanceUID") or ""), 0)
    }


def _place_by_position(frame: _FrameGroups, file_phases: set[int], stack: Stack) -> set[Place]:
    phases = {0} if stack.phases == 1 else file_phases
    if len(phases) != 1:
        reason = "images that are not in the stack" if frame.references else "no image"
        raise DataError(
            f"{frame} refers to {reason}, so its phase is unknown; export the segmentation of each "
            "phase with references to the images of that phase"
        )
    if frame.position is None or stack.origins is None or stack.normal is None:
        raise DataError(
            f"{frame} refers to no image of the stack, and there are no positions to compare; "
            f"{_EXPORT}"
        )
    distances = np.abs(stack.origins @ stack.normal - frame.position @ stack.normal)
    nearest = int(distances.argmin())
    if distances[nearest] > _SAME_PLANE:
        raise DataError(
            f"{frame} lies {distances[nearest]:.1f} mm from the nearest slice; {_EXPORT} without "
            "resampling"
        )
    return {(next(iter(phases)), nearest)}


def _check_unique(frame: _FrameGroups, found: set[Place], known: _KnownImages) -> None:
    """Check that a frame belongs to one image."""
    if len({known.keys[place] for place in found}) == 1:
        return
    slices = {slice_ for _, slice_ in found}
    what = "phases" if len(slices) == 1 else "slices"
    count = len(found) if len(slices) == 1 else len(slices)
    raise DataError(
        f"{frame} refers to images of {count} {what}, so it is unknown which one it shows; export "
        "the segmentation of each phase with the images of that phase only"
    )


def _check_axes(frame: _FrameGroups, stack: Stack) -> None:
    if frame.axes is not None and stack.axes is not None:
        difference = float(np.abs(frame.axes - stack.axes).max())
        if difference > _SAME_DIRECTION:
            raise DataError(
                f"{frame} has another direction of rows and columns than the images; {_EXPORT}"
            )
    spacing = frame.spacing
    if spacing is not None and stack.spacing is not None:
        same = np.allclose(spacing, stack.spacing, rtol=_SAME_SPACING)
        if not same:
            raise DataError(
                f"{frame} has pixels of {spacing[0]:g} × {spacing[1]:g} mm, the images "
                f"{stack.spacing[0]:g} × {stack.spacing[1]:g} mm; {_EXPORT} without resampling"
            )


def _check_position(frame: _FrameGroups, slice_: int, stack: Stack) -> None:
    """Check that the frame lies where the slice lies, to half a pixel."""
    position = frame.position
    if position is None or stack.origins is None or stack.axes is None or stack.spacing is None:
        return
    offset = position - stack.origins[slice_]
    along_row, along_column = stack.axes @ offset
    across = float(np.cross(stack.axes[0], stack.axes[1]) @ offset)
    rows, columns = along_column / stack.spacing[0], along_row / stack.spacing[1]
    if max(abs(rows), abs(columns)) > 0.5 or abs(across) > _SAME_PLANE:
        raise DataError(
            f"{frame} lies {float(np.linalg.norm(offset)):.1f} mm from the image it belongs to "
            f"(slice {slice_ + 1}); {_EXPORT} without moving it"
        )
