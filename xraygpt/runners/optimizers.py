"""Optimizers: plug-ins that build a torch optimizer from a model's parameter groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from xraygpt.common.checks import Checks
from xraygpt.common.errors import InputError, TrainingError
from xraygpt.common.registry import OPTIMIZERS, Plugin, Registry, registry
from xraygpt.models.base import BaseModel
from xraygpt.runners.muon import Bound, MuonMatrices

TorchGroup = dict[str, Any]  # "params", "lr", "weight_decay" and other options


class BaseOptimizer(Plugin):
    """Builds a torch optimizer from parameter groups.

    Args:
        config: The optimizer's settings, from `run.optimizer`.
        beta2: The run's `beta2`, for optimizers that average squared gradients.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings for an optimizer; the run sets the learning rate and the weight decay."""

        kind: ClassVar[Registry] = OPTIMIZERS
        default_name: ClassVar[str] = "adamw"  # used if `run.optimizer` names none

    config: Any

    def __init__(self, config: Any, *, beta2: float) -> None:
        self.config, self.beta2 = config, beta2

    def make(self, groups: list[TorchGroup], model: BaseModel) -> torch.optim.Optimizer:
        """Build a torch optimizer over exactly the weights of `groups`.

        Its whole state must be in `state` and `param_groups`, which checkpoints save.

        Args:
            groups: Groups with `params`, `lr` and `weight_decay`; other keys, such as `lr_scale`,
                must be preserved.
            model: The model the weights belong to.
        """
        raise NotImplementedError


