"""DeepSpeed's ZeRO, stages 1 and 2, behind accelerate's configuration.

Stage 1 shares out among processes what AdamW remembers, stage 2 the gradients as well (Rajbhandari
et al. 2020). The weights stay whole on each, and a checkpoint is that of one process.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor

from xraygpt.common.distributed import is_lower
from xraygpt.common.errors import InputError
from xraygpt.models.base import BaseModel
from xraygpt.runners import optimizers
from xraygpt.runners.settings import RunSettings
from xraygpt.runners.stepping import Stepper

_REMEMBERED = ("exp_avg", "exp_avg_sq")  # AdamW's means, one of each for every weight


class ZeroStepper(Stepper):
    """A `Stepper` that lets DeepSpeed's engine do it, and lays AdamW out anew.

    Its means are there from the beginning, so a dry run has counted them.

    Raises:
        InputError: The configuration asks for what this loop does itself, or for another stage.
    """

    _last = True  # whether this micro-batch is the last of its step

    def _wrap(self) -> Any:
        self.parameters = [list(group["params"]) for group in self.optimizer.param_groups]
        self._configure()
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what DeepSpeed prints is no result
                engine, _ = self.accelerator.prepare(self.model, self.optimizer)
        except (ValueError, RuntimeError, ImportError, AssertionError) as error:
            raise InputError(
                f"DeepSpeed does not start: {error}. Mend its configuration, or use torchrun"
            ) from error
        # AdamW's means come to be at its first step, group by group, but DeepSpeed looks for those
        # of all groups after the first: a step that changes nothing, before.
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # set anew before every step
            for flat in group["params"]:
                flat.grad = torch.zeros_like(flat)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._count(0.0)
        return engine

    def _configure(self) -> None:
        """Lay what the YAML says over accelerate's configuration of DeepSpeed."""
        config, accelerator = self.config, self.accelerator
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        _check(settings)
        _check_model(self.model)
        rows, micro_batches = config.batch_size_train, config.accum_grad_iters
        settings |= {
            "train_micro_batch_size_per_gpu": rows,
            "gradient_accumulation_steps": micro_batches,
            "train_batch_size": rows * micro_batches * accelerator.num_processes,
            "gradient_clipping": config.grad_clip or 0.0,
            "zero_allow_untested_optimizer": True,
            "bf16": {"enabled": False},  # would round the trained weights themselves
            "fp16": {"enabled": False},
            # Gradients are summed in float32, as by DDP.
            "torch_autocast": {
                "enabled": is_lower(accelerator.device, config.amp),
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],
            },
        }
        # By default 2 GB, for half a billion gradients, whatever is trained.
        trained = sum(p.numel() for _, p in self.model.trainable_parameters())
        settings["zero_optimization"]["reduce_bucket_size"] = trained
        accelerator.gradient_accumulation_steps = micro_batches

    def _count(self, steps: float) -> None:
        for held in self.optimizer.state.values():
            held["step"].fill_(steps)

    def bytes_to_come(self) -> int:
        """None: the means are there."""
        return 0

    def micro_batch(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """The engine is told which is the last; buffers become those of the first process."""
        self._last = last
        if self.accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                if buffer.is_floating_point():
                    torch.distributed.broadcast(buffer, 0)
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """As `Stepper`'s; the engine divides by processes and micro-batches."""
        self.wrapped.set_gradient_accumulation_boundary(self._last)
        shares = self.accelerator.num_processes * self.config.accum_grad_iters
        self.wrapped.backward(loss * shares)

    def step(self, check: Callable[[float], None]) -> float:
        """As `Stepper`'s, but that a norm is known only when the engine has stepped.

        It leaves the weights alone where gradients are not finite.
        """
        check(0.0)  # the loss
        self.wrapped.step()
        norm = float(self.wrapped.get_global_grad_norm())
        check(norm)
        return norm

    def state(self) -> dict[str, Any]:
        """Gathered from all processes, in the layout of torch's AdamW."""
        from deepspeed.utils import safe_get_full_optimizer_state as whole

        steps = float(next(iter(self.optimizer.state.values()))["step"])
        state, groups, first = {}, [], 0
        for group, parameters in zip(self.optimizer.param_groups, self.parameters, strict=True):
            places = list(range(first, first + len(parameters)))
            first += len(parameters)
            kept = {k: v for k, v in group.items() if k in self.optimizer.defaults}
            groups.append({**kept, "params": places})
            for place, parameter in zip(places, parameters, strict=True) if steps else ():
                means = {}
                for name in _REMEMBERED:
                    mean = whole(parameter, name)
                    if self.accelerator.is_main_process:  # which alone writes
                        means[name] = mean.cpu()
                state[place] = {**means, "step": torch.tensor(steps)}
        return {"state": state, "param_groups": groups}

    def load_state(self, state: dict[str, Any]) -> None:
        """Share out what a checkpoint of any number of processes holds."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        listed = [p for parameters in self.parameters for p in parameters]
        for group, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            group |= {k: v for k, v in saved.items() if k not in ("params", "lr")}
        for parameter in listed:  # the engine has a copy of its own, of the weights before
            safe_set_full_fp32_param(parameter, parameter.detach().clone())
        if not state["state"]:
            return
        self._link(listed)
        for place, parameter in enumerate(listed):
            for name in _REMEMBERED if place in state["state"] else ():
                value = state["state"][place][name].to(parameter.device)
                safe_set_full_optimizer_state(parameter, value, name)
        self._count(float(next(iter(state["state"].values()))["step"]))

    def _link(self, listed: list[Tensor]) -> None:
        """A step that changes nothing, for DeepSpeed knows after one where each mean lies."""
        self._last = True
        self.backward(torch.stack([(p * 0).sum() for p in listed]).sum())
        self.wrapped.step()


def make_stepper(
    accelerator: Accelerator,
    model: BaseModel,
    optimizer: torch.optim.Optimizer,
    config: RunSettings,
) -> Stepper:
    """The one that accelerate's configuration asks for.

    Raises:
        InputError: DeepSpeed is to do what this loop does itself, or what it cannot.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return Stepper(accelerator, model, optimizer, config)
    if config.shard_llm:
        raise InputError("run.shard_llm goes without DeepSpeed: take one of the two")
    if not isinstance(optimizer, torch.optim.AdamW):
        raise InputError(
            "DeepSpeed's ZeRO shares out AdamW's means, and run.optimizer is "
            f"{optimizers.name_of(config.optimizer)}: set it to adamw, or launch with torchrun"
        )
    return ZeroStepper(accelerator, model, optimizer, config)


def _check(settings: dict[str, Any]) -> None:
    wrong = [part for part in ("optimizer", "scheduler") if part in settings]
    if wrong:
        raise InputError(
            f"DeepSpeed's configuration names its own {' and '.join(wrong)}: leave that out, "
            "run.init_lr, run.lr_sched and run.weight_decay say it"
        )
    zero = settings.get("zero_optimization") or {}
    if zero.get("stage") not in (1, 2):
        raise InputError(
            f"DeepSpeed is configured for ZeRO stage {zero.get('stage')}; this loop goes with 1 "
            "and 2. For a frozen LLM laid out over the processes leave DeepSpeed and set "
            "run.shard_llm: true"
        )
    away = (zero.get("offload_optimizer") or {}).get("device") or "none"
    if away != "none" or zero.get("cpu_offload"):
        raise InputError("DeepSpeed: this loop goes without offloading: offload_optimizer")
    if settings.get("compute_grad_norm") is False:
        raise InputError("DeepSpeed: this loop wants to know the norm: compute_grad_norm")


def _check_model(model: BaseModel) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() == 0:
            raise InputError(
                f"DeepSpeed cannot take this model: {name} is a number and no vector. Launch with "
                "torchrun"
            )
    for name, parameter in model.trainable_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"DeepSpeed: {name} is trained in {parameter.dtype}, this loop goes with float32: "
                "set model.llm_dtype: float32 and run.amp: bf16, or launch with torchrun"
            )
