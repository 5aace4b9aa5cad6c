"""Label maps that come with the images, from a person or another program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xraygpt.common.errors import DataError
from xraygpt.common.registry import registry
from xraygpt.segmentation.base import Orientation, Segmentation, Segmenter, Slices
from xraygpt.segmentation.labels import STRUCTURES


@registry.register_segmenter("masks")
class GivenMasks(Segmenter):
    """Returns the label maps that were read together with the images."""

    @dataclass(kw_only=True)
    class Config(Segmenter.Config):
        """There are no settings."""

    structures = STRUCTURES[1:]
    orientation: Orientation = "stored"
    needs_labels: ClassVar[bool] = True

    def __init__(self, config: Config) -> None:
        self.config = config

    def segment(self, slices: Slices) -> Segmentation:
        """Return the labels of the slices.

        Raises:
            DataError: There are none.
        """
        if slices.labels is None:
            raise DataError("the study has no masks; give run.masks, or use another run.segmenter")
        return Segmentation(slices.labels, np.ones(len(slices.labels)))
