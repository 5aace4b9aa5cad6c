"""Optimizers: plug-ins that make a torch optimizer of a model's parameter groups."""

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

TorchGroup = dict[str, Any]  # "params", "lr", "weight_decay" and what else the optimizer keeps


class BaseOptimizer(Plugin):
    """Turns parameter groups into a torch optimizer.

    Args:
        config: Its settings, from `run.optimizer`.
        beta2: The run's `beta2`, for optimizers that average squared gradients.
    """

    @dataclass(kw_only=True)
    class Config(Plugin.Config):
        """Settings of an optimizer; learning rate and weight decay are the run's."""

        kind: ClassVar[Registry] = OPTIMIZERS
        default_name: ClassVar[str] = "adamw"  # when `run.optimizer` names none

    config: Any

    def __init__(self, config: Any, *, beta2: float) -> None:
        self.config, self.beta2 = config, beta2

    def make(self, groups: list[TorchGroup], model: BaseModel) -> torch.optim.Optimizer:
        """A torch optimizer over exactly the weights of `groups`.

        All it remembers has to lie in its `state` and `param_groups`, where checkpoints look.

        Args:
            groups: Each with `params`, `lr` and `weight_decay`; other keys, such as `lr_scale`,
                have to be kept.
            model: Whose weights these are.
        """
        raise NotImplementedError


@registry.register_optimizer("adamw")
class AdamW(BaseOptimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

    @dataclass(kw_only=True)
    class Config(BaseOptimizer.Config):
        """The first moment; the second is `run.beta2`."""

        beta1: float = 0.9
        """Share that the mean gradient keeps of itself each step, in [0, 1)."""
        eps: float = 1e-8
        """Added to the root of the mean squared gradient."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.share_below_one("beta1")
                check.above(0, "eps")

    config: Config

    def make(self, groups: list[TorchGroup], model: BaseModel) -> torch.optim.Optimizer:
        """Torch's."""
        betas = (self.config.beta1, self.beta2)
        return torch.optim.AdamW(groups, betas=betas, eps=self.config.eps)


@registry.register_optimizer("muon")
class Muon(BaseOptimizer):
    """Muon on hidden matrices, AdamW on everything else.

    A matrix moves along its orthogonalised momentum, which turns all singular values of the update
    into about 1 by a few Newton-Schulz iterations in bfloat16 (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/). Embeddings, heads, vectors and kernels of
    convolutions are AdamW's, as there. By default an update is scaled to the size AdamW's usually
    has, so that learning rate and weight decay tuned for AdamW hold for both (Liu et al. 2025,
    arXiv:2502.16982).
    """

    @dataclass(kw_only=True)
    class Config(AdamW.Config):
        """Muon's settings, and AdamW's for the weights it takes."""

        momentum: float = 0.95
        """Share that the mean gradient of a matrix keeps of itself each step, in [0, 1)."""
        nesterov: bool = True
        """Look one step ahead: the newest gradient counts once more."""
        ns_steps: int = 5
        """Newton-Schulz iterations, 1 to 20."""
        adjust_lr: Literal["match_rms_adamw", "original", "spectral_unclamped"] = "match_rms_adamw"
        """Factor on the learning rate of an (A, B) matrix: `match_rms_adamw` 0.2 √max(A, B);
        `original` √max(1, A / B), which wants a learning rate of its own, about 0.02;
        `spectral_unclamped` √(A / B)."""

        def __post_init__(self) -> None:
            with Checks(self) as check:
                check.also(super().__post_init__)
                check.share_below_one("momentum")
                steps = self.ns_steps
                check.refuse(not 1 <= steps <= 20, "ns_steps", f"must be 1 to 20, got {steps}")

    config: Config

    def make(self, groups: list[TorchGroup], model: BaseModel) -> torch.optim.Optimizer:
        """Both optimizers behind one.

        Raises:
            InputError: The model trains no hidden matrix.
        """
        how = self.config
        hidden = {id(weight) for weight in model.hidden_matrices()}
        matrices = _only(groups, lambda weight: id(weight) in hidden)
        others = _only(groups, lambda weight: id(weight) not in hidden)
        if not matrices:
            raise InputError("run.optimizer: muon has no hidden matrix to train here; take adamw")
        parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                momentum=how.momentum,
                nesterov=how.nesterov,
                ns_steps=how.ns_steps,
                adjust_lr_fn=how.adjust_lr,
            )
        ]
        if others:
            betas = (how.beta1, self.beta2)
            parts.append(torch.optim.AdamW(others, betas=betas, eps=how.eps))
        return Together(parts)


