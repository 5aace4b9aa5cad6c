"""The interface of vision encoders, which turn pixels into patch tokens.

Notation: N images of L tokens each; D is the encoder's width, h × w its grid of patches.
`encoders.py` builds encoders by name.
"""

from __future__ import annotations

import hashlib
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d

from xraygpt.processors.image import InputSpec


class MultiScale(nn.Module):
    """A CNN's last features, concatenated with max-pooled features of finer strides.

    Args:
        inner: A network that returns features of several strides, the finest first.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute (N, D, h, w) features: the last stride's grid, with all widths concatenated."""
        *finer, last = self.inner(pixels)
        pooled_features = [adaptive_max_pool2d(features, last.shape[-2:]) for features in finer]
        return torch.cat([last, *pooled_features], dim=1)


class VisionEncoder(nn.Module):
    """A network that computes patch tokens of images.

    Attributes:
        input_spec: The size, normalisation, channels and fit of the input.
        width: D, the width of a token.
        num_tokens: L for an image of size `input_spec.image_size`.
        has_position: Whether tokens encode their position; a CNN's do not.
    """

    def __init__(self, net: nn.Module, input_spec: InputSpec, *, has_position: bool) -> None:
        super().__init__()
        self.net, self.input_spec, self.has_position = net, input_spec, has_position
        self.num_tokens, self.width = self._token_shape()
        self._frozen = False

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels."""
        return self.input_spec.image_size

    @torch.no_grad()
    def _token_shape(self) -> tuple[int, int]:
        """Find (L, D) by a forward pass on the meta device."""
        self.eval()
        size = self.input_spec.image_size
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        shapes = {name: t.to("meta") for name, t in tensors.items()}
        pixels = torch.zeros(1, self.input_spec.channels, size, size, device="meta")
        probe = torch.func.functional_call(self, shapes, (pixels,))
        return probe.shape[1], probe.shape[2]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Compute patch tokens; see `encode`."""
        return self.encode(pixel_values)

    def encode(self, pixel_values: Tensor) -> Tensor:
        """Encode normalised images of shape (N, C, H, W) as patch tokens of shape (N, L, D)."""
        if not self.has_position and not pixel_values.is_cuda:  # a CNN
            # On the CPU, convolutions are faster with channels last.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        out = self.net(pixel_values)
        features: Tensor = getattr(out, "last_hidden_state", out)  # transformers' models
        if isinstance(features, (list, tuple)):
            features = features[-1]
        if features.dim() == 4 and features.shape[-1] == getattr(self.net, "num_features", 0):
            return features.flatten(1, 2)  # (N, h, w, D) from a Swin
        if features.dim() == 4:  # (N, D, h, w) from a CNN
            features = features.flatten(2).transpose(1, 2)
        return features

    def freeze(self) -> Self:
        """Disable gradients, and stay in evaluation mode even if `train()` is called."""
        self._frozen = True
        self.requires_grad_(False)
        return self.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode, unless the encoder is frozen and therefore stays in evaluation mode."""
        return super().train(mode and not getattr(self, "_frozen", False))

    def digest(self) -> str:
        """Compute the SHA-256 of all weights; see `weights_digest`."""
        return weights_digest(self)

    def __str__(self) -> str:
        return f"{self.num_tokens} tokens of {self.width}; {self.input_spec}"


def weights_digest(part: nn.Module) -> str:
    """Compute the SHA-256 of the names, shapes, dtypes and bytes of all weights."""
    sha = hashlib.sha256()
    for name, tensor in sorted(part.state_dict().items()):
        sha.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def pooled(tokens: Tensor) -> Tensor:
    """Pool (N, L, D) patch tokens to (N, 2 D), the mean and the maximum of each feature.

    The mean represents diffuse findings, the maximum represents local findings.
    """
    return torch.cat([tokens.mean(dim=1), tokens.amax(dim=1)], dim=1)
