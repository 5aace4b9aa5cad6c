"""Segmentation networks of torch: exported programs (`.pt2`) and TorchScript."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xraygpt.common.checkpoint import file_sha256
from xraygpt.common.checks import Checks
from xraygpt.common.errors import WeightsError
from xraygpt.common.project_paths import ProjectPath
from xraygpt.common.registry import registry
from xraygpt.segmentation.base import Orientation, Segmenter
from xraygpt.segmentation.labels import CONVENTIONS
from xraygpt.segmentation.network import ImageNetwork, check_convention


@registry.register_segmenter("torch")
class TorchNetwork(ImageNetwork):
    """A network with input (N, 1, h, w) and one output per label, as a file with its own code.

    Neither format unpickles objects, so a file runs no Python code of its author.

    Raises:
        WeightsError: The file is missing, damaged, or has other inputs or outputs.
    """

    @dataclass(kw_only=True)
    class Config(Segmenter.Config):
        """The file, and the meaning of its outputs."""

        network: ProjectPath
        """File written by `torch.export.save` (.pt2) or `torch.jit.save`."""
        convention: str
        """Meaning of the outputs, a key of `segmentation.labels.CONVENTIONS`."""
        image_size: int = 256
        """h and w."""
        orientation: Orientation = "auto"
        """Whether images are passed as `stored`, with rows and columns `exchanged`, or in the order
        in which the network is more confident (`auto`)."""
        device: Literal["cpu", "cuda"] = "cpu"

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.at_least(1, "image_size")
                check_convention(check, self.convention)

    def __init__(self, config: Config) -> None:
        import torch

        self.config, self.convention = config, config.convention
        self.structures = CONVENTIONS[self.convention][1:]
        self.size = (config.image_size, config.image_size)
        self.orientation = config.orientation
        self.device = torch.device(config.device)
        self._network = _load(config.network, config.device)
        outputs = self._try()
        expected = (2, len(self.structures) + 1, *self.size)
        if outputs.shape != expected:
            raise WeightsError(
                f"{config.network}: expected outputs of shape {expected} for {self.convention} and "
                f"two images of {config.image_size} pixels, got {outputs.shape}"
            )

    def describe(self) -> str:
        """Return the file's name and the beginning of its SHA-256."""
        digest = file_sha256(self.config.network)[:12]
        return f"{self.config.network.name} (torch, SHA-256 {digest})"

    def run(self, inputs: np.ndarray) -> np.ndarray:
        """Run the network; see `ImageNetwork.run`."""
        import torch

        with torch.inference_mode():
            outputs = self._network(torch.from_numpy(inputs).to(self.device))
        result: np.ndarray = outputs.float().cpu().numpy()
        return result

    def _try(self) -> np.ndarray:
        try:
            return self.run(np.zeros((2, 1, *self.size), np.float32))
        except Exception as error:  # whatever the network raises for an input it does not take
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(
                f"{self.config.network} does not take two images of {self.size[0]} pixels with one "
                f"channel: {reason}"
            ) from None


def _load(file: Path, device: str) -> Any:
    import torch

    if not file.is_file():
        raise WeightsError(f"{file}: there is no such file")
    try:
        if file.suffix == ".pt2":
            return torch.export.load(file).module().to(device)
        return torch.jit.load(str(file), map_location=device).eval()
    except Exception as error:  # torch raises many kinds for files that it cannot read
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{file} is no network saved by torch.export.save or torch.jit.save: {reason}"
        ) from None