class Together(torch.optim.Optimizer):
    """Several optimizers that step as one.

    Their groups stand in `param_groups` one after the other, and `state` holds what all of them
    remember, so learning rates and checkpoints need not know of the parts.

    Args:
        parts: Each over weights of its own.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Each part's step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        for part in self.parts:
            count = len(part.param_groups)
            # Loading a state puts other dicts in place of those that the part knows.
            part.param_groups = self.param_groups[first : first + count]
            part.state = self.state
            part.step()
            first += count
        return loss


def make_optimizer(
    how: BaseOptimizer.Config,
    model: BaseModel,
    *,
    lr: float,
    weight_decay: float,
    beta2: float,
) -> torch.optim.Optimizer:
    """The optimizer of a run, over the groups that its model states.

    Args:
        how: Which optimizer, with its settings.
        model: What is trained.
        lr: The run's learning rate, for groups with an `lr_scale` of 1.
        weight_decay: Of groups that state none.
        beta2: Of the mean squared gradient.

    Raises:
        TrainingError: Nothing is trained, or the groups leave out a weight that is to be trained.
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
    optimizer: torch.optim.Optimizer = how.build(beta2=beta2).make(groups, model)
    return optimizer


def name_of(how: BaseOptimizer.Config) -> str:
    """What a YAML calls it."""
    return OPTIMIZERS.name_of(type(how).owner)


def check_name(how: BaseOptimizer.Config, saved: str) -> None:
    """Refuse to take up what another optimizer remembers.

    Raises:
        InputError: `saved`, the name in a checkpoint, is not what the YAML names.
    """
    if name_of(how) != saved:
        raise InputError(
            f"run.optimizer is {name_of(how)}, but this run was trained with {saved}; set it as it "
            "was, or start a new run from the weights with model.ckpt"
        )


def bytes_to_come(optimizer: torch.optim.Optimizer) -> int:
    """What `optimizer` will remember after its first step; nothing is changed.

    It takes that step without memory: with weights and gradients on the meta device. Where it
    cannot, it is taken to remember two numbers a weight, as AdamW does.
    """
    groups, state = optimizer.param_groups, optimizer.state
    shapes: list[TorchGroup] = [{**g, "params": [_shape(p) for p in g["params"]]} for g in groups]
    remembered: defaultdict[Tensor, Any] = defaultdict(dict)
    try:
        optimizer.param_groups, optimizer.state = shapes, remembered
        optimizer.step()
        held = [t for each in remembered.values() for t in each.values() if torch.is_tensor(t)]
        return sum(t.nbytes for t in held)
    except (NotImplementedError, RuntimeError):  # it looks at values
        return sum(2 * p.nbytes for group in groups for p in group["params"])
    finally:
        optimizer.param_groups, optimizer.state = groups, state


def _shape(weight: Tensor) -> Tensor:
    shape = torch.empty_like(weight, device="meta")
    if weight.requires_grad:
        shape.grad = torch.empty_like(shape)
    return shape


def _only(groups: list[TorchGroup], wanted: Callable[[Tensor], bool]) -> list[TorchGroup]:
    """The same groups with the wanted weights alone; those left empty are gone."""
    some = [{**group, "params": [p for p in group["params"] if wanted(p)]} for group in groups]
    return [group for group in some if group["params"]]


def _check_groups(groups: list[TorchGroup], model: BaseModel) -> None:
    named = model.trainable_parameters()
    if not named:
        raise TrainingError("nothing to train: every part is frozen (model.freeze_*)")
    held = {id(weight) for group in groups for weight in group["params"]}
    left_out = [name for name, weight in named if id(weight) not in held]
    if left_out:
        raise TrainingError(
            f"{type(model).__name__}.param_groups() leaves out {len(left_out)} weights that are to "
            f"be trained, {left_out[0]} first: put them into a group or set requires_grad to False"
        )
    for group in groups:
        for key in ("lr", "weight_decay"):
            if not (math.isfinite(group[key]) and group[key] >= 0):
                raise TrainingError(
                    f"{type(model).__name__}.param_groups(): group {group.get('name', '')!r} has "
                    f"{key} {group[key]}, which must be finite and not below 0"
                )