@registry.register_optimizer("adamw")
class AdamW(BaseOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    @dataclass(kw_only=True)
    class Config(BaseOptimizer.Config):
        """Settings for AdamW in addition to `run.beta2`."""

        beta1: float = 0.9
        """Decay rate of the mean gradient per step, in [0, 1)."""
        eps: float = 1e-8
        """Constant added to the square root of the mean squared gradient."""
        fused: bool = False
        """Use torch's fused kernel, which is faster and rounds differently in the last digit."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.fraction_below_one("beta1")
                check.above(0, "eps")

    config: Config

    def make(self, groups: list[TorchGroup], model: BaseModel) -> torch.optim.Optimizer:
        """Build `torch.optim.AdamW` over the groups."""
        betas, fused = (self.config.beta1, self.beta2), self.config.fused or None
        return torch.optim.AdamW(groups, betas=betas, eps=self.config.eps, fused=fused)


@registry.register_optimizer("muon")
class Muon(BaseOptimizer):
    """Muon for hidden matrices and AdamW for everything else.

    A matrix is updated along its orthogonalised momentum: a few Newton-Schulz iterations in
    bfloat16 bring all singular values of the update to about 1 (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Embeddings, heads, vectors and convolution kernels
    use AdamW, as in that work. By default updates are scaled to AdamW's typical size, so that a
    learning rate and weight decay tuned for AdamW suit both (Liu et al. 2025, arXiv:2502.16982).
    """

    @dataclass(kw_only=True)
    class Config(AdamW.Config):
        """Settings for Muon, and for AdamW on the remaining weights."""

        momentum: float = 0.95
        """Decay rate of a matrix's mean gradient per step, in [0, 1)."""
        nesterov: bool = True
        """Whether to use Nesterov momentum."""
        momentum_start: float | None = None
        """Momentum in the first step, from which it rises linearly to `momentum`; null begins with
        `momentum`. nanochat begins with 0.85."""
        momentum_warmup: int = 300
        """Steps until `momentum` is reached; has no effect without `momentum_start`."""
        ns_steps: int = 5
        """Number of Newton-Schulz iterations, 1 to 20."""
        bound: Bound = "frobenius"
        """What a matrix is divided by before the iterations: `frobenius` as in torch, or `gram`,
        which is closer to the largest singular value, so that 4 iterations suffice."""
        adjust_lr: Literal["match_rms_adamw", "original", "spectral_unclamped"] = "match_rms_adamw"
        """Factor on the learning rate of an (A, B) matrix: `match_rms_adamw` 0.2 √max(A, B);
        `original` √max(1, A / B), which needs its own learning rate, about 0.02;
        `spectral_unclamped` √(A / B)."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.include(super().__post_init__)
                check.fraction_below_one("momentum", "momentum_start")
                check.at_least(1, "momentum_warmup")
                steps = self.ns_steps
                check.refuse(not 1 <= steps <= 20, "ns_steps", f"must be in 1..20, got {steps}")

    config: Config

    def make(self, groups: list[TorchGroup], model: BaseModel) -> torch.optim.Optimizer:
        """Build both optimizers as one.

        Raises:
            InputError: The model trains no hidden matrix.
        """
        config = self.config
        hidden = {id(weight) for weight in model.hidden_matrices()}
        matrices = _select(groups, lambda weight: id(weight) in hidden)
        others = _select(groups, lambda weight: id(weight) not in hidden)
        if not matrices:
            raise InputError(
                "run.optimizer: this model trains no hidden matrix for muon; use adamw"
            )
        start = config.momentum if config.momentum_start is None else config.momentum_start
        parts: list[torch.optim.Optimizer] = [
            MuonMatrices(
                matrices,
                momentum=config.momentum,
                momentum_start=start,
                momentum_warmup=config.momentum_warmup,
                bound=config.bound,
                nesterov=config.nesterov,
                ns_steps=config.ns_steps,
                adjust_lr_fn=config.adjust_lr,
            )
        ]
        if others:
            betas = (config.beta1, self.beta2)
            fused = config.fused or None
            parts.append(torch.optim.AdamW(others, betas=betas, eps=config.eps, fused=fused))
        return CombinedOptimizer(parts)


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers behind the interface of one.

    `param_groups` lists the groups of all of them and `state` is shared, so schedules and
    checkpoints work unchanged.

    Args:
        parts: The optimizers, over disjoint weights.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Step every part."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part in self.parts:
            count = len(part.param_groups)
            # load_state_dict replaces the dicts, so pass them to the part again.
            part.param_groups = self.param_groups[first : first + count]
            part.state = self.state
            part.step()
            first += count
        return loss


def make_optimizer(
    config: BaseOptimizer.Config,
    model: BaseModel,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
) -> torch.optim.Optimizer:
    """Build a run's optimizer over its model's parameter groups.

    Args:
        config: The optimizer's settings.
        model: The model to train.
        lr: Learning rate for groups with an `lr_scale` of 1.
        weight_decay: Weight decay for groups that set none.
        beta2: Decay rate of the mean squared gradient.

    Raises:
        TrainingError: Nothing is trained, or a trained weight is in no group.
        InputError: The optimizer cannot train this model.
    """
    groups: list[TorchGroup] = [
        {
            **group,
            "lr": lr * group.get("lr_scale", 1.0),
            "weight_decay": group.get("weight_decay", weight_decay),
        }
        for group in model.param_groups()
    ]
    _check_groups(groups, model)
    optimizer: torch.optim.Optimizer = config.build(beta2=beta2).make(groups, model)
    return optimizer


def name_of(config: BaseOptimizer.Config) -> str:
    """Return the optimizer's registered name."""
    return OPTIMIZERS.name_of(type(config).owner)


def check_name(config: BaseOptimizer.Config, saved: str) -> None:
    """Refuse to resume with another optimizer than `saved`, the one named in the checkpoint.

    Raises:
        InputError: The names differ.
    """
    if name_of(config) != saved:
        raise InputError(
            f"run.optimizer is {name_of(config)}, but this run was trained with {saved}; set it "
            "back, or start a new run from its weights with model.ckpt"
        )


def bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """Compute how many bytes of state `optimizer` will have after its first step.

    The number is found by a step on the meta device, which allocates nothing. For an optimizer that
    cannot run there, two numbers per weight are assumed, as for AdamW.
    """
    groups, state = optimizer.param_groups, optimizer.state
    shapes: list[TorchGroup] = [{**g, "params": [_on_meta(p) for p in g["params"]]} for g in groups]
    meta_state: defaultdict[Tensor, Any] = defaultdict(dict)
    try:
        optimizer.param_groups, optimizer.state = shapes, meta_state
        optimizer.step()
        values = [value for entry in meta_state.values() for value in entry.values()]
        return sum(value.nbytes for value in values if torch.is_tensor(value))
    except (NotImplementedError, RuntimeError):  # it reads tensor values
        return sum(2 * p.nbytes for group in groups for p in group["params"])
    finally:
        optimizer.param_groups, optimizer.state = groups, state


def _on_meta(weight: Tensor) -> Tensor:
    shape = torch.empty_like(weight, device="meta")
    if weight.requires_grad:
        shape.grad = torch.empty_like(shape)
    return shape


def _select(groups: list[TorchGroup], keep: Callable[[Tensor], bool]) -> list[TorchGroup]:
    """Return the groups reduced to the weights that `keep` accepts, without empty groups."""
    reduced = [{**group, "params": [p for p in group["params"] if keep(p)]} for group in groups]
    return [group for group in reduced if group["params"]]


def _check_groups(groups: list[TorchGroup], model: BaseModel) -> None:
    trained = model.trainable_parameters()
    if not trained:
        raise TrainingError("there is nothing to train: every part is frozen (model.freeze_*)")
    grouped = {id(weight) for group in groups for weight in group["params"]}
    missing = [name for name, weight in trained if id(weight) not in grouped]
    if missing:
        raise TrainingError(
            f"{type(model).__name__}.param_groups() omits {len(missing)} trained weights, "
            f"starting with {missing[0]}: put them into a group or set requires_grad to False"
        )
    for group in groups:
        for key in ("lr", "weight_decay"):
            if not (math.isfinite(group[key]) and group[key] >= 0):
                raise TrainingError(
                    f"{type(model).__name__}.param_groups(): group {group.get('name', '')!r} has "
                    f"{key} {group[key]}, which must be finite and at least 0"
                )
