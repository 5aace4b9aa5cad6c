"""Finer features beside the last ones, for details that a stride of 32 does not resolve."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pixel_unshuffle

from xraygpt.common.errors import InputError
from xraygpt.common.registry import ENCODERS, registry
from xraygpt.models.vision.base import VisionEncoder
from xraygpt.models.vision.encoders import BaseEncoder, find_encoder
from xraygpt.models.weights.rules import ConvertedState

PREFIX = "finer/"


class FinerStage(nn.Module):
    """A network's last features, beside those of the stage before, which has a finer grid.

    The k × k finer cells in each cell of the last grid are concatenated (Shi et al. 2016,
    "Real-time single image super-resolution…", in the opposite direction), so that no detail is
    averaged and the number of tokens stays the same.

    Args:
        inner: The network.
        stages: Returns the last (N, D, h, w) and the finer (N, D2, k h, k w) features of a batch.
    """

    def __init__(
        self, inner: nn.Module, stages: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        super().__init__()
        self.inner, self._stages = inner, stages

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute (N, D + k² D2, h, w) features."""
        last, finer = self._stages(self.inner, pixels)
        factor = finer.shape[-1] // last.shape[-1]
        return torch.cat([last, pixel_unshuffle(finer.contiguous(), factor)], dim=1)


class LastAndStage:
    """Reads the last features of a timm network and those of one of its stages.

    Args:
        index: The stage, as `forward_intermediates` counts them.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, network: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last features and the stage's, both (N, D, h, w)."""
        last, (stage,) = network.forward_intermediates(
            pixels, indices=[self.index], output_fmt="NCHW"
        )
        last = network.forward_head(last)  # without classifier and pooling, at most a norm
        if last.shape[-1] == network.num_features:
            last = last.permute(0, 3, 1, 2)  # (N, h, w, D) from a Swin
        return last, stage


def with_finer_stage(encoder: VisionEncoder, name: str) -> VisionEncoder:
    """Return an encoder with the features of its last finer stage.

    Args:
        encoder: An encoder whose network is timm's.
        name: Its name, for messages.

    Raises:
        InputError: The network has no stage with a finer grid.
    """
    network: Any = encoder.net
    size, channels = encoder.input_spec.image_size, encoder.input_spec.channels
    if not hasattr(network, "forward_intermediates"):
        raise InputError(f"model.vit_model: {PREFIX}{name}: {name} is no timm network with stages")
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    shapes = {key: tensor.to("meta") for key, tensor in tensors.items()}
    pixels = torch.zeros(1, channels, size, size, device="meta")
    with torch.no_grad():
        stages = torch.func.functional_call(_Stages(network), _inside(shapes), (pixels,))
    side = round(encoder.num_tokens**0.5)
    factors = [s.shape[-1] / side for s in stages]
    finer = [i for i, factor in enumerate(factors) if factor in (2, 3, 4)]
    if not finer:
        grids = ", ".join(f"{s.shape[-2]} x {s.shape[-1]}" for s in stages)
        raise InputError(
            f"model.vit_model: {PREFIX}{name}: no stage of {name} divides its last grid at {size} "
            f"px (grids: {grids}); choose a network with stages, or another image_size"
        )
    net = FinerStage(network, LastAndStage(finer[-1]))
    return VisionEncoder(net, encoder.input_spec, has_position=encoder.has_position)


class _Stages(nn.Module):
    """Returns the features of all stages, (N, D, h, w) each."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Return the stages, the finest first, for pixels (N, C, H, W)."""
        stages: list[Tensor] = self.network.forward_intermediates(
            pixels, output_fmt="NCHW", intermediates_only=True
        )
        return stages


def _inside(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": tensor for name, tensor in tensors.items()}


@registry.register_encoder(f"{PREFIX}<encoder>")
class Finer(BaseEncoder):
    """Another encoder with the features of the stage before the last, cell by cell."""

    @property
    def inner(self) -> BaseEncoder:
        """The other encoder.

        Raises:
            InputError: There is no such encoder.
        """
        return find_encoder(self.rest)

    @property
    def weights_of(self) -> tuple[str, ...]:
        """This name and that of the other encoder, whose network is the same."""
        return (self.name, *self.inner.weights_of)

    @property
    def has_weights(self) -> bool:  # type: ignore[override]
        """Whether the other encoder has weights without a file."""
        return self.rest in ENCODERS and self.inner.has_weights

    @property
    def takes_file(self) -> bool:  # type: ignore[override]
        """Whether the other encoder takes a file."""
        return self.inner.takes_file

    def build(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Build the other encoder, and add the finer stage."""
        return self.inner.build_finer(image_size, weights)

    def build_finer(self, image_size: int | None, weights: Path | None) -> VisionEncoder:
        """Refuse to add the stage twice.

        Raises:
            InputError: Always.
        """
        raise InputError(f"model.vit_model: {self.name}: {PREFIX} occurs twice; remove one")

    def convert_file(self, path: Path) -> ConvertedState:
        """Read a weight file of the other encoder."""
        return self.inner.convert_file(path)
