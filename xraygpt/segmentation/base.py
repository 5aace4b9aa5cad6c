"""The contract of segmenters.

Notation: N slices of H × W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from xraygpt.common.registry import SEGMENTERS, Plugin, Registry

Orientation = Literal["auto", "stored", "exchanged"]


class Region(NamedTuple):
    """A rectangle of pixels: rows from `top` to below `bottom`, columns from `left` to `right`."""

    top: int
    left: int
    bottom: int
    right: int


class Slices(NamedTuple):
    """Slices of one phase of a stack.

    Attributes:
        pixels: (N, H, W) float32 in the file's own values.
        spacing: Distances between rows and between columns in mm; None if unknown.
        distance: Distance between the centres of neighbouring slices in mm; None if unknown or if
            the slices are no neighbours.
        labels: (N, H, W) label maps that came with the images, values as in `labels.STRUCTURES`;
            None without them.
        region: Where the heart is, with a margin, if that is known; a segmenter may ignore the rest
            of the image.
    """

    pixels: np.ndarray
    spacing: tuple[float, float] | None = None
    distance: float | None = None
    labels: np.ndarray | None = None
    region: Region | None = None


class Segmentation(NamedTuple):
    """Label maps of several slices.

    Attributes:
        labels: (N, H, W) uint8, values as in `labels.STRUCTURES`.
        confidence: (N,) mean probability of the chosen structure over the pixels of the heart, in
            [0, 1]; 0 for an image without a heart. 1 if the segmenter has no probabilities.
    """

    labels: np.ndarray
    confidence: np.ndarray


class Segmenter(Plugin):
    """Finds structures in images.

    Attributes:
        structures: Names of the structures that it can find.
        notice: What users must know about it, such as the licence of its training data.
        remarks: Known errors of values measured with it, by `Measurement.key`.
        orientation: Whether images are passed as stored or with rows and columns exchanged; "auto"
            tries both and takes the one with more confidence.
        expects_exchanged: Whether its training images had rows and columns exchanged, as arrays of
            nibabel do. With "auto", the other order must be clearly more confident.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings common to all segmenters."""

        kind: ClassVar[Registry] = SEGMENTERS

    structures: tuple[str, ...] = ()
    notice: str = ""
    remarks: Mapping[str, str] = MappingProxyType({})
    orientation: Orientation = "auto"
    expects_exchanged: bool = False
    needs_labels: ClassVar[bool] = False
    """Whether it works only on images with `Slices.labels`."""
    needs_whole_stack: ClassVar[bool] = False
    """Whether it must see all slices of a phase together, as 3-D networks do."""

    @property
    def uses_region(self) -> bool:
        """Whether it is faster if `Slices.region` is given."""
        return False

    @abstractmethod
    def segment(self, slices: Slices) -> Segmentation:
        """Segment slices of one phase.

        Raises:
            InputError: The segmenter cannot read such images.
        """

    def describe(self) -> str:
        """Return its name and source in a few words, for the settings in a report."""
        return str(SEGMENTERS.name_of(type(self)))

    def segment_all(self, phases: Iterable[Slices]) -> Iterator[Segmentation]:
        """Segment phases of one stack one by one; overridden if the segmenter starts slowly."""
        return map(self.segment, phases)
