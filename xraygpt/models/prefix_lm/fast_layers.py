"""Layers of nanochat's decoder that compute the same with fewer passes over memory.

Norms, rotations and activations have no weights, but on a CPU they take a fifth of a training step
of a small decoder. Here, each has a backward pass of its own, which keeps and reads less.

Notation: D is the last axis, T the tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.nanochat import modeling_nanochat as nanochat


def use_fast_layers(decoder: Any) -> None:
    """Replace the norms, activations and attention layers of a `NanoChatForCausalLM`."""
    for module in decoder.modules():
        if type(module) is nanochat.NanoChatRMSNorm:
            module.__class__ = FastNorm
        elif type(module) is nanochat.NanoChatMLP and decoder.config.hidden_act == "relu2":
            module.activation_fn = SquaredReLU()
        elif type(module) is nanochat.NanoChatAttention:
            module.__class__ = FastAttention


class FastNorm(nanochat.NanoChatRMSNorm):
    """x / √(mean(x²) + eps), computed in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last axis."""
        normalized: Tensor = _Norm.apply(x, self.eps)
        return normalized


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        values = x.float()
        norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normalized = values * scale
        ctx.save_for_backward(normalized, scale)
        return normalized.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        normalized, scale = ctx.saved_tensors
        gradient = gradients[0].float()
        along = torch.linalg.vecdot(gradient, normalized).div_(normalized.shape[-1])
        change = torch.addcmul(gradient, normalized, along.unsqueeze(-1), value=-1).mul_(scale)
        return change.to(gradients[0].dtype), None


class SquaredReLU(nn.Module):
    """The activation max(x, 0)²."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each value."""
        squared: Tensor = _SquaredReLU.apply(x)
        return squared


class _SquaredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        positive = F.relu(x)
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (positive,) = ctx.saved_tensors
        return (gradients[0] * positive).mul_(2)


class FastAttention(nanochat.NanoChatAttention):
    """Attention whose queries and keys are rotated and normalised by one function."""

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute attention like the class of transformers.

        Args:
            hidden_states: (B, T, H).
            position_embeddings: Cosines and sines, (B, T, D) each.
            attention_mask: As transformers makes it for the attention kernel.
            past_key_values: Cache of keys and values, to which those of these tokens are added.
            kwargs: Passed on to the attention kernel.
        """
        assert position_embeddings is not None
        batch, length, _ = hidden_states.shape
        shape = (batch, length, -1, self.head_dim)
        cos, sin = (x.unsqueeze(2) for x in position_embeddings)
        eps = self.q_norm.eps
        query = _Turn.apply(self.q_proj(hidden_states).view(shape), cos, sin, eps).transpose(1, 2)
        key = _Turn.apply(self.k_proj(hidden_states).view(shape), cos, sin, eps).transpose(1, 2)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, nanochat.eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        mixed, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        output: Tensor = self.o_proj(mixed.reshape(batch, length, -1))
        return output, weights


class _Turn(torch.autograd.Function):
    """Rotates vectors to their positions, and normalises them.

    In this order, since rounded cosines and sines do not keep the length of a vector.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        turned = _rotate(x.float(), cos, sin)
        norm = torch.linalg.vector_norm(turned, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        turned.mul_(scale)
        ctx.save_for_backward(turned, scale, cos, sin)
        return turned.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        turned, scale, cos, sin = ctx.saved_tensors
        gradient = gradients[0].float()
        along = torch.linalg.vecdot(gradient, turned).div_(turned.shape[-1])
        change = torch.addcmul(gradient, turned, along.unsqueeze(-1), value=-1).mul_(scale)
        return _rotate(change, cos, -sin).to(gradients[0].dtype), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of the first and the second half of the last axis, with nanochat's sign."""
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    cos, sin = cos[..., :half], sin[..., :half]
    turned = torch.empty_like(x)
    torch.mul(first, cos, out=turned[..., :half])
    turned[..., :half].addcmul_(second, sin)
    torch.mul(second, cos, out=turned[..., half:])
    turned[..., half:].addcmul_(first, sin, value=-1)
    return turned
