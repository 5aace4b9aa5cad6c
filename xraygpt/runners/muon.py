"""Muon, with momentum that warms up and fewer operations for wide and tall matrices."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Bound = Literal["frobenius", "gram"]
# Coefficients of a X + b (X X^T) X + c (X X^T)^2 X, which brings singular values into about
# 0.7..1.2 (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
EPS = 1e-7
# Iterations on the small Gram matrix before the update itself is computed anew. With more, the
# largest singular values drift away in bfloat16 (5: up to 2.0 instead of 1.2).
GRAM_ITERATIONS = 3
BLOCKS, MIN_BLOCK = 4, 64  # of rows, for products that are symmetric
MIN_RATIO = 2  # of a matrix's sides, from which on this takes fewer operations


def orthogonalize(matrix: Tensor, steps: int = 5, bound: Bound = "frobenius") -> Tensor:
    """Bring all singular values of a matrix to about 1, by Newton-Schulz iterations in bfloat16.

    The iterations multiply the matrix X with polynomials of its Gram matrix X X^T. For a matrix
    with one side much longer than the other, these polynomials are multiplied with each other
    first, which are products of small matrices, and applied to the long one every few iterations.

    Args:
        matrix: (A, B).
        steps: Number of iterations.
        bound: The upper bound of the largest singular value that the matrix is divided by first:
            the root of the sum of squared singular values, or the fourth root of the sum of their
            fourth powers. The latter is closer, so that one iteration less does the same, and
            follows from the first Gram matrix.

    Returns:
        (A, B) bfloat16.
    """
    tall = matrix.size(0) > matrix.size(1)
    x = (matrix.mT if tall else matrix).to(torch.bfloat16, copy=True)
    x /= x.norm().clamp(min=EPS)
    gram = gram_matrix(x)
    if bound == "gram":
        size = gram.norm().clamp(min=EPS)  # of the squares
        x, gram = x / size.sqrt(), gram / size
    if x.size(1) >= MIN_RATIO * x.size(0):
        for begin in range(0, steps, GRAM_ITERATIONS):
            gram = gram if begin == 0 else gram_matrix(x)
            x = _gram_iterations(x, gram, min(GRAM_ITERATIONS, steps - begin))
    else:
        a, b, c = COEFFICIENTS
        for step in range(steps):
            gram = gram if step == 0 else gram_matrix(x)
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _gram_iterations(x: Tensor, gram: Tensor, steps: int) -> Tensor:
    """Compute `steps` iterations from X and its Gram matrix, with one product of all of X."""
    a, b, c = COEFFICIENTS
    product: Tensor | None = None
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step + 1 < steps:
            gram = factor @ gram @ factor
    return x if product is None else product @ x


def gram_matrix(x: Tensor) -> Tensor:
    """Compute X X^T of an (A, B) matrix; on a CPU, each off-diagonal block only once."""
    size = x.size(0)
    blocks = BLOCKS if x.size(1) >= MIN_RATIO * size else BLOCKS // 2
    if x.device.type != "cpu" or size % blocks or size // blocks < MIN_BLOCK:
        return x @ x.mT
    gram, step = x.new_empty(size, size), size // blocks
    for start in range(0, size, step):
        stop = start + step
        gram[start:stop, :stop] = x[start:stop] @ x[:stop].mT
        gram[:start, start:stop] = gram[start:stop, :start].mT
    return gram


class MuonMatrices(torch.optim.Muon):
    """torch's Muon with `orthogonalize`, and momentum that rises linearly at first.

    Args:
        groups: As for `torch.optim.Muon`.
        momentum_start: Momentum in the first step.
        momentum_warmup: Steps until `momentum` is reached, at least 1.
        bound: See `orthogonalize`.
        settings: Further arguments of `torch.optim.Muon`.
    """

    def __init__(
        self,
        groups: Any,
        *,
        momentum_start: float,
        momentum_warmup: int,
        bound: Bound = "frobenius",
        **settings: Any,
    ) -> None:
        super().__init__(groups, **settings)
        self.bound = bound
        for group in self.param_groups:
            group.update(momentum_start=momentum_start, momentum_warmup=momentum_warmup, step=0)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all matrices with gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            momentum = self._momentum(group)
            group["step"] += 1
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group, momentum)
        return loss

    def _momentum(self, group: dict[str, Any]) -> float:
        start, end = group["momentum_start"], group["momentum"]
        share = min(1.0, group["step"] / group["momentum_warmup"])
        return float(start + share * (end - start))

    def _update(
        self, weight: Tensor, gradient: Tensor, group: dict[str, Any], momentum: float
    ) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        average = state["momentum_buffer"]
        average.lerp_(gradient, 1 - momentum)
        update = gradient.lerp(average, momentum) if group["nesterov"] else average
        direction = orthogonalize(update, group["ns_steps"], self.bound)
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        scale = adjustment(group["adjust_lr_fn"], weight.shape)
        weight.add_(direction, alpha=-group["lr"] * scale)


def adjustment(name: str, shape: torch.Size) -> float:
    """Return the factor on the learning rate of an (A, B) matrix; see `Muon.Config.adjust_lr`."""
    rows, columns = shape
    if name == "original":
        return float(max(1.0, rows / columns) ** 0.5)
    if name == "match_rms_adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    return float((rows / columns) ** 0.5)
