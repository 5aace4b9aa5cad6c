"""Networks that segment single images: scaling of inputs, and label maps from outputs."""

from __future__ import annotations

import math
from abc import abstractmethod

import numpy as np

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError
from xraygpt.segmentation.base import Region, Segmentation, Segmenter, Slices
from xraygpt.segmentation.labels import CONVENTIONS, to_structures

PERCENTILES = (0.05, 99.05)
"""Percentiles of the values above 0 that are mapped to 0 and 1, as in the networks' training."""
BATCH = 1  # larger ones need more memory and are no faster


class ImageNetwork(Segmenter):
    """A network with input (N, 1, h, w) in [0, 1] and output (N, C, h, w), one per label.

    Outputs may be probabilities or logits. The central square of an image is resized to `size`. A
    network that takes any size then sees only the region of the heart, at the same scale.

    Attributes:
        convention: Meaning of the outputs, a key of `labels.CONVENTIONS`.
        size: (h, w).
        step: Inputs whose height and width are multiples of this number are possible, too; 0 if
            only `size` is.
    """

    convention: str
    size: tuple[int, int]
    step: int = 0

    @property
    def uses_region(self) -> bool:
        """Whether the network takes inputs of any size."""
        return self.step > 0

    @abstractmethod
    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Return the (N, C, h, w) float32 outputs for (N, 1, h, w) float32 inputs."""

    def segment(self, slices: Slices) -> Segmentation:
        """Segment slices of one phase; see `Segmenter.segment`."""
        import torch
        from torch.nn.functional import interpolate

        scaled = scale_to_unit(slices.pixels)
        square = _Square(*scaled.shape[1:])
        window = self._window(slices.region, square)
        labels = np.zeros(scaled.shape, dtype=np.uint8)
        confidence = np.zeros(len(scaled))
        side = (square.side, square.side)
        for start in range(0, len(scaled), BATCH):
            part = slice(start, start + BATCH)
            pixels = torch.from_numpy(square.crop(scaled[part]))[:, None]
            inputs = interpolate(pixels, self.size, mode="bilinear", antialias=True)
            outputs = self._run_window(inputs.numpy(), window)
            resized = interpolate(torch.from_numpy(outputs), side, mode="bilinear")
            highest, chosen = resized.max(dim=1)
            square.crop(labels[part])[...] = to_structures(chosen.numpy(), self.convention)
            inside = (chosen > 0).flatten(1)
            sums = (highest.flatten(1) * inside).sum(dim=1)
            confidence[part] = (sums / inside.sum(dim=1).clamp(min=1)).numpy()
        return Segmentation(labels, confidence)

    def _run_window(self, inputs: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
        """Return (N, C, h, w) probabilities; outside the window, all is background."""
        part = _probabilities(self.run(np.ascontiguousarray(inputs[:, :, *window])))
        outputs = np.zeros((*part.shape[:2], *self.size), np.float32)
        outputs[:, 0] = 1
        outputs[:, :, *window] = part
        return outputs

    def _window(self, region: Region | None, square: _Square) -> tuple[slice, slice]:
        """Return the rows and columns of the network's input that contain the region."""
        if region is None or not self.step:
            return slice(0, self.size[0]), slice(0, self.size[1])
        rows = (region.top - square.top, region.bottom - square.top)
        columns = (region.left - square.left, region.right - square.left)
        return (
            grow(rows, self.size[0], self.size[0] / square.side, self.step),
            grow(columns, self.size[1], self.size[1] / square.side, self.step),
        )


def grow(limits: tuple[int, int], size: int, scale: float, step: int) -> slice:
    """Scale an interval, and widen it to a multiple of `step` within 0 and `size`."""
    low, high = max(0, math.floor(limits[0] * scale)), min(size, math.ceil(limits[1] * scale))
    length = min(size, math.ceil(max(high - low, 1) / step) * step)
    start = min(max(0, (low + high - length) // 2), size - length)
    return slice(start, start + length)


def scale_to_unit(images: np.ndarray) -> np.ndarray:
    """Map percentiles of the positive values to 0 and 1, and clip the others.

    Raises:
        InputError: The images have negative values, as after z-scoring, or only one value.
    """
    if images.min() < 0:
        raise InputError(
            "the images have negative values: give the values of the scanner, not standardised ones"
        )
    positive = images[images > 0]
    if not len(positive):
        raise InputError("the images are black: export them again")
    low, high = np.percentile(positive, PERCENTILES)
    if high <= low:
        raise InputError("the images have the same value everywhere: export them again")
    return np.clip((images - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)


def _probabilities(outputs: np.ndarray) -> np.ndarray:
    """Return a network's outputs as probabilities, which they may be already."""
    sums = outputs.sum(axis=1)
    if outputs.min() >= 0 and np.abs(sums - 1).max() < 1e-3:
        return outputs
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    normalised: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return normalised


class _Square:
    """The central square of an image."""

    def __init__(self, height: int, width: int) -> None:
        self.side = min(height, width)
        self.top, self.left = (height - self.side) // 2, (width - self.side) // 2

    def crop(self, images: np.ndarray) -> np.ndarray:
        """Return a view of (N, side, side) pixels."""
        rows = slice(self.top, self.top + self.side)
        return images[:, rows, self.left : self.left + self.side]


def check_convention(check: Checks, convention: str, optional: bool = False) -> None:
    """Require the field `convention` to be a key of `labels.CONVENTIONS`, or empty if optional."""
    if not (optional and not convention):
        wrong = convention not in CONVENTIONS
        names = ", ".join(CONVENTIONS)
        check.refuse(wrong, "convention", f"give the meaning of the outputs, one of {names}")
