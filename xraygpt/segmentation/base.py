"""The contract of segmenters.

Notation: N images of H × W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np


class Segmentation(NamedTuple):
    """Label maps of several images.

    Attributes:
        labels: (N, H, W) uint8, values as in `labels.STRUCTURES`.
        confidence: (N,) mean probability of the chosen structure over the pixels of the heart, in
            [0, 1]; 0 for an image without a heart.
    """

    labels: np.ndarray
    confidence: np.ndarray


class Segmenter(ABC):
    """Finds structures in images.

    Attributes:
        structures: Names of the structures that it can find.
        notice: What users must know about it, such as the licence of its training data.
    """

    structures: tuple[str, ...] = ()
    notice: str = ""

    @abstractmethod
    def segment(self, images: np.ndarray) -> Segmentation:
        """Segment (N, H, W) float32 images of one stack in the file's own values."""
