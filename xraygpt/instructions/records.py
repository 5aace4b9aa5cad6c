"""An image of a collection with all that is known about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from xraygpt.media.geometry import Box

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
SYNTHETIC = "SYNTHETIC"  # prefix of the patient ids of made-up images
FRONTAL = frozenset({"PA", "AP", "FRONTAL"})
# An image whose view is unknown is neither.
VIEWS = {"frontal": FRONTAL, "lateral": frozenset({"LATERAL"})}

Label = Literal["positive", "negative", "uncertain"]


@dataclass(frozen=True, slots=True)
class Located:
    """A name or phrase with its boxes.

    Attributes:
        text: Name of a region or finding, or a phrase from a report.
        boxes: Its boxes on the original image; empty if it has no place, as in "no effusion".
    """

    text: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class ImageRow:
    """A row of a collection's table ``images``; see `Collection.load`.

    Attributes:
        number: Position in the collection, from 1.
        image_id: Unique in the collection.
        path: Image file relative to the folder of images, or absolute.
        study_id: The study of the image.
        patient_id: The patient, such as ``mimic/10000032``. Collections that share patients use
            the same prefix.
        split: The official split of the image.
        view: PA, AP, LATERAL, FRONTAL (PA or AP unknown), or "" if unknown.
        sex: F, M or "" if unknown.
        width: Width of the original image in pixels; None if unknown.
        height: Its height.
    """

    number: int
    image_id: str
    path: str
    study_id: str
    patient_id: str
    split: Split
    view: str = ""
    sex: str = ""
    width: int | None = None
    height: int | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """What is known about one image.

    Attributes:
        image: Its row in the table of images.
        report: Text of the report; "" if there is none.
        labels: Label by finding; a finding that nobody judged is missing.
        healthy: Whether the image is labelled as without any finding.
        regions: Anatomical regions.
        findings: Findings with boxes, drawn by readers.
        searched: Findings that the readers looked for. Those without a box in `findings` are
            absent; empty if this is not known.
        complete: Whether `findings` are all that a reader would call abnormal, and not only those
            of the few kinds that were searched.
        phrases: Sentences or phrases with boxes.
        conversations: Stored conversations by kind: ``standard`` or ``grounding``. Each is a list
            of (question, answer).
    """

    image: ImageRow
    report: str = ""
    labels: Mapping[str, Label] = field(default_factory=dict)
    healthy: bool = False
    regions: tuple[Located, ...] = ()
    findings: tuple[Located, ...] = ()
    searched: tuple[str, ...] = ()
    complete: bool = False
    phrases: tuple[Located, ...] = ()
    conversations: Mapping[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
